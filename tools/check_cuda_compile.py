"""Compile the CUDA sources with one or more toolkits for every GPU architecture that each one knows; no GPU needed.

    python tools/check_cuda_compile.py
    python tools/check_cuda_compile.py --cuda-home /opt/cuda-11.8 /opt/cuda-13.0 --arch 86

Any warning is an error.  Ends with a table of seconds; the exit code says whether all compiled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from fcos_core.build import arch as arch_module  # noqa: E402
from fcos_core.build import flags, sources, toolkits  # noqa: E402

OLDEST = 60


def compile_one(cuda_home, source, arch):
    """Compile one source for one architecture with warnings as errors.

    Returns:
        tuple[float, str]: seconds, and what the compiler said if it failed or warned.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [toolkits.nvcc_of(cuda_home)] + flags.nvcc_flags()
        command += ["-std=c++14"] if toolkits.read_version(cuda_home) < (13, 0) else []
        command += ["-arch=sm_{}".format(arch), "-Xcompiler", "-Wall,-Wextra,-fPIC"]
        # a toolkit says of its own oldest architectures that they will be gone
        command += ["-Wno-deprecated-gpu-targets", "-c", source, "-o", os.path.join(folder, "object.o")]
        start = time.time()
        code, output = _run(command)
        seconds = time.time() - start
    return seconds, output.strip() if code or "warning" in output else ""


def _run(command):
    result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.returncode, result.stdout.decode(errors="replace")


def main(arguments=None):
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda-home", nargs="+", help="folders of toolkits; default: the first one found")
    parser.add_argument("--arch", nargs="+", type=int, help="such as 75 86; default: all that the toolkit knows")
    args = parser.parse_args(arguments)
    homes = args.cuda_home or [toolkit.home for toolkit in toolkits.find_toolkits()[:1]]
    if not homes:
        print("check_cuda_compile: there is no nvcc; name the folder of a toolkit by --cuda-home")
        return 1
    csrc = sources.csrc_dir()
    files = [os.path.join(os.path.dirname(csrc), name) for name in sources.cuda_sources(csrc)]
    rows, failures = [], 0
    for home in homes:
        version = toolkits.read_version(home)
        if version is None:
            print("check_cuda_compile: {} has no nvcc that runs".format(home))
            return 1
        for arch in args.arch or [number for number in arch_module.known_to(home) if number >= OLDEST]:
            total = 0.0
            for source in files:
                seconds, message = compile_one(home, source, arch)
                total += seconds
                if message:
                    failures += 1
                    print("CUDA {}.{} sm_{} {}:\n{}".format(*version, arch, source, message), flush=True)
            rows.append("CUDA {}.{}  sm_{:<4} {:6.1f} s".format(*version, arch, total))
            print(rows[-1], flush=True)
    print("{} files, {} compilations, {} with warnings or errors".format(len(files), len(rows) * len(files), failures))
    return 1 if failures or not files else 0


if __name__ == "__main__":
    sys.exit(main())
