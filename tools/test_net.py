"""Test a detector: detections, COCO or VOC metrics, result files in OUTPUT_DIR/inference/<data set>.

A training of this package:  python tools/test_net.py OUTPUT_DIR runs/one
A file of weights:           python tools/test_net.py MODEL.WEIGHT model_final.pth DATASETS.TEST "('shapes_val',)"
Weights without a config:    python tools/test_net.py --config-file configs/fcos/fcos_R_50_FPN_1x.yaml \\
                                 MODEL.WEIGHT FCOS_R_50_FPN_1x.pth
Several processes:           torchrun --nproc_per_node 8 tools/test_net.py ...

The weights are MODEL.WEIGHT of the command line, else the last checkpoint of OUTPUT_DIR, else MODEL.WEIGHT of the
config file. Without --config-file the config comes from the checkpoint. TEST.BBOX_AUG switches multi-scale testing on.
"""

import sys

from fcos_core.utils import command_line


def parse_arguments(arguments=None):
    """The command line as a namespace: config_file, local_rank, opts."""
    parser = command_line.make_parser(__doc__)
    command_line.add_run_arguments(parser, "yaml file; default: that of the checkpoint")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the tool; returns the exit code."""
    args = parse_arguments(arguments)
    command_line.set_local_rank(args)
    return command_line.exit_code_of(lambda: test(args))


def test(args):
    """Test the weights."""
    from fcos_core.engine.run_test import evaluate_checkpoint
    from fcos_core.utils.env import setup_environment

    setup_environment()
    evaluate_checkpoint(args.config_file, args.opts)


if __name__ == "__main__":
    sys.exit(main())
