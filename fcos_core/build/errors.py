"""The error of the build, and finding the line that matters in a compiler's output.

Strings in, strings out; no torch.
"""

import re


class BuildError(RuntimeError):
    """The operators could not be built or found; the message says why and what to type."""


# What compilers, linkers, ninja and Python print when they give up, most specific first within one line.
_ERROR_LINE = re.compile(
    r"(\bfatal error\b|(?:^|[\s:])error(?:\s[A-Z]+\d+)?:|\bundefined reference to\b|\bcannot find -l"
    r"|\bcannot open (?:input|output) file\b|: command not found|No space left on device|\binternal compiler error\b"
    r"|Killed signal|virtual memory exhausted)",
    re.IGNORECASE,
)
# setuptools repeats "error: command 'g++' failed" after the compiler said why
_ECHO_LINE = re.compile(r"^\s*(error: command .* failed|ninja: build stopped|collect2: error)", re.IGNORECASE)
_PYTHON_ERROR = re.compile(r"^(?:[A-Za-z_][\w.]*(?:Error|Exception|Exit|Warning)|fcos_core\.\S+)\b.*:")

# pattern in the output -> what to do about it
_ADVICE = (
    (r"No module named '?pkg_resources", "this torch needs an older setuptools: python -m pip install 'setuptools<81'"),
    (r"No module named '?(setuptools|distutils)", "python -m pip install 'setuptools>=75.8'"),
    (r"Python\.h: No such file", "install the headers of this Python (Debian, Ubuntu: apt-get install python3-dev)"),
    (r"Killed signal|virtual memory exhausted|out of heap space", "not enough memory: set MAX_JOBS=1 and try again"),
    (r"No space left on device", "free some space, or set FCOS_CORE_CACHE and TMPDIR to a folder that has it"),
    (
        r"Microsoft Visual C\+\+ 14|Unable to find vcvarsall",
        "install the Visual Studio Build Tools with 'Desktop development with C++'",
    ),
    (
        r"C\+\+20 or later|requires C\+\+20|C\+\+17 or later|unrecognized command.line option .-std=",
        "the compiler is too old for this torch: install a newer one and name it by CXX",
    ),
)

NO_COMPILER = (
    "no C++ compiler found; install one (Debian, Ubuntu: apt-get install g++; Fedora: dnf install gcc-c++; "
    "conda: conda install -c conda-forge cxx-compiler; macOS: xcode-select --install; Windows: Visual Studio Build "
    "Tools), or name it by the environment variable CXX"
)


def first_error(log):
    """Return the line of a build log that says what went wrong.

    Args:
        log (str): everything that the build printed.

    Returns:
        str: the first line of a compiler's or linker's error; without one, the last Python error; without that, the
        last line that says anything.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in lines:
        if _ERROR_LINE.search(line) and not _ECHO_LINE.match(line) and not _PYTHON_ERROR.match(line):
            return line
    for line in reversed(lines):
        if _PYTHON_ERROR.match(line):
            return line
    return lines[-1] if lines else "the build printed nothing"


def advice(log):
    """Return what to do about a build log with a known cause, or an empty string."""
    for pattern, text in _ADVICE:
        if re.search(pattern, log):
            return text
    return ""
