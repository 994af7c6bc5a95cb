"""Which files are compiled, and what counts as a change."""

import os

import pytest

from fcos_core.build import BuildError, sources


@pytest.fixture
def clone(tmp_path):
    """A clone with two sources and a header: the folder of its package."""
    (tmp_path / "fcos_core").mkdir()
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "csrc" / "nms").mkdir(parents=True)
    (tmp_path / "csrc" / "library.cpp").write_text("int a;\n")
    (tmp_path / "csrc" / "nms" / "nms.cpp").write_text("int b;\n")
    (tmp_path / "csrc" / "nms" / "nms.h").write_text("int c;\n")
    return tmp_path


def test_sources_are_relative_sorted_and_with_forward_slashes(clone):
    csrc = str(clone / "csrc")
    assert sources.host_sources(csrc) == ["csrc/library.cpp", "csrc/nms/nms.cpp"]
    assert sources.headers(csrc) == ["csrc/nms/nms.h"]


def test_csrc_of_a_wheel_comes_before_that_beside_the_package(clone):
    package = clone / "fcos_core"
    assert sources.csrc_dir(str(package)) == str(clone / "csrc")
    (package / "csrc").mkdir()
    (package / "csrc" / "library.cpp").write_text("")
    assert sources.csrc_dir(str(package)) == str(package / "csrc")


def test_csrc_of_a_stranger_beside_an_installed_package_is_not_taken(clone):
    os.remove(str(clone / "setup.py"))
    assert sources.csrc_dir(str(clone / "fcos_core")) is None


def test_one_object_file_for_two_sources_is_refused(clone):
    (clone / "csrc" / "nms" / "nms.cu").write_text("")
    with pytest.raises(BuildError, match="csrc/nms/nms.cpp and csrc/nms/nms.cu; rename"):
        sources.host_sources(str(clone / "csrc"))


@pytest.mark.parametrize("name", ["library.cpp", "nms/nms.cpp", "nms/nms.h"])
def test_hash_changes_with_content_of_each_file(clone, name):
    before = sources.source_hash(str(clone / "csrc"))
    with open(str(clone / "csrc" / name), "a") as stream:
        stream.write("// more\n")
    assert sources.source_hash(str(clone / "csrc")) != before


def test_hash_changes_with_names_and_with_new_files(clone):
    csrc = str(clone / "csrc")
    hashes = {sources.source_hash(csrc)}
    os.rename(os.path.join(csrc, "nms", "nms.h"), os.path.join(csrc, "nms", "other.h"))
    hashes.add(sources.source_hash(csrc))
    (clone / "csrc" / "nms" / "nms_cuda.cu").write_text("")
    hashes.add(sources.source_hash(csrc))
    assert len(hashes) == 3


def test_hash_does_not_depend_on_place_or_line_endings(clone, tmp_path):
    before = sources.source_hash(str(clone / "csrc"))
    moved = tmp_path / "elsewhere" / "csrc"
    (moved / "nms").mkdir(parents=True)
    for name in ("library.cpp", "nms/nms.cpp", "nms/nms.h"):
        content = (clone / "csrc" / name).read_bytes().replace(b"\n", b"\r\n")
        (moved / name).write_bytes(content)
    assert sources.source_hash(str(moved)) == before


def test_own_sources_are_there_and_make_one_object_each():
    csrc = sources.csrc_dir()
    assert "csrc/library.cpp" in sources.host_sources(csrc)
