"""Which CUDA toolkit compiles the kernels, and whether they are compiled at all.

Importable without torch; what torch says comes in as plain values.
"""

import os
import re
import shutil
import subprocess
import sys

from fcos_core.build.errors import BuildError


def wants_cuda(environ, torch_cuda, gpu_visible, nvcc_version):
    """Decide whether the CUDA kernels are compiled.

    Args:
        environ (dict): environment variables; FORCE_CUDA=1 compiles them on a machine without a GPU, FORCE_CUDA=0
            leaves them out.
        torch_cuda (str or None): CUDA version of torch; None for a CPU build.
        gpu_visible (bool): whether torch sees a GPU.
        nvcc_version (tuple[int, int] or None): version of the toolkit, None if there is none.

    Returns:
        bool: the decision.

    Raises:
        BuildError: if FORCE_CUDA has another value, or asks for what cannot be done.
    """
    asked = environ.get("FORCE_CUDA", "")
    if asked not in ("", "0", "1"):
        raise BuildError("wants_cuda: expected FORCE_CUDA to be 0 or 1, got {!r}; unset it".format(asked))
    if asked == "0":
        return False
    if asked == "1":
        if not torch_cuda:
            raise BuildError("wants_cuda: FORCE_CUDA is 1 but this torch is a CPU build; install one with CUDA")
        if nvcc_version is None:
            raise BuildError(
                "wants_cuda: FORCE_CUDA is 1 but there is no nvcc; install the CUDA toolkit {} and name its folder "
                "by CUDA_HOME".format(torch_cuda)
            )
        return True
    return bool(torch_cuda) and gpu_visible and fits(nvcc_version, torch_cuda)


def wanted_here(torch):
    """`wants_cuda` for this process.

    Args:
        torch (module): the imported torch.

    Returns:
        bool: the decision.
    """
    gpu_visible = bool(torch.version.cuda) and torch.cuda.is_available()
    # nvcc is asked only where the answer matters
    version = nvcc_version(find_cuda_home()) if gpu_visible or os.environ.get("FORCE_CUDA") == "1" else None
    return wants_cuda(os.environ, torch.version.cuda, gpu_visible, version)


def fits(nvcc_version, torch_cuda):
    """Whether kernels of this nvcc link with a torch of this CUDA version: the major versions must agree."""
    return nvcc_version is not None and nvcc_version[0] == int(torch_cuda.split(".")[0])


def find_cuda_home(environ=os.environ):
    """Find the folder of a CUDA toolkit.

    Args:
        environ (dict): environment variables; CUDA_HOME and CUDA_PATH come first, then nvcc along PATH, then the
            usual place.

    Returns:
        str or None: a folder with bin/nvcc in it.
    """
    candidates = [environ.get("CUDA_HOME"), environ.get("CUDA_PATH")]
    on_path = shutil.which("nvcc", path=environ.get("PATH"))
    if on_path:
        candidates.append(_home_of(on_path))
    candidates.append("/usr/local/cuda")
    for folder in candidates:
        if folder and os.path.isfile(nvcc_of(folder)):
            return os.path.abspath(folder)
    return None


def nvcc_of(cuda_home):
    """Path of nvcc in a toolkit's folder."""
    return os.path.join(cuda_home, "bin", "nvcc.exe" if sys.platform == "win32" else "nvcc")


def _home_of(nvcc):
    """Folder of the toolkit of an nvcc on PATH, which may be a script that calls the real one: nvcc says where."""
    output = _run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull])
    top = re.search(r"^#\$ TOP=(.*)$", output, re.MULTILINE)
    return top.group(1).strip() if top else os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


def nvcc_version(cuda_home):
    """Return (major, minor) of a toolkit, or None if its nvcc does not say."""
    if cuda_home is None:
        return None
    found = re.search(r"release (\d+)\.(\d+)", _run([nvcc_of(cuda_home), "--version"]))
    return (int(found.group(1)), int(found.group(2))) if found else None


def _run(command):
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.decode(errors="replace")
