import os

import pytest

from fcos_core.build import sources, units
from fcos_core.build.errors import BuildError

OPERATORS = ["csrc/autograd.cpp", "csrc/library.cpp", "csrc/nms/nms.cpp", "csrc/roi_align/roi_align.cpp"]
KERNELS = ["csrc/nms/nms_cpu.cpp", "csrc/roi_align/roi_align_cpu.cpp"]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 64])
def test_each_source_is_in_one_group(number):
    groups = units.group(OPERATORS + KERNELS, number)
    assert sorted(sum(groups, [])) == sorted(OPERATORS + KERNELS)
    assert groups[-2:] == [[KERNELS[0]], [KERNELS[1]]]
    assert len(groups) - 2 == min(max(2, number), 4)


def test_groups_are_about_alike():
    sizes = [len(members) for members in units.group(["csrc/{}.cpp".format(i) for i in range(10)], 4)]
    assert sorted(sizes) == [2, 2, 3, 3]


def test_the_sources_here_are_grouped():
    host = sources.host_sources(sources.csrc_dir())
    first, second = units.group(host, 2)[:2]
    assert "csrc/autograd.cpp" in first + second and "csrc/nms/nms.cpp" in first + second
    assert not any(name.endswith("_cpu.cpp") for name in first + second)
    assert all(len(members) == 1 for members in units.group(host, 64))


def test_a_group_becomes_a_source_that_includes_its_members(tmp_path):
    csrc, folder = tmp_path / "csrc", tmp_path / "with space" / "units"
    paths = units.write([OPERATORS[1:3], [KERNELS[0]], [OPERATORS[3]]], str(csrc), str(folder))
    assert paths == [str(folder / "unit_0.cpp"), KERNELS[0], OPERATORS[3]]
    assert (folder / "unit_0.cpp").read_text() == '#include "library.cpp"\n#include "nms/nms.cpp"\n'
    assert os.listdir(str(folder)) == ["unit_0.cpp"]


def test_a_source_that_is_there_stays_as_it_is(tmp_path):
    csrc, folder = str(tmp_path / "csrc"), str(tmp_path / "units")
    (path,) = units.write([OPERATORS[:2]], csrc, folder)
    os.utime(path, (1, 1))
    units.write([OPERATORS[:2]], csrc, folder)
    assert os.path.getmtime(path) == 1
    units.write([OPERATORS[1:3]], csrc, folder)
    assert os.path.getmtime(path) > 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="expected to write .*unit_0.cpp, got .*name another folder"):
        units.write([OPERATORS[:2]], str(tmp_path / "csrc"), str(tmp_path / "file" / "units"))


def test_objects_lie_beside_those_of_csrc(tmp_path):
    asked = []

    def object_filenames(source_filenames, strip_dir=0, output_dir=""):
        asked.append((list(source_filenames), strip_dir, output_dir))
        return [os.path.join(output_dir, os.path.splitext(name)[0] + ".o") for name in source_filenames]

    folder = tmp_path / "units"
    short = units.with_short_names(object_filenames, str(folder))
    unit, beside = str(folder / "unit_0.cpp"), str(tmp_path / "units_of_others" / "x.cpp")
    result = short([unit, KERNELS[0], beside], strip_dir=0, output_dir="build")
    assert asked == [(["csrc/unit_0.cpp", KERNELS[0], beside], 0, "build")]
    assert result[0] == os.path.join("build", "csrc/unit_0.o")
