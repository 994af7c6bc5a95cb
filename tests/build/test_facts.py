"""Reading what a machine says about itself."""

import os

import pytest

from fcos_core.build import arch, facts, variables
from fcos_core.build.facts import Driver, Gpu

BANNER = "| NVIDIA-SMI 535.183.01    Driver Version: 535.183.01   CUDA Version: 12.2     |\n"


@pytest.mark.parametrize(
    "listed, banner, expected",
    [
        (
            "535.183.01, NVIDIA GeForce RTX 3060, 8.6\n535.183.01, NVIDIA A100-SXM4-80GB, 8.0\n",
            BANNER,
            Driver("535.183.01", (12, 2), (Gpu("NVIDIA GeForce RTX 3060", 86), Gpu("NVIDIA A100-SXM4-80GB", 80))),
        ),
        ("418.87.00, GeForce RTX 2080 Ti\n", "", Driver("418.87.00", None, (Gpu("GeForce RTX 2080 Ti"),))),
        ("580.65.06, NVIDIA B200, 10.0\n", BANNER, Driver("580.65.06", (12, 2), (Gpu("NVIDIA B200", 100),))),
        ("No devices were found\n", "", None),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "", None),
        ("", "", None),
    ],
)
def test_what_nvidia_smi_prints(listed, banner, expected):
    assert facts.read_smi(listed, banner) == expected


@pytest.mark.parametrize(
    "line, edited",
    [
        ("    command = ['ninja', '-v']\n", False),
        ("    command = ['ninja', '--version']\n", True),
        ('    command = ["ninja", "--version"]\n', True),
        ("    command=['ninja','--v']\n", True),
        ("        subprocess.check_output(['ninja', '--version'])\n", False),  # torch's own look-up
        ("", False),
    ],
)
def test_the_edit_of_torch_that_keeps_ninja_from_compiling(line, edited):
    assert facts.is_ninja_edited("def _run_ninja_build():\n" + line) == edited


def test_the_torch_of_this_environment_is_not_edited():
    folder = facts.torch_folder()
    if folder is None:
        pytest.skip("no torch")
    with open(os.path.join(folder, "utils", "cpp_extension.py"), encoding="utf-8") as stream:
        text = stream.read()
    assert "ninja" in text and not facts.is_ninja_edited(text)
    assert facts.is_ninja_edited(text.replace("['ninja', '-v']", "['ninja', '--version']"))


def test_other_copies_on_the_path(tmp_path):
    for name in ("mine", "other"):
        (tmp_path / name / "fcos_core").mkdir(parents=True)
        (tmp_path / name / "fcos_core" / "__init__.py").write_text("")
    here = str(tmp_path / "mine" / "fcos_core")
    path = [str(tmp_path / name) for name in ("mine", "nothing", "other", "other")]
    assert facts.other_copies(here, path) == (str(tmp_path / "other" / "fcos_core"),)


def test_torch_is_found_without_importing_it(tmp_path):
    assert facts.torch_folder([str(tmp_path)]) is None
    (tmp_path / "torch").mkdir()
    assert facts.torch_folder([str(tmp_path)]) is None
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('not to be imported')")
    assert facts.torch_folder([str(tmp_path)]) == str(tmp_path / "torch")


def test_variables_that_matter():
    environ = {"FORCE_CUDA": "1", "HOME": "/home/u", "CUDA_PATH_V11_3": "C:\\v11.3"}
    assert variables.of(environ) == {"FORCE_CUDA": "1", "CUDA_PATH_V11_3": "C:\\v11.3"}


class FakeDriver(object):
    """A driver's library that serves one CUDA version, or fails with a code."""

    def __init__(self, cuda, code=0):
        self.cuda, self.code = cuda, code

    def cuDriverGetVersion(self, number):
        number._obj.value = self.cuda
        return self.code


@pytest.mark.parametrize(
    "library, module, expected",
    [
        (FakeDriver(12040), "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue", ("550.54.15", (12, 4))),
        (FakeDriver(13000), "", ("unknown version", (13, 0))),
        (FakeDriver(0), "", None),
        (FakeDriver(12040, code=34), "", None),  # a stub
        (object(), "", None),
        (None, "", None),
    ],
)
def test_what_the_library_of_the_driver_says(monkeypatch, library, module, expected):
    monkeypatch.setattr(arch, "driver_library", lambda: library)
    monkeypatch.setattr(facts, "_read", lambda path: module)
    assert facts.driver_by_library() == (expected and Driver(*expected))
