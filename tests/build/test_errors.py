"""The line that matters in a compiler's output, and what to do about it."""

import pytest

from fcos_core.build.errors import advice, first_error

GCC = """[1/3] c++ -MMD -c csrc/library.cpp -o library.o
csrc/nms/nms.cpp: In function 'void f()':
csrc/nms/nms.cpp:3:5: warning: unused variable 'error' [-Wunused-variable]
csrc/nms/nms.cpp:4:10: fatal error: THC/THC.h: No such file or directory
csrc/nms/nms.cpp:9:1: error: expected ';' before '}'
ninja: build stopped: subcommand failed.
Traceback (most recent call last):
  File "cpp_extension.py", line 1, in build
RuntimeError: Error compiling objects for extension
"""
LINK = """/usr/bin/ld: nms.o: in function `f()':
nms.cpp:(.text+0x5): undefined reference to `g()'
collect2: error: ld returned 1 exit status
error: command '/usr/bin/g++' failed with exit code 1
"""
MSVC = """nms.cpp
csrc/nms/nms.cpp(12): error C2065: 'x': undeclared identifier
error: command 'cl.exe' failed with exit code 2
"""
WINDOWS_LINK = "LINK : fatal error LNK1181: cannot open input file 'nms.obj'\n"
PYTHON = """Traceback (most recent call last):
  File "cpp_extension.py", line 25, in <module>
    from pkg_resources import packaging
ModuleNotFoundError: No module named 'pkg_resources'
"""


@pytest.mark.parametrize(
    "log, expected",
    [
        (GCC, "csrc/nms/nms.cpp:4:10: fatal error: THC/THC.h: No such file or directory"),
        (LINK, "nms.cpp:(.text+0x5): undefined reference to `g()'"),
        (MSVC, "csrc/nms/nms.cpp(12): error C2065: 'x': undeclared identifier"),
        (WINDOWS_LINK, "LINK : fatal error LNK1181: cannot open input file 'nms.obj'"),
        (PYTHON, "ModuleNotFoundError: No module named 'pkg_resources'"),
        ("c++: fatal error: Killed signal terminated program cc1plus\n", None),
        ("only this\n", "only this"),
        ("", "the build printed nothing"),
    ],
)
def test_first_error(log, expected):
    assert first_error(log) == (log.strip() if expected is None else expected)


@pytest.mark.parametrize(
    "log, part",
    [
        (PYTHON, '"setuptools<81"'),
        ("ModuleNotFoundError: No module named 'setuptools'", 'pip install "setuptools'),
        ("fatal error: Python.h: No such file or directory", "python3-dev"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
        ("error: Microsoft Visual C++ 14.0 or greater is required", "Build Tools"),
    ],
)
def test_known_causes_have_advice(log, part):
    assert part in advice(log)


def test_unknown_causes_have_none():
    assert advice(LINK) == ""
