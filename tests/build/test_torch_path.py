"""The torch of the outer environment is found from inside an isolated build."""

import os
import sys

import pytest

from fcos_core.build import torch_path

TAIL = os.path.join("lib", "python{}.{}".format(*sys.version_info[:2]), "site-packages")
if os.name == "nt":
    TAIL = os.path.join("Lib", "site-packages")


def make_environment(root, torch=True, config=""):
    site = root / TAIL
    site.mkdir(parents=True)
    (root / "bin").mkdir()
    (root / "pyvenv.cfg").write_text("home = /nowhere\n" + config)
    if torch:
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").write_text("")
    return str(site)


@pytest.fixture(autouse=True)
def bare_interpreter(monkeypatch, tmp_path):
    """An interpreter whose own environment is empty."""
    empty = str(tmp_path / "empty")
    monkeypatch.setattr(sys, "prefix", empty)
    monkeypatch.setattr(torch_path.sysconfig, "get_paths", lambda: {"platlib": empty, "purelib": empty})


def test_torch_in_reach_is_left_alone(tmp_path):
    site = make_environment(tmp_path / "env")
    path = ["/build", site]
    assert torch_path.expose_torch({}, path) == site
    assert path == ["/build", site]


def test_own_environment_taken_off_the_path_is_put_at_the_end(tmp_path, monkeypatch):
    site = make_environment(tmp_path / "env")
    monkeypatch.setattr(torch_path.sysconfig, "get_paths", lambda: {"platlib": site, "purelib": site})
    path = ["/build"]
    assert torch_path.expose_torch({}, path) == site
    assert path[0] == "/build" and site in path[1:]


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX", "TORCH_BUILD_ENV"])
def test_named_environment_is_found(tmp_path, variable):
    site = make_environment(tmp_path / "env")
    path = ["/build"]
    assert torch_path.expose_torch({variable: str(tmp_path / "env")}, path) == site
    assert path == ["/build", site]


def test_environment_along_path_is_found_but_not_a_bare_python(tmp_path):
    site = make_environment(tmp_path / "env")
    bare = make_environment(tmp_path / "bare")
    os.remove(str(tmp_path / "bare" / "pyvenv.cfg"))
    path = ["/build"]
    environ = {"PATH": os.pathsep.join([str(tmp_path / "bare" / "bin"), str(tmp_path / "env" / "bin")])}
    assert torch_path.expose_torch(environ, path) == site
    assert bare not in path


def test_explicit_environment_wins_over_what_is_importable(tmp_path):
    near = make_environment(tmp_path / "near")
    asked = make_environment(tmp_path / "asked")
    path = [near]
    assert torch_path.expose_torch({"TORCH_BUILD_ENV": str(tmp_path / "asked")}, path) == asked
    assert path == [near, asked]


def test_borrowed_packages_are_found(tmp_path):
    lender = make_environment(tmp_path / "lender")
    borrower = make_environment(tmp_path / "borrower", torch=False)
    with open(os.path.join(borrower, "base.pth"), "w") as stream:
        stream.write("import os\n# a comment\n{}\n".format(lender))
    path = []
    assert torch_path.expose_torch({"VIRTUAL_ENV": str(tmp_path / "borrower")}, path) == lender
    # what torch imports may lie in the borrower
    assert path == [borrower, lender]


def test_system_packages_of_an_environment_are_found(tmp_path):
    base = make_environment(tmp_path / "base")
    home = str(tmp_path / "base") if os.name == "nt" else str(tmp_path / "base" / "bin")
    config = "home = {}\ninclude-system-site-packages = true\n".format(home)
    make_environment(tmp_path / "env", torch=False, config=config)
    assert torch_path.expose_torch({"VIRTUAL_ENV": str(tmp_path / "env")}, []) == base


def test_no_torch_is_none_and_changes_nothing(tmp_path):
    make_environment(tmp_path / "env", torch=False)
    path = ["/build"]
    assert torch_path.expose_torch({"VIRTUAL_ENV": str(tmp_path / "env")}, path) is None
    assert path == ["/build"]
