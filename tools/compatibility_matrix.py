"""Install and test the package with many versions of torch, each in an environment of its own; write the table of them.

    python tools/compatibility_matrix.py cells 2.1.2/3.10 1.7.1/3.7      # torch/Python, these only
    python tools/compatibility_matrix.py cells --missing                  # all that have no record for this version
    python tools/compatibility_matrix.py toolkits /opt/cuda-11.8 /usr/local/cuda-13.0
    python tools/compatibility_matrix.py ways --python 3.7=/opt/python3.7/bin/python
    python tools/compatibility_matrix.py table

A cell is what a user does: a new environment, `pip install torch== torchvision==`, `pip install -e '.[test]'` in a
clone of this repository, then the test suite on the CPU.  A compiler's warning about csrc fails it.  One cell at a
time; its environment (up to 8 GB, with the CUDA packages that a torch wheel asks for) is removed before the next one.
Records are kept in docs/compatibility.json, so that cells can be run over several days, and docs/compatibility.md is
written from all of them.  What is tested is the last commit, not what lies about in the tree.
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from compatibility import cells, records, steps, toolkits, ways  # noqa: E402


def main(arguments=None):
    """Run the tool; returns the exit code: 0 if all that was run passed."""
    options = _parser().parse_args(arguments)
    if options.what == "table":
        print(records.write_page())
        return 0
    options.pythons = dict(name.split("=", 1) for name in options.python)
    options.logs = os.path.abspath(options.logs)
    if options.work:
        os.makedirs(options.work, exist_ok=True)
    try:
        return {"cells": cells.run_all, "toolkits": toolkits.run_all, "ways": ways.run_all}[options.what](options)
    except steps.StepError as error:
        print("compatibility_matrix: {}".format(error))
        return 1


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", metavar="cells | toolkits | ways | table")
    parts.required = True
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--python", nargs="+", default=[], metavar="X.Y=PATH", help="interpreters that are not on PATH")
    common.add_argument("--work", metavar="DIR", help="where environments are made (default: the temporary folder)")
    common.add_argument("--logs", metavar="DIR", default=os.path.join("output", "compatibility"))
    common.add_argument("--no-record", action="store_true", help="only print the results")
    one = parts.add_parser("cells", parents=[common], help="install and test with versions of torch")
    one.add_argument("cells", nargs="*", metavar="TORCH/PYTHON", help="such as 2.1.2/3.10; /PYTHON may be left out")
    one.add_argument("--missing", action="store_true", help="all cells without a record of this commit")
    one.add_argument("--all", action="store_true", help="all cells")
    one.add_argument("--pytest", default="", metavar="ARGUMENTS", help="more for pytest, in one word; recorded")
    one = parts.add_parser("toolkits", parents=[common], help="compile for all GPUs and link, with CUDA toolkits")
    one.add_argument("homes", nargs="+", metavar="CUDA_HOME")
    one = parts.add_parser("ways", parents=[common], help="try each way to install, with and without torch")
    one.add_argument("ways", nargs="*", metavar="WAY", help="only these: {}".format(", ".join(ways.WAYS)))
    one.add_argument("--torch", nargs="*", metavar="TORCH/PYTHON", help="default: {}".format(" ".join(ways.CELLS)))
    parts.add_parser("table", help="write docs/compatibility.md from the records again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
