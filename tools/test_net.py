"""Test a detector: detections, COCO or VOC metrics, result files in OUTPUT_DIR/inference/<data set>.

A training of this package:  python tools/test_net.py OUTPUT_DIR runs/one
A file of weights:           python tools/test_net.py MODEL.WEIGHT model_final.pth DATASETS.TEST "('shapes_val',)"
Weights without a config:    python tools/test_net.py --config-file configs/fcos/fcos_R_50_FPN_1x.yaml \\
                                 MODEL.WEIGHT FCOS_R_50_FPN_1x.pth
Several processes:           torchrun --nproc_per_node 8 tools/test_net.py ...

The weights are MODEL.WEIGHT of the command line, else the last checkpoint of OUTPUT_DIR, else MODEL.WEIGHT of the
config file. Without --config-file the config comes from the checkpoint. TEST.BBOX_AUG switches multi-scale testing on.
"""

import argparse
import os
import sys


def parse_arguments(arguments=None):
    """The command line as a namespace: config_file, local_rank, opts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", default="", metavar="FILE", help="yaml file; default: that of the checkpoint")
    # torch.distributed.launch passes one of the two spellings, by its version; torchrun sets LOCAL_RANK instead
    parser.add_argument("--local_rank", "--local-rank", type=int, default=None, help="set by torch.distributed.launch")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override the config")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the tool; returns the exit code."""
    args = parse_arguments(arguments)
    if args.local_rank is not None:
        os.environ["LOCAL_RANK"] = str(args.local_rank)

    from fcos_core.engine.run_test import evaluate_checkpoint
    from fcos_core.utils.env import setup_environment

    setup_environment()
    evaluate_checkpoint(args.config_file, args.opts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
