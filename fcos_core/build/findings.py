"""What can stand between a user and a training: each situation once, with its cause and what to do about it.

Pure: plain values in, a `Finding` out; nothing is looked up here.  The build, the pre-flight of a run and the doctor
take their sentences from this file; diagnose.py decides which of them describe a machine.
"""

import os
import re
from typing import NamedTuple

# How much it matters, gravest first: no training; a training that is slower or leaves a GPU idle; good to know.
STOPS, LIMITS, NOTE = "stops", "limits", "note"
WEIGHTS = (STOPS, LIMITS, NOTE)

BUILD_COMMAND = "python -m fcos_core.build"
GET_TORCH = "https://pytorch.org/get-started"
GET_CUDA = "https://developer.nvidia.com/cuda-toolkit-archive"


class Finding(NamedTuple):
    """One situation: its weight, a name that stays, what is the case, and what to type or do."""

    weight: str
    name: str
    cause: str
    remedy: str = ""

    def __str__(self):
        return "; ".join(part for part in (self.cause, self.remedy) if part)


def in_order(findings):
    """Sort by weight, gravest first; those of one weight stay in the order in which they were looked for."""
    return sorted(findings, key=lambda finding: WEIGHTS.index(finding.weight))


def command_for(release, index, upgrade=False):
    """Write the command that installs a torch.

    Args:
        release (str): such as "2.7.1"; empty for the newest.
        index (str): name of the build, such as "cu126"; empty for the default one.
        upgrade (bool): a torch is there already.

    Returns:
        str: what to type.
    """
    words = ["python -m pip install"] + ["--force-reinstall"] * upgrade
    words += ["torch=={}".format(release) if release else "torch", "torchvision"]
    return " ".join(words + ["--index-url https://download.pytorch.org/whl/" + index] * bool(index))


# ---- torch


def torch_missing(python, command):
    """There is no torch; `python` is the path of the interpreter."""
    return Finding(STOPS, "torch-missing", "there is no torch in the environment of {}".format(python), command)


def torch_broken(error, command, library_path=False):
    """Importing torch failed.

    Args:
        error (str): "ImportError: ..." or what ended the process.
        command (str): installs torch anew.
        library_path (bool): whether LD_LIBRARY_PATH is set.
    """
    remedy = command
    for pattern, text in _TORCH_ERRORS:
        match = re.search(pattern, error)
        if match:
            remedy = text.format(*match.groups())
            break
    else:
        if library_path and re.search(_CUDA_LIBRARY, error):
            remedy = "unset LD_LIBRARY_PATH (other CUDA libraries are loaded first); if that is not it, " + command
    return Finding(STOPS, "torch-broken", "torch is installed but importing it fails ({})".format(error), remedy)


# most specific first
_TORCH_ERRORS = (
    (r"WinError (?:126|1114|127)", "install https://aka.ms/vs/17/release/vc_redist.x64.exe, then start a new terminal"),
    (r"No module named '?numpy|numpy\.core|_ARRAY_API", 'python -m pip install "numpy<2"'),
    (r"No module named '([\w.]+)'", "python -m pip install {0}"),
    (
        r"(?:GLIBCXX|CXXABI)_[\d.]+",
        "conda install -c conda-forge libstdcxx-ng (an older libstdc++ is loaded first; see LD_LIBRARY_PATH)",
    ),
    (r"GLIBC_[\d.]+", "this system is older than that torch: install an older torch, or use a newer system"),
)
_CUDA_LIBRARY = r"undefined symbol|lib(?:cud|cublas|nccl|nv)\w*\.so"


def torch_too_old(version, command):
    """A torch below 1.7."""
    cause = "torch {} is older than 1.7, the oldest one supported".format(version)
    return Finding(STOPS, "torch-too-old", cause, command)


def torch_cpu_build(version, gpu, command):
    """A CPU build of torch beside an NVIDIA GPU; `gpu` is its name."""
    cause = "torch {} is a CPU build, but this machine has an NVIDIA GPU ({})".format(version, gpu)
    return Finding(STOPS, "torch-cpu-build", cause, command)


# ---- GPU and driver


def driver_missing(count):
    """NVIDIA GPUs on the bus, but no driver."""
    return Finding(
        STOPS,
        "driver-missing",
        "{} NVIDIA GPU(s) are in this machine, but no driver answers".format(count),
        "install the NVIDIA driver of your system (Ubuntu: sudo ubuntu-drivers install), restart, and try nvidia-smi",
    )


def driver_too_old(driver, driver_cuda, torch_cuda, command):
    """The driver serves CUDA up to `driver_cuda`, torch was built with `torch_cuda`, of a later major version."""
    return Finding(
        STOPS,
        "driver-too-old",
        "the NVIDIA driver ({}) serves CUDA up to {}, but this torch was built with CUDA {}".format(
            driver, driver_cuda, torch_cuda
        ),
        "update the driver, or install a torch for it: " + command,
    )


def gpu_hidden(value):
    """CUDA_VISIBLE_DEVICES hides all GPUs."""
    cause = "CUDA_VISIBLE_DEVICES is {!r}, which hides every GPU of this machine".format(value)
    return Finding(LIMITS, "gpu-hidden", cause, "unset CUDA_VISIBLE_DEVICES")


def gpu_unusable(gpu, error):
    """The driver knows a GPU that a torch with CUDA cannot use; `error` is what torch says, maybe empty."""
    return Finding(
        STOPS,
        "gpu-unusable",
        "the driver lists a GPU ({}) that torch cannot use{}".format(gpu, " ({})".format(error) if error else ""),
        "restart the machine if the driver was updated; in a container, start it with --gpus all",
    )


def torch_unanswering(seconds):
    """The process that asks torch about itself and its GPUs did not end."""
    return Finding(
        STOPS,
        "torch-unanswering",
        "torch did not answer within {:.0f} s when asked for its GPUs".format(seconds),
        "see whether nvidia-smi answers; if it does not, restart the machine",
    )


def gpu_without_code(build, gpu, remedy):
    """No machine code and no PTX of this torch runs on the GPU.

    Args:
        build (str): torch with its CUDA and architectures.
        gpu (str): such as "sm_86".
        remedy (str): which torch to install.
    """
    return Finding(STOPS, "gpu-without-code", "{} has no code for this GPU ({})".format(build, gpu), remedy)


def gpu_ptx_only(build, gpu, remedy):
    """Only PTX runs on the GPU; arguments as for `gpu_without_code`."""
    return Finding(
        LIMITS,
        "gpu-ptx-only",
        "{} has only PTX for this GPU ({}): the first run compiles it for minutes without a sign of life, later runs "
        "take it from the driver's cache".format(build, gpu),
        remedy,
    )


# ---- CUDA toolkit


def no_toolkit(torch_cuda, found):
    """No toolkit of torch's major version.

    Args:
        torch_cuda (str): such as "11.3".
        found (list): those of other versions, as they print.
    """
    name = "toolkit-mismatch" if found else "toolkit-missing"
    cause = "no CUDA {} toolkit for this torch, which was built with CUDA {}; found: {}".format(
        torch_cuda.split(".")[0], torch_cuda, "; ".join(map(str, found)) or "none"
    )
    return Finding(LIMITS, name, cause, get_toolkit(torch_cuda))


def get_toolkit(cuda):
    """Say how to get the compiler of a CUDA version (str)."""
    place = "if it lies in an unusual place, name its folder by CUDA_HOME"
    if int(cuda.split(".")[0]) >= 13:
        parts = ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
        pinned = " ".join('"nvidia-{}=={}.*"'.format(part, cuda) for part in parts)
        return "install CUDA {}: on Linux python -m pip install {}; elsewhere from {}; {}".format(
            cuda, pinned, GET_CUDA, place
        )
    return (
        "install CUDA {0} from {1} (its .run file with --silent --toolkit --toolkitpath=FOLDER needs no "
        "administrator) and, {2}".format(cuda, GET_CUDA, place)
    )


def toolkit_minor(toolkit, torch_cuda):
    """A toolkit of another minor version than torch's, which is fine."""
    return Finding(
        NOTE,
        "toolkit-minor-version",
        "{} compiles for a torch built with CUDA {}: another minor version is fine, and so is torch's warning of a "
        "minor version mismatch".format(toolkit, torch_cuda),
    )


def stray_characters(variable, value, cleaned):
    """A path in the environment with what a shell left on it."""
    return Finding(
        NOTE,
        "stray-characters",
        "{} is {!r}, with stray characters; it is read as {!r} here, but torch and others stumble over it".format(
            variable, value, cleaned
        ),
        "export {0}={1} (Windows: set {0}={1})".format(variable, cleaned) if cleaned else "unset " + variable,
    )


def variable_without_nvcc(variable, value):
    """CUDA_HOME or CUDA_PATH names a folder without a compiler."""
    cause = "{} names {}, where there is no nvcc".format(variable, value)
    return Finding(NOTE, "no-nvcc-there", cause, "unset {}, or name the folder of a toolkit".format(variable))


# ---- host compiler


def no_compiler():
    """No C++ compiler at all."""
    return Finding(
        STOPS,
        "compiler-missing",
        "no C++ compiler found",
        "install one (Debian, Ubuntu: sudo apt-get install g++; Fedora: sudo dnf install gcc-c++; conda: conda install "
        "-c conda-forge cxx-compiler; macOS: xcode-select --install; Windows: Visual Studio Build Tools), or name it "
        "by the environment variable CXX",
    )


def compiler_too_old(compiler, torch_version, needed):
    """The host compiler does not know the C++ of torch's headers; `needed` is such as "gcc 9"."""
    return Finding(
        STOPS,
        "compiler-too-old",
        "{} is too old for the headers of torch {}, which need {} or newer".format(compiler, torch_version, needed),
        "install a newer one and name it by CXX (CXX=g++-{0}), or conda install -c conda-forge "
        "cxx-compiler".format(needed.split()[-1]),
    )


def host_too_new(compiler, cuda, limit):
    """nvcc refuses the host compiler, and no other one was found that it takes.

    Args:
        compiler (str): such as "gcc 13.2".
        cuda (str): version of the toolkit.
        limit (str): the newest one that it takes, such as "gcc 11".
    """
    family, number = limit.split()
    remedy = (
        "install {0} (Debian, Ubuntu: sudo apt-get install {1}-{2}; conda: conda install -c conda-forge "
        "gxx_linux-64={2}); {1}-{2} on PATH is found by itself".format(
            limit, "g++" if family == "gcc" else "clang++", number
        )
    )
    if family == "MSVC":
        remedy = (
            "add an older toolset ({0} or before) in the Visual Studio Installer and build from the prompt that "
            "vcvarsall.bat x64 -vcvars_ver=14.{1} opens, or install a newer CUDA {2}.x".format(
                limit, int(number[2:]), cuda.split(".")[0]
            )
        )
    cause = "{} is newer than the compilers that CUDA {} takes (up to {})".format(compiler, cuda, limit)
    return Finding(LIMITS, "compiler-too-new", cause, remedy)


def host_replaced(compiler, cuda, limit, taken):
    """nvcc refuses the default host compiler; `taken` is the command of the one that it is given instead."""
    cause = "{} is newer than the compilers that CUDA {} takes (up to {}), so the CUDA kernels are compiled with {}"
    return Finding(NOTE, "compiler-replaced", cause.format(compiler, cuda, limit, taken))


def no_host_compiler(cuda):
    """nvcc finds no host compiler."""
    remedy = no_compiler().remedy
    return Finding(LIMITS, "compiler-missing", "the nvcc of CUDA {} finds no host compiler".format(cuda), remedy)


# ---- ninja and torch's own build code

NINJA_EDIT = (
    "torch/utils/cpp_extension.py was edited from 'ninja -v' to 'ninja --version' (advice that is often given), so "
    "that ninja prints its version and compiles nothing"
)


def ninja_edited(torch_version):
    """The edit that spreads on the web."""
    remedy = "python -m pip install --force-reinstall --no-deps torch=={}".format(torch_version)
    return Finding(LIMITS, "ninja-edited", NINJA_EDIT, remedy)


def ninja_broken(path, output):
    """A ninja that does not run."""
    said = output or "it prints nothing"
    cause = "the ninja at {} does not run ({}); the build goes on without it".format(path, said)
    return Finding(NOTE, "ninja-broken", cause, "python -m pip install --force-reinstall ninja")


def ninja_missing():
    """No ninja."""
    cause = "there is no ninja, so one file is compiled after the other"
    return Finding(NOTE, "ninja-missing", cause, "python -m pip install ninja")


def objects_missing(names, with_ninja):
    """The compiler was said to have run, but left no object files.

    Args:
        names (list[str]): paths of the files.
        with_ninja (bool): whether ninja ran the compilers.
    """
    longest = max(map(len, names))
    folder = os.path.dirname(os.path.commonprefix([os.path.join(os.path.dirname(name), "") for name in names]))
    short = ", ".join(os.path.relpath(name, folder) for name in names)
    causes = ["the compiler failed: look for its error above"]
    if with_ninja:
        causes.append("{}: reinstall torch, or set FCOS_CORE_NINJA=0".format(NINJA_EDIT))
    causes.append("a path is too long: Windows allows 260 characters, the longest here has {}".format(longest))
    return Finding(
        STOPS,
        "objects-missing",
        "expected every source to leave an object file, got none for {} in {}".format(short, folder),
        "likely causes: " + "; ".join("({}) {}".format(i + 1, cause) for i, cause in enumerate(causes)),
    )


def setuptools_too_new(torch_version):
    """torch 1.8 to 2.1 import pkg_resources, which newer setuptools no longer have."""
    cause = "the build code of torch {} needs pkg_resources, which this setuptools no longer has".format(torch_version)
    return Finding(STOPS, "setuptools-too-new", cause, 'python -m pip install "setuptools<81"')


def setuptools_missing():
    """No setuptools to build with."""
    cause = "there is no setuptools to build with"
    return Finding(STOPS, "setuptools-missing", cause, 'python -m pip install "setuptools<81"')


def python_headers_missing(folder):
    """No Python.h."""
    return Finding(
        STOPS,
        "python-headers-missing",
        "the headers of this Python (Python.h) are not in {}".format(folder),
        "install the headers of this Python (Debian, Ubuntu: sudo apt-get install python3-dev; Fedora: sudo dnf "
        "install python3-devel)",
    )


# ---- packages


def package_missing(name, pip_name, needed_for, stops):
    """A package that is not installed.

    Args:
        name (str): what is imported.
        pip_name (str): what is installed.
        needed_for (str): such as "testing on COCO".
        stops (bool): whether nothing works without it.
    """
    cause = "{} is not installed, which is needed for {}".format(name, needed_for)
    return Finding(STOPS if stops else LIMITS, "package-missing", cause, "python -m pip install " + pip_name)


def package_broken(name, pip_name, error, needed_for, stops):
    """A package whose import fails; `error` is "ImportError: ..."; the others as for `package_missing`."""
    remedy = "python -m pip install --force-reinstall --no-cache-dir " + pip_name
    for pattern, text in _PACKAGE_ERRORS:
        if re.search(pattern, error):
            remedy = text.format(pip_name)
            break
    cause = "importing {} fails ({}), which is needed for {}".format(name, error, needed_for)
    return Finding(STOPS if stops else LIMITS, "package-broken", cause, remedy)


_PACKAGE_ERRORS = (
    (r"lib(?:GL|EGL|gthread|SM|Xext|Xrender)\b", "python -m pip uninstall -y opencv-python && python -m pip install "
     "opencv-python-headless"),
    (r"_ARRAY_API|NumPy 1\.x cannot be run", 'python -m pip install "numpy<2", or a newer {0}'),
    (r"numpy\.(?:dtype|ndarray) size changed|binary incompatib",
     "python -m pip install --force-reinstall --no-cache-dir --no-deps {0}"),
    (r"module 'numpy' has no attribute", "python -m pip install --upgrade {0}"),
)  # fmt: skip


def numpy_too_new(numpy, torch_version):
    """torch below 2.3 was compiled with NumPy 1 and cannot exchange arrays with NumPy 2."""
    return Finding(
        STOPS,
        "numpy-too-new",
        "torch {} was compiled for NumPy 1 and does not work with NumPy {} (Numpy is not available; _ARRAY_API not "
        "found)".format(torch_version, numpy),
        'python -m pip install "numpy<2"',
    )


# ---- the library of operators

_SLOW = (
    "slower operators made of torch's own serve instead (deformable convolution, RoI pooling and the focal loss take 2 "
    "to 13 times as long, NMS of 1000 boxes 17 ms; the results are the same)"
)


def no_library(reason, can_build):
    """No library that fits; one will be built, or cannot be.

    Args:
        reason (str): why the installed one does not fit, see stamp.check; "missing" if there is none.
        can_build (bool): whether nothing stands in the way of building one.
    """
    cause = "there is no library of operators yet"
    if reason != "missing":
        cause = "the library of operators does not fit here: it is {}".format(reason)
    if not can_build:
        cause += ", and none can be built; {}, unless FCOS_CORE_FALLBACK is 0".format(_SLOW)
        return Finding(STOPS, "library-unbuildable", cause, "see the other findings")
    return Finding(NOTE, "library-unbuilt", cause, "it is built at first use, or now: " + BUILD_COMMAND)


def fallback(error):
    """The operators could not be built, so those of tensor operations serve; the error names cause and remedy."""
    cause = "the operators could not be compiled, {}: {}".format(_SLOW, error)
    return not_compiled(cause, "FCOS_CORE_FALLBACK=0 makes this an error")


def not_compiled(cause, remedy=""):
    """The operators that serve are not the compiled ones, as a process that loaded them says."""
    return Finding(LIMITS, "operators-not-compiled", cause, remedy)


def fallback_asked_for():
    """FCOS_CORE_FALLBACK=1: nothing is compiled."""
    cause = "FCOS_CORE_FALLBACK is 1, so nothing is compiled and {}".format(_SLOW)
    return Finding(LIMITS, "fallback-asked-for", cause, "unset FCOS_CORE_FALLBACK for the compiled operators")


def library_refused(error):
    """Asking for the library ends in an error, such as that FORCE_CUDA asks for what cannot be; it names the remedy."""
    return Finding(STOPS, "library-refused", "there is no library of operators: {}".format(error))


def no_sources(reason):
    """A library that does not fit in an installation without sources."""
    what = "missing" if reason == "missing" else reason
    return Finding(
        STOPS,
        "sources-missing",
        "the library of operators is {}, and this installation has no sources to build another".format(what),
        "install fcos_core again",
    )


def library_without_cuda(why):
    """The library that fits has no CUDA kernels though torch sees a GPU; `why` says what prevents building them."""
    return Finding(
        LIMITS,
        "library-without-cuda",
        "the library of operators has no CUDA kernels, so on the GPU slower compositions of torch's operators "
        "serve ({})".format(why),
        "then " + BUILD_COMMAND,
    )


def archs_leave_out(asked, gpu):
    """TORCH_CUDA_ARCH_LIST does not serve the GPU of this machine."""
    return Finding(
        LIMITS,
        "archs-leave-out-gpu",
        "TORCH_CUDA_ARCH_LIST is {!r}, which does not serve the GPU of this machine (sm_{})".format(asked, gpu),
        "unset TORCH_CUDA_ARCH_LIST, or add {}.{}".format(gpu // 10, gpu % 10),
    )


def cuda_forbidden():
    """FORCE_CUDA=0 beside a GPU."""
    return Finding(LIMITS, "cuda-forbidden", "FORCE_CUDA is 0, so no CUDA kernels are compiled", "unset FORCE_CUDA")


def old_module(paths):
    """A compiled `_C` of the predecessors hides ours."""
    return Finding(
        LIMITS,
        "old-module",
        "a compiled module of another code base hides fcos_core._C: {}".format(", ".join(paths)),
        "delete it",
    )


def other_copy(here, others):
    """Another fcos_core on the search path."""
    return Finding(
        NOTE,
        "other-copy",
        "this is the fcos_core in {}; there is another one in {}".format(here, ", ".join(others)),
        "if that is not meant: python -m pip uninstall fcos_core, in the folder of neither",
    )


def self_test_failed(op, device, error):
    """An operator that fails in the self-test."""
    return Finding(
        STOPS,
        "self-test-failed",
        "{} failed on {}: {}".format(op, device, error),
        "build the operators anew: {} --force".format(BUILD_COMMAND),
    )
