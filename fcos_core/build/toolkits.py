"""Which CUDA toolkits there are, which one compiles the kernels, and whether they are compiled at all.

Importable without torch; what torch says comes in as plain values.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from typing import NamedTuple, Tuple

from fcos_core.build import findings
from fcos_core.build.errors import BuildError


class Toolkit(NamedTuple):
    """One CUDA toolkit: its folder, its version (major, minor), and where it was found."""

    home: str
    version: Tuple[int, int]
    origin: str

    def __str__(self):
        return "CUDA {}.{} in {} ({})".format(self.version[0], self.version[1], self.home, self.origin)


# ---- where they lie


def candidate_folders(environ, platform=sys.platform, prefix=sys.prefix, site=None, listing=glob.glob):
    """List the folders where a toolkit may lie, the most deliberate first.

    Args:
        environ (dict): environment variables.
        platform (str): `sys.platform`.
        prefix (str): the Python environment, which conda also installs toolkits into.
        site (str or None): its site-packages; pip's nvidia packages lie below.
        listing (callable): `glob.glob`.

    Returns:
        list[tuple[str, str]]: folder and origin; folders need not exist.
    """
    windows = platform == "win32"
    found = [(clean(environ.get(name)), name) for name in ("CUDA_HOME", "CUDA_PATH")]
    # the installer of Windows leaves one of these for each version
    versions = sorted((name for name in environ if re.match(r"CUDA_PATH_V\d+_\d+$", name)), key=_numbers, reverse=True)
    found += [(clean(environ[name]), name) for name in versions]
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc:
        found.append((_home_of(nvcc), "PATH"))
    patterns = ["/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda", "/opt/cuda-*", "/usr/lib/cuda"]
    if windows:
        programs = clean(environ.get("ProgramFiles")) or r"C:\Program Files"
        patterns = [programs + r"\NVIDIA GPU Computing Toolkit\CUDA\v*"]
    for pattern in patterns:
        matches = listing(pattern) if "*" in pattern else [pattern]
        found += [(folder, "usual place") for folder in sorted(matches, key=_numbers, reverse=True)]
    for folder in (clean(environ.get("CONDA_PREFIX")), prefix):
        if folder:
            found.append((os.path.join(folder, "Library") if windows else folder, "conda"))
    site = sysconfig.get_paths()["platlib"] if site is None else site
    found += [(folder, "pip") for folder in sorted(listing(os.path.join(site, "nvidia", "cu1[3-9]")), reverse=True)]
    found.append((os.path.join(site, "nvidia", "cuda_nvcc"), "pip"))
    return [(folder, origin) for folder, origin in found if folder]


def clean(value):
    """Return a path from an environment variable without what people's shells left on it.

    Quotes, blanks, and the separators of a list: "/usr/local/cuda-11.3:" is what `CUDA_HOME=$CUDA_HOME:...` makes of
    an empty variable, and a trailing ";" its kin on Windows.
    """
    return os.path.expanduser((value or "").strip(" \t'\";:"))


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def nvcc_of(home):
    """Return the path of nvcc in a toolkit's folder."""
    return os.path.join(home, "bin", "nvcc.exe" if sys.platform == "win32" else "nvcc")


def _home_of(nvcc):
    """Folder of the toolkit of an nvcc on PATH, which may be a script that calls the real one: nvcc says where."""
    top = re.search(r"^#\$ TOP=(.*)$", run([nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]), re.MULTILINE)
    return top.group(1).strip() if top else os.path.dirname(os.path.dirname(os.path.realpath(nvcc)))


def read_version(home):
    """Return (major, minor) of the toolkit in a folder, or None.

    Asks its nvcc; where that does not run (a folder of another system), reads its version.json.
    """
    found = re.search(r"release (\d+)\.(\d+)", run([nvcc_of(home), "--version"]))
    if found:
        return int(found.group(1)), int(found.group(2))
    try:
        with open(os.path.join(home, "version.json")) as stream:
            content = json.load(stream)
        found = re.match(r"(\d+)\.(\d+)", (content.get("cuda_nvcc") or content["cuda"])["version"])
        return int(found.group(1)), int(found.group(2))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def find_toolkits(environ=os.environ):
    """List the toolkits of this machine that have an nvcc, the most deliberate first, each once.

    Returns:
        list[Toolkit]: may be empty.
    """
    toolkits, seen = [], set()
    for folder, origin in candidate_folders(environ):
        real = os.path.realpath(folder)
        if real in seen or not os.path.isfile(nvcc_of(folder)):
            continue
        seen.add(real)
        version = read_version(folder)
        if version is not None:
            toolkits.append(Toolkit(os.path.abspath(folder), version, origin))
    return toolkits


def run(command):
    """Return what a command prints, stdout and stderr together; empty if it cannot be run."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.decode(errors="replace")


# ---- which one


def choose(toolkits, torch_cuda):
    """Take the toolkit whose version is nearest to that of torch, within the same major version.

    Libraries of one CUDA major version work together, those of two do not.  Among equally near ones the first, so
    CUDA_HOME wins over what lies about on the disk.

    Args:
        toolkits (list[Toolkit]): see `find_toolkits`.
        torch_cuda (str): CUDA version of torch, such as "11.3".

    Returns:
        tuple[Toolkit or None, str]: the choice and, in one sentence, why.
    """
    wanted = tuple(int(part) for part in torch_cuda.split(".")[:2])
    fitting = [toolkit for toolkit in toolkits if toolkit.version[0] == wanted[0]]
    if not fitting:
        return None, str(findings.no_toolkit(torch_cuda, toolkits))
    best = min(fitting, key=lambda toolkit: abs(toolkit.version[1] - wanted[1]))
    why = "{}: the version of this torch".format(best)
    if best.version != wanted:
        why = findings.toolkit_minor(best, torch_cuda).cause
    first = toolkits[0]
    if best is not first and first.origin in ("CUDA_HOME", "CUDA_PATH"):
        why += "; {} names CUDA {}.{}, which does not fit as well".format(first.origin, *first.version)
    return best, why


def wants_cuda(environ, torch_cuda, gpu_visible, toolkits):
    """Decide whether the CUDA kernels are compiled, and by which toolkit.

    Args:
        environ (dict): environment variables; FORCE_CUDA=1 compiles them on a machine without a GPU, FORCE_CUDA=0
            leaves them out.
        torch_cuda (str or None): CUDA version of torch; None for a CPU build.
        gpu_visible (bool): whether torch sees a GPU.
        toolkits (callable): returns the toolkits; called only where the answer depends on it.

    Returns:
        tuple[Toolkit or None, str]: the toolkit, None for a library without CUDA kernels; and why.

    Raises:
        BuildError: if FORCE_CUDA has another value, or asks for what cannot be done.
    """
    asked = environ.get("FORCE_CUDA", "")
    if asked not in ("", "0", "1"):
        raise BuildError("wants_cuda: expected FORCE_CUDA to be 0 or 1, got {!r}; unset it".format(asked))
    if asked == "0":
        return None, "FORCE_CUDA is 0"
    if not torch_cuda:
        if asked == "1":
            raise BuildError("wants_cuda: FORCE_CUDA is 1 but this torch is a CPU build; install one with CUDA")
        return None, "this torch is a CPU build"
    if not gpu_visible and asked != "1":
        return None, "torch sees no GPU (FORCE_CUDA=1 compiles the CUDA kernels all the same)"
    toolkit, why = choose(toolkits(), torch_cuda)
    if toolkit is None and asked == "1":
        raise BuildError("wants_cuda: FORCE_CUDA is 1 but there is " + why)
    return toolkit, why


def wanted_here(torch):
    """`wants_cuda` for this process.

    Args:
        torch (module): the imported torch.
    """
    gpu_visible = bool(torch.version.cuda) and torch.cuda.is_available()
    return wants_cuda(os.environ, torch.version.cuda, gpu_visible, find_toolkits)
