"""One call of cases of tables.py for a profiler, after some that warm up:

    ncu --profile-from-start off --section SpeedOfLight --section Occupancy --section WarpStateStats \\
        python benchmarks/profile_kernels.py --op roi_align --case "1000 rois, sampling 2 float32, both"

--case: part of the name of a case, as tables.py prints it; several may be given.  Needs a GPU.
"""

import argparse
import os
import sys

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import tables_cases  # noqa: E402


def main(arguments=None):
    """Run the tool; returns the exit code: 1 if there is no such case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", required=True, choices=sorted(tables_cases.TABLES))
    parser.add_argument("--case", nargs="+", default=[""])
    parser.add_argument("--contender", default="fcos_core")
    options = parser.parse_args(arguments)
    _, cases = tables_cases.TABLES[options.op]
    found = [case for case in cases(True, False) if any(part in case.name for part in options.case)]
    for case in found:
        function, inputs = case.contenders[options.contender], case.inputs("cuda", 0)
        for _ in range(3):
            function(*inputs)
        torch.cuda.synchronize()
        print("profiling {}".format(case.name), flush=True)
        torch.cuda.profiler.start()
        function(*inputs)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
