"""The error of the build, and finding the line that matters in a compiler's output.

Strings in, strings out; no torch.
"""

import re

from fcos_core.build import findings


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
    (r"No module named '?pkg_resources", findings.setuptools_too_new("").remedy),
    (r"No module named '?(setuptools|distutils)", findings.setuptools_missing().remedy),
    (r"Python\.h: No such file", findings.python_headers_missing("").remedy),
    (r"Killed signal|virtual memory exhausted|out of heap space", "not enough memory: set MAX_JOBS=1 and try again"),
    (r"No space left on device", "free some space, or set FCOS_CORE_CACHE and TMPDIR to a folder that has it"),
    (
        r"Microsoft Visual C\+\+ 14|Unable to find vcvarsall|'cl(?:\.exe)?' is not recognized|Cannot find compiler 'cl",
        "install the Visual Studio Build Tools with 'Desktop development with C++', and build from its prompt 'x64 "
        "Native Tools Command Prompt'",
    ),
    (
        r"unsupported (?:GNU|clang|Microsoft Visual Studio) version",
        "python -m fcos_core.doctor says which compiler fits",
    ),
    (
        r"C\+\+20 or later|requires C\+\+20|C\+\+17 or later|unrecognized command.line option .-std=",
        "the compiler is too old for this torch: install a newer one and name it by CXX",
    ),
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
