"""Make a small checkpoint for others: a copy without the optimizer, the schedule and the iteration.

python tools/remove_solver_states.py runs/one/model_final.pth
"""

import argparse
import sys


def main(arguments=None):
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="path of the checkpoint; the copy <name>_wo_solver_states<ext> appears beside it")
    args = parser.parse_args(arguments)

    from fcos_core.utils.checkpoint import remove_solver_states

    target, removed = remove_solver_states(args.model)
    print(f"Saved {target} without {', '.join(removed) or 'anything removed: there were no solver states'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
