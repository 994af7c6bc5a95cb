"""Ninja or not, and how many jobs."""

import pytest

from fcos_core.build import BuildError, jobs

GIB = 1024**3


@pytest.mark.parametrize(
    "asked, system, ninja, expected",
    [
        ("", "Linux", "/usr/bin/ninja", True),
        ("", "Linux", None, False),
        ("", "Darwin", "/usr/bin/ninja", True),
        ("", "Windows", "ninja.exe", False),
        ("1", "Windows", "ninja.exe", True),
        ("0", "Linux", "/usr/bin/ninja", False),
    ],
)
def test_ninja_policy(asked, system, ninja, expected):
    environ = {"FCOS_CORE_NINJA": asked} if asked else {}
    assert jobs.use_ninja(environ, system, ninja) is expected


def test_ninja_asked_for_but_absent_says_what_to_install():
    with pytest.raises(BuildError, match="pip install ninja"):
        jobs.use_ninja({"FCOS_CORE_NINJA": "1"}, "Linux", None)


def test_ninja_switch_of_another_value_is_refused():
    with pytest.raises(BuildError, match="expected FCOS_CORE_NINJA to be 0 or 1, got 'off'"):
        jobs.use_ninja({"FCOS_CORE_NINJA": "off"}, "Linux", "ninja")


@pytest.mark.parametrize(
    "asked, cores, memory, expected",
    [
        ("", 8, 64 * GIB, 8),
        ("", 8, 6 * GIB, 3),
        ("", 8, GIB // 2, 1),
        ("", 8, None, 8),
        ("5", 8, 2 * GIB, 5),
        ("0", 2, 64 * GIB, 2),
        ("many", 2, 64 * GIB, 2),
    ],
)
def test_jobs_are_bounded_by_cores_and_memory_unless_asked(asked, cores, memory, expected):
    assert jobs.max_jobs({"MAX_JOBS": asked}, cores, memory) == expected


def test_this_machine_has_a_core_and_memory():
    assert jobs.available_cores() >= 1
    memory = jobs.available_memory()
    assert memory is None or memory > 0


def test_ninja_of_an_environment_that_is_not_activated_is_found(tmp_path, monkeypatch):
    pytest.importorskip("ninja")
    monkeypatch.delenv("PATH")
    assert jobs.find_ninja({}) is not None
