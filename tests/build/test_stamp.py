"""A library is used exactly where its stamp fits."""

import json
import os

import pytest

from fcos_core.build import stamp

INGREDIENTS = {
    "torch": "2.14.1+cu130",
    "torch_abi": True,
    "torch_cuda": "13.0",
    "python": ".cpython-311-x86_64-linux-gnu.so",
    "platform_name": "linux-x86_64",
    "sources": "aaaa",
    "compiler": "g++ 12.2.0",
    "libc": "glibc 2.31",
}
OTHER = {
    "torch": "2.14.1+cpu",
    "torch_abi": False,
    "torch_cuda": None,
    "python": ".cpython-312-x86_64-linux-gnu.so",
    "platform_name": "linux-aarch64",
    "sources": "bbbb",
    "archs": "86",
}


@pytest.mark.parametrize("ingredient", sorted(OTHER))
def test_each_ingredient_makes_a_library_stale(ingredient):
    built = stamp.make(**INGREDIENTS)
    changed = stamp.make(**dict(INGREDIENTS, **{ingredient: OTHER[ingredient]}))
    assert stamp.misfit(built, built) == ""
    assert stamp.misfit(built, changed)
    assert stamp.runtime_digest(built) != stamp.runtime_digest(changed)
    assert stamp.digest(built) != stamp.digest(changed)


def test_compiler_changes_object_folder_but_library_stays_usable():
    built = stamp.make(**INGREDIENTS)
    here = stamp.make(**dict(INGREDIENTS, compiler="g++ 9.4.0"))
    assert stamp.digest(built) != stamp.digest(here)
    assert stamp.tool_digest(built) != stamp.tool_digest(here)
    assert stamp.misfit(built, here) == ""
    assert stamp.runtime_digest(built) == stamp.runtime_digest(here)


def test_a_library_with_cuda_kernels_serves_a_process_without_a_gpu():
    """A login node loads what a GPU node built; the other way round it is stale."""
    cpu, cuda = stamp.make(**INGREDIENTS), stamp.make(archs="75 80+PTX", **INGREDIENTS)
    assert stamp.misfit(cuda, cpu) == ""
    assert stamp.misfit(cpu, stamp.make(archs="86", **INGREDIENTS)) == "built without CUDA kernels"


@pytest.mark.parametrize(
    "built, gpus, reason",
    [
        ("80", "86", ""),
        ("75+PTX", "86", ""),
        ("75", "86", "without code for this GPU (sm_86), only for 75"),
        ("86", "75 86", "without code for this GPU (sm_75), only for 86"),
    ],
)
def test_a_gpu_without_code_makes_a_library_stale(built, gpus, reason):
    assert stamp.misfit(stamp.make(archs=built, **INGREDIENTS), stamp.make(archs=gpus, **INGREDIENTS)) == reason


def test_objects_of_other_sources_share_a_folder():
    edited = stamp.make(**dict(INGREDIENTS, sources="bbbb"))
    assert stamp.tool_digest(stamp.make(**INGREDIENTS)) == stamp.tool_digest(edited)


@pytest.mark.parametrize(
    "built, here, fits",
    [
        ("glibc 2.31", "glibc 2.31", True),
        ("glibc 2.9", "glibc 2.31", True),
        ("glibc 2.36", "glibc 2.31", False),
        ("", "glibc 2.31", True),
        ("", "", True),
    ],
)
def test_older_libc_does_not_take_library_of_newer(built, here, fits):
    reason = stamp.misfit(stamp.make(**dict(INGREDIENTS, libc=built)), stamp.make(**dict(INGREDIENTS, libc=here)))
    assert (reason == "") == fits


def test_misfit_names_both_sides():
    reason = stamp.misfit(stamp.make(**INGREDIENTS), stamp.make(**dict(INGREDIENTS, torch="1.7.1")))
    assert reason == "built for torch 2.14.1+cu130, this is 1.7.1"


def test_stamp_of_this_process_fits_itself_and_holds_its_torch():
    torch = pytest.importorskip("torch")
    collected = stamp.collect("aaaa", "g++")
    assert collected["torch"] == torch.__version__
    assert all(isinstance(value, str) for value in collected.values())
    assert stamp.misfit(json.loads(json.dumps(collected)), collected) == ""


def test_check_accepts_only_the_library_that_the_stamp_was_written_for(tmp_path):
    wanted = stamp.make(**INGREDIENTS)
    library = str(tmp_path / stamp.library_name())
    assert stamp.check(library, wanted) == "missing"
    with open(library, "wb") as stream:
        stream.write(b"library")
    assert stamp.check(library, wanted) == "without a readable stamp"
    stamp.write(wanted, library)
    assert stamp.check(library, wanted) == ""
    assert sorted(os.listdir(str(tmp_path))) == sorted([stamp.library_name(), stamp.library_name() + ".json"])
    with open(library, "ab") as stream:
        stream.write(b" of somebody else")
    assert stamp.check(library, wanted) == "not the file that its stamp describes"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"bytes": 7}'])
def test_check_refuses_a_broken_stamp(tmp_path, content):
    library = tmp_path / stamp.library_name()
    library.write_bytes(b"library")
    (tmp_path / (stamp.library_name() + ".json")).write_text(content)
    assert stamp.check(str(library), stamp.make(**INGREDIENTS))
