"""Which host compilers nvcc takes, and which one it is given."""

import os
import stat

import pytest

from fcos_core.build import BuildError, findings, hostcc, sources, toolkits
from fcos_core.build.hostcc import Compiler, Limits

# the lines of crt/host_config.h that matter, as CUDA 11.2, 12.4 and 13.0 have them
HEADER = """
#if defined(__GRCO_CLANG_COMPILER__)
#if (__GRCO_CLANG_COMPILER__ == 1) && ((__clang_major__ < 16) || (__clang_major__ > 17))
#endif
#if defined(__GNUC__)

#if __GNUC__ > {gcc}

#error -- unsupported GNU version! gcc versions later than {gcc} are not supported!
#endif
#if defined(__HORIZON__)
#if (__clang_major__ >= 99) || (__clang_major__ < 3) || ((__clang_major__ == 3) &&  (__clang_minor__ < 3))
#endif
#if (__clang_major__ >= {clang}) || (__clang_major__ < 3) || ((__clang_major__ == 3) &&  (__clang_minor__ < 3))
#error -- unsupported clang version!
#endif
#if _MSC_VER < 1910 || _MSC_VER >= {msvc}
#error -- unsupported Microsoft Visual Studio version!
"""
DRYRUN = """#$ _NVVM_BRANCH_=nvvm
#$ gcc -D__CUDA_ARCH_LIST__=750 -E -x c++ "/dev/null" -o "/tmp/null.cpp4.ii"
#$ cudafe++ --c++17 --{} --orig_src_file_name "/dev/null"
"""
posix = pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for nvcc")


@pytest.mark.parametrize(
    "version, expected",
    [
        ((10, 2), (8, 8, 1929)),
        ((11, 2), (10, 11, 1929)),
        ((11, 3), (10, 11, 1929)),
        ((11, 8), (11, 14, 1939)),
        ((12, 0), (12, 14, 1939)),
        ((12, 4), (13, 17, 1949)),
        ((12, 8), (14, 19, 1949)),
        ((12, 9), (14, 19, 1949)),
        ((13, 0), (15, 20, 1949)),
        ((14, 0), (None, None, None)),  # not known: nvcc will say
        ((9, 0), (None, None, None)),
    ],
)
def test_table(version, expected):
    assert tuple(hostcc.limits_in_table(version)) == expected


def test_the_header_of_a_toolkit_comes_before_the_table(tmp_path):
    assert hostcc.limits(str(tmp_path), (11, 8)) == Limits(11, 14, 1939)
    folder = tmp_path / "include" / "crt"
    folder.mkdir(parents=True)
    (folder / "host_config.h").write_text(HEADER.format(gcc=10, clang=12, msvc=1930))
    assert hostcc.limits(str(tmp_path), (11, 8)) == Limits(10, 11, 1929)
    assert hostcc.limits_in_header("nothing of the kind") == Limits()


@pytest.mark.parametrize("toolkit", toolkits.find_toolkits(), ids=str)
def test_toolkits_of_this_machine_agree_with_the_table(toolkit):
    if toolkit.version > hostcc.NEWEST_IN_TABLE:
        pytest.skip("newer than the table")
    assert hostcc.limits(toolkit.home, toolkit.version) == hostcc.limits_in_table(toolkit.version)
    assert hostcc.of_nvcc(toolkit.home) is not None


@pytest.mark.parametrize(
    "flag, expected",
    [
        ("gnu_version=120200", Compiler("gcc", (12, 2))),
        ("gnu_version=70500", Compiler("gcc", (7, 5))),
        ("clang_version=140006", Compiler("clang", (14, 0))),
        ("microsoft_version=1929", Compiler("MSVC", (1929,))),
        ("allow_managed", None),
    ],
)
def test_what_nvcc_says_of_its_compiler(flag, expected):
    assert hostcc.of_dryrun(DRYRUN.format(flag)) == expected


LIMITS_118 = Limits(11, 14, 1939)
GCC_11, GCC_13 = Compiler("gcc", (11, 4)), Compiler("gcc", (13, 2))


@pytest.mark.parametrize(
    "default, candidates, works, flags, name",
    [
        (GCC_11, [], True, (), None),
        (Compiler("gcc", (4, 8)), [], True, (), None),  # old ones are no trouble to the kernels
        (GCC_13, [("g++-11", GCC_11)], True, ("-ccbin", "g++-11"), "compiler-replaced"),
        (GCC_13, [("g++-12", Compiler("gcc", (12, 1))), ("g++-9", Compiler("gcc", (9, 4)))], True, ("-ccbin", "g++-9"),
         "compiler-replaced"),
        (GCC_13, [("g++-12", Compiler("gcc", (12, 1)))], False, (), "compiler-too-new"),
        (Compiler("clang", (15, 0)), [], False, (), "compiler-too-new"),
        (Compiler("MSVC", (1940,)), [], False, (), "compiler-too-new"),
        (None, [("g++-11", GCC_11)], True, ("-ccbin", "g++-11"), None),
        (None, [], False, (), "compiler-missing"),
    ],
)  # fmt: skip
def test_choice(default, candidates, works, flags, name):
    chosen = hostcc.choose("11.8", LIMITS_118, default, lambda: candidates)
    assert (chosen.works, chosen.flags) == (works, flags)
    assert (chosen.finding and chosen.finding.name) == name


def test_what_is_not_known_is_left_to_nvcc():
    assert hostcc.choose("14.0", Limits(), Compiler("gcc", (17, 0)), list) == hostcc.Choice(True)


def test_messages_name_both_sides_and_what_to_install():
    gcc = str(hostcc.choose("11.8", LIMITS_118, GCC_13, list).finding)
    assert "gcc 13.2 is newer than the compilers that CUDA 11.8 takes (up to gcc 11)" in gcc
    assert "apt-get install g++-11" in gcc and "conda-forge gxx_linux-64=11" in gcc
    msvc = str(hostcc.choose("11.8", LIMITS_118, Compiler("MSVC", (1940,)), list).finding)
    assert "MSVC 1940 is newer" in msvc and "-vcvars_ver=14.39" in msvc


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def fake(tmp_path):
    """A CUDA 11.8 whose nvcc tells the version of the compiler that -ccbin names, 13.2 by default; and g++-12, -11."""
    nvcc = """
    version=130200
    while [ $# -gt 0 ]; do
      if [ "$1" = -ccbin ]; then version=${2##*-}0400; fi
      shift
    done
    echo "#\\$ cudafe++ --gnu_version=$version"
    """
    write_script(tmp_path / "cuda" / "bin" / "nvcc", nvcc)
    for number in (12, 11):
        write_script(tmp_path / "bin" / "g++-{}".format(number), "")
    return toolkits.Toolkit(str(tmp_path / "cuda"), (11, 8), "CUDA_HOME"), {"PATH": str(tmp_path / "bin")}


@posix
def test_an_installed_compiler_is_found(fake, tmp_path):
    toolkit, environ = fake
    chosen = hostcc.choose_here(toolkit, environ)
    assert chosen.flags == ("-ccbin", str(tmp_path / "bin" / "g++-11"))
    os.remove(str(tmp_path / "bin" / "g++-11"))
    chosen = hostcc.choose_here(toolkit, environ)
    assert not chosen.works and "gcc 13.2 is newer" in chosen.finding.cause


@posix
def test_without_any_compiler_only_windows_goes_on(fake, tmp_path):
    toolkit, _ = fake
    write_script(tmp_path / "cuda" / "bin" / "nvcc", "echo 'nvcc fatal : Cannot find compiler in PATH'; exit 1")
    assert hostcc.choose_here(toolkit, {"PATH": ""}, windows=False).finding.name == "compiler-missing"
    assert hostcc.choose_here(toolkit, {"PATH": ""}, windows=True) == hostcc.Choice(True)


@posix
@pytest.mark.parametrize(
    "variable, value",
    [("NVCC_APPEND_FLAGS", "-allow-unsupported-compiler"), ("NVCC_PREPEND_FLAGS", "-ccbin x")],
)
def test_what_the_user_gave_to_nvcc_is_left_alone(fake, variable, value):
    toolkit, environ = fake
    assert hostcc.choose_here(toolkit, dict(environ, **{variable: value})) == hostcc.Choice(True)
    # this one is handed on, because older nvcc do not read it
    assert hostcc.choose_here(toolkit, dict(environ, NVCC_CCBIN="/opt/g++")).flags == ("-ccbin", "/opt/g++")


@posix
def test_the_compiler_that_cc_names_is_the_one_that_is_judged(fake, tmp_path):
    """torch gives nvcc the one that CC names."""
    toolkit, environ = fake
    write_script(tmp_path / "bin" / "gcc-10", "")
    assert hostcc.choose_here(toolkit, dict(environ, CC=str(tmp_path / "bin" / "gcc-10"))) == hostcc.Choice(True)


@pytest.mark.parametrize(
    "description, family, expected",
    [
        ("g++ (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc", Compiler("gcc", (12, 2))),
        ("g++ (GCC) 4.8.5 20150623 (Red Hat 4.8.5-44)", "gcc", Compiler("gcc", (4, 8))),
        ("c++ (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0", "gcc", Compiler("gcc", (9, 4))),
        ("x86_64-conda-linux-gnu-c++ (conda-forge gcc 13.3.0-1) 13.3.0", "gcc", Compiler("gcc", (13, 3))),
        ("Ubuntu clang version 14.0.0-1ubuntu1.1", "clang", Compiler("clang", (14, 0))),
        ("Microsoft (R) C/C++ Optimizing Compiler Version 19.29.30133 for x64", "msvc", Compiler("MSVC", (1929,))),
        ("g++ (version unknown)", "gcc", None),
    ],
)
def test_versions_in_descriptions(description, family, expected):
    assert hostcc.of_description(description, family) == expected


@pytest.mark.parametrize(
    "torch, description, family, fits",
    [
        ("1.7.1", "g++ (GCC) 4.8.5", "gcc", False),
        ("1.13.1", "g++ 5.4.0", "gcc", True),
        ("2.0.1", "g++ 6.4.0", "gcc", False),
        ("2.1.2", "g++ 7.5.0", "gcc", True),
        ("2.3.0", "g++ 7.5.0", "gcc", False),
        ("2.14.1+cu130", "g++ 9.4.0", "gcc", False),
        ("2.14.1+cu130", "g++ 11.4.0", "gcc", True),
        ("2.14.1", "Apple clang version 1.0", "apple-clang", True),  # numbers of its own
    ],
)
def test_compilers_too_old_for_torch(torch, description, family, fits):
    finding = hostcc.too_old(description, family, torch)
    assert (finding is None) == fits
    if not fits:
        with pytest.raises(BuildError, match="is too old for the headers of torch .*CXX=g"):
            hostcc.refuse_too_old(description, family, torch)


def test_no_sentence_of_this_is_written_twice():
    """The messages of the build are those of the doctor."""
    folder = os.path.join(sources.PACKAGE_DIR, "build")
    texts = {}
    for name in os.listdir(folder):
        if name.endswith(".py"):
            with open(os.path.join(folder, name), encoding="utf-8") as stream:
                texts[name] = stream.read()
    for words in ("newer than the compilers", "no C++ compiler found", "'ninja --version'", "minor version is fine"):
        assert [name for name, text in texts.items() if words in text] == ["findings.py"], words
    assert str(findings.no_compiler()).count("; ") >= 1
