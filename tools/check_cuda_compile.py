"""Compile the CUDA sources with one or more toolkits for every GPU architecture that each one knows; no GPU needed.

    python tools/check_cuda_compile.py
    python tools/check_cuda_compile.py --cuda-home /opt/cuda-11.8 /opt/cuda-13.0 --arch 86

Any warning is an error.  Ends with a table of seconds; the exit code says whether all compiled.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from fcos_core.build import flags, sources, toolkits  # noqa: E402

OLDEST = 60
# what nvcc's list of architectures is called; before 11.5 only its help has it
_ARCHITECTURE = re.compile(r"\b(?:compute|sm)_(\d+)\b")


def architectures(cuda_home):
    """Architectures from sm_60 up that the nvcc of a toolkit compiles for, ascending."""
    text = _run([toolkits.nvcc_of(cuda_home), "--help"])[1]
    return sorted({int(number) for number in _ARCHITECTURE.findall(text) if int(number) >= OLDEST})


def compile_one(cuda_home, source, arch):
    """Compile one source for one architecture with warnings as errors.

    Returns:
        tuple[float, str]: seconds, and what the compiler said if it failed or warned.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [toolkits.nvcc_of(cuda_home)] + flags.nvcc_flags()
        command += ["-std=c++14"] if toolkits.nvcc_version(cuda_home) < (13, 0) else []
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
    parser.add_argument("--cuda-home", nargs="+", help="folders of toolkits; default: the one that a build would take")
    parser.add_argument("--arch", nargs="+", type=int, help="such as 75 86; default: all that the toolkit knows")
    args = parser.parse_args(arguments)
    homes = args.cuda_home or [toolkits.find_cuda_home()]
    if homes == [None]:
        print("check_cuda_compile: there is no nvcc; name the folder of a toolkit by --cuda-home")
        return 1
    csrc = sources.csrc_dir()
    files = [os.path.join(os.path.dirname(csrc), name) for name in sources.cuda_sources(csrc)]
    rows, failures = [], 0
    for home in homes:
        version = toolkits.nvcc_version(home)
        if version is None:
            print("check_cuda_compile: {} has no nvcc that runs".format(home))
            return 1
        for arch in args.arch or architectures(home):
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
