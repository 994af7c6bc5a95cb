import pytest

from fcos_core.build import flags


@pytest.mark.parametrize("kind", ["gcc", "clang", "apple-clang", "msvc"])
@pytest.mark.parametrize("openmp", [True, False])
def test_openmp_only_where_torch_runs_on_it(kind, openmp):
    found = [flag for flag in flags.cxx_flags(kind, openmp) if "openmp" in flag]
    # Apple's clang comes without it
    assert len(found) == (openmp and kind != "apple-clang")
    # gcc's stays unlinked: torch has loaded a runtime
    assert flags.link_flags(kind, openmp) == (["-fopenmp"] if openmp and kind == "clang" else [])


def test_each_family_has_flags_that_it_knows():
    assert all(flag.startswith("/") for flag in flags.cxx_flags("msvc", True))
    # several operators in one object file
    assert "/bigobj" in flags.cxx_flags("msvc", False)
    for kind in ("gcc", "clang", "apple-clang"):
        assert not any(flag.startswith("/") for flag in flags.cxx_flags(kind, True))
        assert "--param" not in flags.cxx_flags(kind, True) or kind == "gcc"


def test_the_standard_is_left_to_torch():
    for kind in ("gcc", "clang", "apple-clang", "msvc"):
        assert not any("std" in flag for flag in flags.cxx_flags(kind, True) + flags.nvcc_flags())
