"""Check the operators on the GPU of this machine: the test suite, then compute-sanitizer over every kernel.

    python tools/check_gpu.py
    python tools/check_gpu.py --only memcheck racecheck --output check

Needs a GPU, the CUDA toolkit (nvcc and compute-sanitizer) and the test requirements: pip install -e '.[test]'.
Ends with one line for each step; the exit code says whether all passed.  Logs go to the folder of --output.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from fcos_core.build import toolkits  # noqa: E402

# Only our kernels are watched, except by initcheck, which must see who writes: torch's fills and copies do.
_OURS = ["--kernel-name", "kernel_substring=fcos_core"]
# name: options of compute-sanitizer, options of tests/layers/exercise.py
SANITIZERS = {
    "memcheck": (_OURS + ["--leak-check", "no"], []),
    "racecheck": (_OURS + ["--racecheck-report", "all"], ["--simple-products"]),
    "synccheck": (_OURS, []),
    "initcheck": ([], ["--simple-products"]),
}


def find_sanitizer():
    """Path of compute-sanitizer, on PATH or in the toolkit; None if there is none."""
    folders = [os.environ.get("PATH", "")] + [os.path.join(found.home, "bin") for found in toolkits.find_toolkits()]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def commands(sanitizer, pytest_arguments):
    """Steps in order: name and command."""
    steps = [
        ("kernels", [sys.executable, "-m", "tests.layers.exercise", "--require-cuda-kernels"]),
        ("tests", [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"] + pytest_arguments),
    ]
    for tool, (options, arguments) in SANITIZERS.items():
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"] + options
        steps.append((tool, command + [sys.executable, "-m", "tests.layers.exercise", "--small"] + arguments))
    return steps


def run_step(name, command, output):
    """Run one step with its output in a log.

    Returns:
        tuple[bool, float, str]: whether it passed, seconds, and the last line that says something.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, os.environ.get("PYTHONPATH", "")]))
    if name in SANITIZERS:
        # one allocation a tensor, or neighbours in torch's pool would hide an access out of bounds
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    log = os.path.join(output, name + ".log")
    start = time.time()
    with open(log, "w") as stream:
        code = subprocess.call(command, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT)
    with open(log, errors="replace") as stream:
        lines = [line.strip() for line in stream if line.strip()]
    return code == 0, time.time() - start, lines[-1] if lines else ""


def main(arguments=None):
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="STEP", help="kernels, tests, {}".format(", ".join(SANITIZERS)))
    parser.add_argument("--output", default=os.path.join("output", "check_gpu"), help="folder of the logs")
    parser.add_argument("--tests", nargs="+", default=[], metavar="PATH", help="for pytest; default: all tests")
    args = parser.parse_args(arguments)

    import torch

    if not torch.cuda.is_available():
        print("check_gpu: expected torch to see a GPU, got none; check the driver with nvidia-smi")
        return 1
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print("check_gpu: expected compute-sanitizer on PATH or in CUDA_HOME/bin; it comes with the CUDA toolkit")
        return 1
    os.makedirs(args.output, exist_ok=True)
    print("{}, torch {}, {}".format(torch.cuda.get_device_name(0), torch.__version__, sanitizer), flush=True)
    failed = 0
    for name, command in commands(sanitizer, args.tests):
        if args.only and name not in args.only:
            continue
        passed, seconds, last = run_step(name, command, args.output)
        failed += not passed
        print("{:<10} {:<6} {:6.0f} s  {}".format(name, "passed" if passed else "FAILED", seconds, last), flush=True)
    print("logs: {}".format(args.output))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
