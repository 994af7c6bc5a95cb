"""Train a detector and test it.

One process:        python tools/train_net.py --config-file configs/fcos/fcos_R_50_FPN_1x.yaml OUTPUT_DIR runs/one
Several processes:  torchrun --nproc_per_node 8 tools/train_net.py --config-file ...
Several machines:   torchrun --nnodes 2 --node_rank 0 --master_addr HOST --nproc_per_node 8 tools/train_net.py ...

The same command again goes on where the last one stopped: a checkpoint in OUTPUT_DIR is resumed. MODEL.WEIGHT names
weights to start from instead of random ones; it gives no iteration and no optimizer state.
"""

import sys

from fcos_core.utils import command_line


def parse_arguments(arguments=None):
    """The command line as a namespace: config_file, local_rank, skip_test, opts."""
    parser = command_line.make_parser(__doc__)
    parser.add_argument("--skip-test", action="store_true", help="do not test after the training")
    command_line.add_run_arguments(parser)
    return parser.parse_args(arguments)


def main(arguments=None):
    """Run the tool; returns the exit code."""
    args = parse_arguments(arguments)
    command_line.set_local_rank(args)
    return command_line.exit_code_of(lambda: train(args))


def train(args):
    """Train and test; returns the exit code."""
    from fcos_core.config import load_config
    from fcos_core.engine.run import run_training
    from fcos_core.utils.env import setup_environment

    setup_environment()
    cfg, explicit_keys = load_config(args.config_file, args.opts)
    return run_training(cfg, explicit_keys, args.skip_test)


if __name__ == "__main__":
    sys.exit(main())
