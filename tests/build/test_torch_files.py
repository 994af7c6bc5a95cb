"""What the files of a torch say, beside what the imported torch says."""

import os
import subprocess
import sys

import pytest

from fcos_core.build import sources, torch_files, torch_path
from fcos_core.build.torch_files import TorchBuild

FUNCTION = '''import sys


def compiled_with_cxx11_abi():
    r"""Returns whether PyTorch was built with _GLIBCXX_USE_CXX11_ABI=1"""
    return {}


from torch import _ops
'''
OLD, NEW = FUNCTION.format("_C._GLIBCXX_USE_CXX11_ABI"), FUNCTION.format("True")
FLAG = 'if(ON)\n  set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI={}")\nendif()\n'


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Write the files of a torch into a folder from which it is imported."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)] + sys.path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    def write(version, package, config=None):
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(package)
        (tmp_path / "torch" / "version.py").write_text(version)
        if config is not None:
            folder = tmp_path / "torch" / "share" / "cmake" / "Torch"
            folder.mkdir(parents=True)
            (folder / "TorchConfig.cmake").write_text(config)
        return str(tmp_path)

    return write


def test_the_files_say_what_the_imported_torch_says():
    torch = pytest.importorskip("torch")
    read = torch_files.read(torch_path.expose_torch())
    if read is None and not sys.platform.startswith("linux"):
        pytest.skip("this torch does not say")
    assert read == torch_files.of_module(torch)
    assert torch_files.version(torch_path.expose_torch()) == torch.__version__


@pytest.mark.parametrize(
    "version, package, config, expected",
    [
        ("__version__ = '1.7.1'\ncuda = '10.2'\nhip = None\n", OLD, FLAG.format(0), ("1.7.1", "10.2", None, False)),
        ("__version__ = '1.13.1+cu117'\ncuda = '11.7'\n", OLD, FLAG.format(0), ("1.13.1+cu117", "11.7", None, False)),
        (
            "from typing import Optional\n__version__ = '2.7.0+cu126'\ncuda: Optional[str] = '12.6'\n",
            OLD,
            FLAG.format(1),
            ("2.7.0+cu126", "12.6", None, True),
        ),
        (
            "from typing import Optional\n__version__ = '2.15.0+cpu'\ncuda: Optional[str] = None\nxpu: Optional[str]\n",
            NEW,
            "",
            ("2.15.0+cpu", None, None, True),
        ),
        ("__version__ = '2.8.0'\ncuda = None\nhip = '6.4'\n", NEW, None, ("2.8.0", None, "6.4", True)),
        # Windows before 2.8; a conda package, which has its cmake files elsewhere; both flags
        ("__version__ = '2.0.0+cpu'\ncuda = None\n", OLD, FLAG.format(""), None),
        ("__version__ = '2.0.0'\ncuda = None\n", OLD, None, None),
        ("__version__ = '2.0.0'\ncuda = None\n", OLD, FLAG.format(0) + FLAG.format(1), None),
        # a True of another function
        ("__version__ = '2.0.0'\ncuda = None\n", OLD + "\n\ndef is_there():\n    return True\n", FLAG.format(0), False),
        # a version file that says nothing, or nothing that is a constant, or is no Python
        ("", NEW, None, None),
        ("__version__ = '2.8.0'\n", NEW, None, None),
        ("__version__ = str(2)\ncuda = None\n", NEW, None, None),
        ("__version__ = '2.8.0'\ncuda = \n", NEW, None, None),
    ],
)
def test_what_the_files_say(make, version, package, config, expected):
    read = torch_files.read(make(version, package, config))
    if expected is False:
        assert read.cxx11_abi is False
    else:
        assert read == (None if expected is None else TorchBuild(*expected))


def test_only_the_torch_that_an_import_takes_is_read(make, tmp_path, monkeypatch):
    version = "__version__ = '2.8.0'\ncuda = None\n"
    folder = make(version, NEW)
    assert torch_files.read(folder) is not None
    other = tmp_path / "other"
    (other / "torch").mkdir(parents=True)
    (other / "torch" / "__init__.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(other)] + sys.path)
    assert torch_files.read(folder) is None
    assert torch_files.version(folder) == "2.8.0"
    nowhere = str(tmp_path / "nowhere")
    assert torch_files.read(nowhere) is None and torch_files.version(nowhere) is None


def test_reading_imports_nothing():
    pytest.importorskip("torch")
    script = (
        "import sys; from fcos_core.build import torch_files, torch_path; "
        "torch_files.read(torch_path.expose_torch()); print('torch' in sys.modules)"
    )
    root = os.path.dirname(sources.PACKAGE_DIR)
    output = subprocess.check_output([sys.executable, "-c", script], cwd=root, universal_newlines=True)
    assert output.strip() == "False"
