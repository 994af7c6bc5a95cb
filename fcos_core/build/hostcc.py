"""The host compiler of nvcc: which one it calls, which ones its toolkit takes, and another one where it takes not that.

nvcc stops at a host compiler newer than it knows ("unsupported GNU version! gcc versions later than 11 are not
supported").  Each toolkit says its limits in a header of its own, which is read here; the table below stands in where
the header is not at hand.  Older compilers are no trouble: the kernels are C++14 and see no torch header.
"""

import os
import re
import shutil
from typing import NamedTuple, Optional, Tuple

from fcos_core.build import findings, toolkits
from fcos_core.build.errors import BuildError


class Compiler(NamedTuple):
    """A compiler: "gcc", "clang" or "MSVC", and its version; that of MSVC is (1929,), as _MSC_VER has it."""

    family: str
    version: Tuple[int, ...]

    def __str__(self):
        return "{} {}".format(self.family, ".".join(map(str, self.version)))


class Limits(NamedTuple):
    """The newest major version of each family that a toolkit takes; None where it is not known."""

    gcc: Optional[int] = None
    clang: Optional[int] = None
    msvc: Optional[int] = None

    def of(self, family):
        """Return the limit of a family, None if it is not known."""
        return {"gcc": self.gcc, "clang": self.clang, "MSVC": self.msvc}[family]


# From which CUDA version on which limits hold, newest first.  Sources: crt/host_config.h of 11.2, 11.8, 12.4 and 13.0;
# the compiler tables of NVIDIA's installation guides for the others.  MSVC: 1929 is Visual Studio 2019, 1949 is 2022.
TABLE = (
    ((13, 1), Limits(15, 21, 1949)),
    ((13, 0), Limits(15, 20, 1949)),
    ((12, 8), Limits(14, 19, 1949)),
    ((12, 6), Limits(13, 18, 1949)),
    ((12, 4), Limits(13, 17, 1949)),
    ((12, 3), Limits(12, 16, 1939)),
    ((12, 1), Limits(12, 15, 1939)),
    ((12, 0), Limits(12, 14, 1939)),
    ((11, 8), Limits(11, 14, 1939)),
    ((11, 6), Limits(11, 13, 1939)),
    ((11, 4), Limits(11, 12, 1929)),
    ((11, 2), Limits(10, 11, 1929)),
    ((11, 1), Limits(10, 10, 1929)),
    ((11, 0), Limits(9, 9, 1929)),
    ((10, 1), Limits(8, 8, 1929)),
)
NEWEST_IN_TABLE = (13, 2)
# below it there is no C++17, which torch asks nvcc for from 2.0 on
OLDEST_GCC = 7


# ---- what a toolkit takes


def limits(home, version):
    """Return the limits of a toolkit: those in its header, else those in the table.

    Args:
        home (str): its folder.
        version (tuple[int, int]): its version.

    Returns:
        Limits: all None for a toolkit newer than the table whose header cannot be read.
    """
    for folder in ("include", os.path.join("targets", "x86_64-linux", "include")):
        try:
            with open(os.path.join(home, folder, "crt", "host_config.h"), errors="replace") as stream:
                return limits_in_header(stream.read())
        except OSError:
            continue
    return limits_in_table(version)


def limits_in_header(text):
    """Read the limits from the text of crt/host_config.h."""
    gcc = re.search(r"^#if __GNUC__ > (\d+)", text, re.MULTILINE)
    # the line for plain clang comes last, after those for vendors' own
    clang = re.findall(r"^#if \(__clang_major__ >= (\d+)\)", text, re.MULTILINE)
    msvc = re.search(r"^#if _MSC_VER < \d+ \|\| _MSC_VER >= (\d+)", text, re.MULTILINE)
    return Limits(
        int(gcc.group(1)) if gcc else None,
        int(clang[-1]) - 1 if clang else None,
        int(msvc.group(1)) - 1 if msvc else None,
    )


def limits_in_table(version):
    """Look the limits of a CUDA version up; all None if it is not in the table."""
    if version <= NEWEST_IN_TABLE:
        for first, found in TABLE:
            if version >= first:
                return found
    return Limits()


# ---- what nvcc calls


def of_nvcc(home, ccbin=None):
    """Return the host compiler that an nvcc calls, as nvcc itself sees it.

    Args:
        home (str): folder of the toolkit.
        ccbin (str or None): a compiler to give it, instead of the one that it finds by PATH and its own settings.

    Returns:
        Compiler or None: None if it finds none.
    """
    command = [toolkits.nvcc_of(home), "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
    return of_dryrun(toolkits.run(command + (["-ccbin", ccbin] if ccbin else [])))


def of_dryrun(text):
    """Read the host compiler from what `nvcc --dryrun` prints."""
    for flag, family in (("gnu", "gcc"), ("clang", "clang"), ("microsoft", "MSVC")):
        found = re.search(r"--{}_version=(\d+)".format(flag), text)
        if found:
            number = int(found.group(1))
            # 120200 is 12.2.0
            return Compiler(family, (number,) if family == "MSVC" else (number // 10000, number // 100 % 100))
    return None


def takes(found, compiler):
    """Tell whether a toolkit of these limits takes a compiler; what is not known is taken to work."""
    limit = found.of(compiler.family)
    return limit is None or compiler.version[0] <= limit


# ---- the decision


class Choice(NamedTuple):
    """Flags that give nvcc a compiler it takes, and the finding that says why they are there or that there is none."""

    works: bool
    flags: Tuple[str, ...] = ()
    finding: Optional[findings.Finding] = None


def choose(cuda, found, default, candidates):
    """Decide which host compiler nvcc is given.

    Args:
        cuda (str): version of the toolkit, for the message.
        found (Limits): what it takes.
        default (Compiler or None): what it would call.
        candidates (callable): returns (command, Compiler) pairs of other compilers, best first; called only where the
            default does not do.

    Returns:
        Choice
    """
    if default is not None and takes(found, default):
        return Choice(True)
    for command, compiler in candidates():
        if takes(found, compiler):
            finding = None
            if default is not None:
                limit = "{} {}".format(default.family, found.of(default.family))
                finding = findings.host_replaced(str(default), cuda, limit, command)
            return Choice(True, ("-ccbin", command), finding)
    if default is None:
        return Choice(False, (), findings.no_host_compiler(cuda))
    limit = "{} {}".format(default.family, found.of(default.family))
    return Choice(False, (), findings.host_too_new(str(default), cuda, limit))


def choose_here(toolkit, environ=os.environ, windows=os.name == "nt"):
    """`choose` for a toolkit of this machine.

    A compiler that the user gave to nvcc, or the order to take any, is not judged: NVCC_CCBIN, and `-ccbin` or
    `-allow-unsupported-compiler` in NVCC_PREPEND_FLAGS or NVCC_APPEND_FLAGS.

    Args:
        toolkit (toolkits.Toolkit): the one that compiles.
        environ (dict): environment variables.
        windows (bool): whether this is Windows.

    Returns:
        Choice
    """
    if environ.get("NVCC_CCBIN"):
        # only the newest nvcc read it themselves
        return Choice(True, ("-ccbin", environ["NVCC_CCBIN"]))
    said = " ".join(environ.get("NVCC_{}_FLAGS".format(which), "") for which in ("PREPEND", "APPEND"))
    if "-ccbin" in said or "compiler-bindir" in said or "allow-unsupported" in said:
        return Choice(True)
    found = limits(toolkit.home, toolkit.version)
    # torch's build code gives nvcc the compiler that CC names
    default = of_nvcc(toolkit.home, shutil.which(environ["CC"]) if environ.get("CC") else None)
    if default is None and windows:
        # setuptools finds cl where it is not on PATH, and puts it there for nvcc
        return Choice(True)
    cuda = "{}.{}".format(*toolkit.version)
    return choose(cuda, found, default, lambda: _other_compilers(toolkit.home, found, environ))


def _other_compilers(home, found, environ):
    """Yield compilers beside the default: g++-N of Debian and its kin, of Red Hat's toolsets, of conda."""
    newest = found.gcc or TABLE[0][1].gcc
    for number in range(newest, OLDEST_GCC - 1, -1):
        toolset = "/opt/rh/gcc-toolset-{}/root/usr/bin/g++".format(number)
        command = shutil.which("g++-{}".format(number), path=environ.get("PATH")) or shutil.which(toolset)
        compiler = of_nvcc(home, command) if command else None
        if compiler is not None:
            yield command, compiler
    for name in ("x86_64-conda-linux-gnu-g++", "aarch64-conda-linux-gnu-g++", "c++"):
        command = shutil.which(name, path=environ.get("PATH"))
        compiler = of_nvcc(home, command) if command else None
        if compiler is not None:
            yield command, compiler


# ---- torch's headers


def needed_by_torch(torch_version, family):
    """Return the oldest major version of a compiler family that torch's headers accept; 0 where none is stated."""
    version = tuple(int(part) for part in re.findall(r"\d+", torch_version)[:2])
    for first, gcc, clang, msvc in _OLDEST_FOR_TORCH:
        if version >= first:
            return {"gcc": gcc, "clang": clang, "MSVC": msvc}.get(family, 0)
    return 0


# From which torch on: C++20 (gcc 10 has it under that name), gcc 9 or an error, C++17, C++14.
_OLDEST_FOR_TORCH = (
    ((2, 12), 10, 10, 1929),
    ((2, 3), 9, 9, 1920),
    ((2, 0), 7, 5, 1914),
    ((1, 0), 5, 4, 1910),
)


def of_description(description, family):
    """Read a host compiler from the first line that it says about itself; None if that has no version.

    Args:
        description (str): such as "g++ (Debian 12.2.0-14) 12.2.0" or "Ubuntu clang version 14.0.0".
        family (str): as compiler.kind says: "gcc", "clang", "apple-clang" or "msvc".
    """
    if family == "msvc":
        found = re.search(r"\b19\.(\d\d)\.", description)
        return Compiler("MSVC", (1900 + int(found.group(1)),)) if found else None
    numbers = re.findall(r"\b(\d+)\.(\d+)(?:\.\d+)?\b", description)
    if not numbers:
        return None
    # gcc's own version is the last one on the line, that of clang follows its name
    chosen = re.search(r"version (\d+)\.(\d+)", description) if "clang" in family else None
    pair = chosen.groups() if chosen else numbers[-1]
    return Compiler("clang" if "clang" in family else "gcc", (int(pair[0]), int(pair[1])))


def refuse_too_old(description, family, torch_version):
    """Raise BuildError if a host compiler is too old for torch's headers."""
    problem = too_old(description, family, torch_version)
    if problem is not None:
        raise BuildError("compile_library: {}".format(problem))


def too_old(description, family, torch_version):
    """Return the finding that a host compiler is too old for torch's headers, or None.

    Apple numbers its clang otherwise; it is not judged.
    """
    found = of_description(description, family)
    if found is None or family == "apple-clang":
        return None
    needed = needed_by_torch(torch_version, found.family)
    if found.version[0] >= needed:
        return None
    return findings.compiler_too_old(str(found), torch_version, "{} {}".format(found.family, needed))
