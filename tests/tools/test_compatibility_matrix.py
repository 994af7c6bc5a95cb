"""tools/compatibility_matrix.py: its tables, what it reads from logs and reports, and the page that it writes."""

import importlib
import os
import sys

import pytest

from fcos_core.build import releases

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.fixture(scope="module")
def tool():
    """The modules of the tool by name."""
    sys.path.insert(0, os.path.join(ROOT, "tools"))
    try:
        names = ("cells", "records", "steps", "ways", "toolkits")
        yield {name: importlib.import_module("compatibility." + name) for name in names}
    finally:
        sys.path.remove(os.path.join(ROOT, "tools"))


def test_every_minor_version_has_a_cell_on_a_python_that_it_serves(tool):
    torches = {torch.version: torch for torch in tool["cells"].TORCHES}
    minors = [tuple(map(int, version.split(".")[:2])) for version in torches]
    assert minors == [(1, minor) for minor in range(7, 14)] + [(2, minor) for minor in range(16)]
    known = {release.version: release for release in releases.RELEASES}
    assert set(known) <= set(torches)
    for version, torch in torches.items():
        for python in torch.pythons:
            if version in known:
                first, last = known[version].pythons
                assert first <= int(python.split(".")[1]) <= last, version
        assert ("numpy<2" in torch.others) == (tuple(map(int, version.split(".")[:2])) < (2, 3)
                                               and max(int(p.split(".")[1]) for p in torch.pythons) > 8)  # fmt: skip
    assert ("1.7.1", "3.8") in [(torch.version, python) for torch, python in tool["cells"].all_cells()]


def test_cells_by_name(tool):
    cells = tool["cells"]
    assert cells.parse("2.1.2/3.11")[1] == "3.11" and cells.parse("2.1.2")[1] == "3.10"
    with pytest.raises(tool["steps"].StepError, match="no torch '2.1.9' in the table; it has 1.7.1"):
        cells.parse("2.1.9")
    for text in tool["ways"].CELLS:
        cells.parse(text)
    for version in tool["toolkits"].TORCH_OF.values():
        cells.parse(version)


def test_what_is_read_from_an_installation(tool):
    watch = tool["cells"].BuildWatch("/tmp/x/fcos_core-source")
    for line in (
        "  /venv/torch/include/torch/csrc/api/all.h:3:1: warning: of torch's own\n",
        "  compiled and linked in 57 s\n",
        "  csrc/nms/nms.cpp:3:1: note: no warning\n",
    ):
        watch(line)
    assert watch.seconds == 57 and watch.warnings == []
    watch("  csrc/nms/nms.cpp:3:1: warning: unused variable 'x'\n")
    watch("/tmp/x/fcos_core-source/csrc/check.h:8:2: warning: sign\n")
    watch("/tmp/x/fcos_core-source/csrc/nms/nms_cuda.cu(48): warning #177-D: variable was declared\n")
    watch("csrc/nms/nms_cuda.cu(48): Warning: Function has a large return size\n")
    watch("ptxas /tmp/nms_cuda.ptx, line 9; warning : Stack size cannot be determined\n")
    found = [warning.split(":")[0].split("(")[0] for warning in watch.warnings]
    assert found == ["csrc/nms/nms.cpp", "csrc/check.h"] + 2 * ["csrc/nms/nms_cuda.cu"] + [
        "ptxas /tmp/nms_cuda.ptx, line 9; warning "
    ]


def test_what_is_read_from_a_report(tool, tmp_path):
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/><testcase classname="a" name="bad"><failure/>'
        '</testcase><testcase classname="a" name="broken"><error/></testcase><testcase classname="a" name="out">'
        "<skipped/></testcase></testsuite></testsuites>"
    )
    assert tool["cells"].count(str(tmp_path / "report.xml")) == {
        "passed": 1, "failed": 2, "skipped": 1, "failures": ["a::bad", "a::broken"]
    }  # fmt: skip


def test_downloads_are_summed_up(tool):
    text = "Downloading torch-1.whl (1.5 GB)\n  Downloading x-2.whl (300 kB)\nUsing cached y-3.whl (9 MB)\n"
    assert tool["ways"].downloaded(text) == "2 files, 1500 MB"


def test_interpreters_that_are_not_there_are_named(tool):
    steps = tool["steps"]
    version = "{}.{}".format(*sys.version_info[:2])
    assert steps.find_python(version, {version: sys.executable}) == sys.executable
    with pytest.raises(steps.StepError, match="no Python 3.99; name one with --python 3.99=PATH"):
        steps.find_python("3.99", {"3.99": sys.executable})


def test_records_replace_their_like_and_sort_by_number(tool, tmp_path):
    records, path, page = tool["records"], str(tmp_path / "r.json"), str(tmp_path / "page.md")
    base = {"commit": "abc", "date": "2026-11-25", "result": "passed", "reason": ""}
    for torch, result in (("2.10.0", "passed"), ("2.9.1", "failed"), ("2.9.1", "passed"), ("1.13.1", "failed")):
        record = dict(base, torch=torch, python="3.10", result=result, reason="a | b, see log" * (result == "failed"))
        records.add("cells", record, ("torch", "python"), path, page)
    assert [one["torch"] for one in records.load(path)["cells"]] == ["1.13.1", "2.9.1", "2.10.0"]
    with open(page, encoding="utf-8") as stream:
        rows = [line for line in stream if line.startswith("| ")][1:]
    assert "**failed**: a \\| b |" in rows[0] and "| passed | `abc` | 2026-11-25 |" in rows[1]


def test_the_page_is_that_of_the_records(tool):
    with open(tool["records"].PAGE, encoding="utf-8") as stream:
        assert stream.read() == tool["records"].render(tool["records"].load())
