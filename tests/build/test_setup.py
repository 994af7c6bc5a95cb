"""setup.py, the metadata, what travels in wheels and sdists, and that a clean leaves nothing."""

import os
import shutil
import subprocess
import sys
import tarfile

import pytest

from fcos_core.build import backend, commands, metadata, sources

ROOT = os.path.dirname(sources.PACKAGE_DIR)


@pytest.fixture
def clone(tmp_path):
    """A clone reduced to what setup.py looks at."""
    root = tmp_path / "clone"
    (root / "fcos_core").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE"):
        shutil.copy(os.path.join(ROOT, name), str(root))
    (root / "README.md").write_text("# read me\n")
    shutil.copy(os.path.join(ROOT, "fcos_core", "__init__.py"), str(root / "fcos_core"))
    shutil.copytree(
        os.path.join(ROOT, "fcos_core", "build"),
        str(root / "fcos_core" / "build"),
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("csrc/library.cpp", "csrc/nms/nms.h", "csrc/nms/nms.cpp", "configs/fcos/a.yaml"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return root


def run_setup(clone, *arguments):
    environment = dict(os.environ, PYTHONDONTWRITEBYTECODE="1")
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "setup.py"] + list(arguments)
    result = subprocess.run(
        command, cwd=str(clone), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    output = result.stdout.decode(errors="replace")
    assert result.returncode == 0, output
    return output


def listing(root):
    return sorted(
        os.path.relpath(os.path.join(folder, name), str(root))
        for folder, _, names in os.walk(str(root))
        for name in names
    )


def test_sources_and_configs_travel_with_a_wheel(clone, tmp_path):
    target = tmp_path / "lib"
    gone = target / "fcos_core" / "csrc" / "gone.cpp"
    gone.parent.mkdir(parents=True)
    gone.write_text("left by a build before\n")
    run_setup(clone, "build_py", "--build-lib", str(target))
    found = [name.replace(os.sep, "/") for name in listing(target / "fcos_core")]
    assert "build/worker.py" in found
    assert [name for name in found if name.startswith(("csrc", "configs"))] == [
        "configs/fcos/a.yaml",
        "csrc/library.cpp",
        "csrc/nms/nms.cpp",
        "csrc/nms/nms.h",
    ]


def test_all_packages_are_installed_and_nothing_else():
    arguments = commands.setup_arguments(ROOT)
    tops = {name.split(".")[0] for name in arguments["packages"]}
    assert tops == {"fcos_core", "atss_core", "fcos"} and "atss_core.config" in arguments["packages"]
    assert os.path.isfile(os.path.join(ROOT, "fcos", "models.json")) and "*.json" in arguments["package_data"]["fcos"]


def test_an_sdist_holds_all_that_building_needs(clone, tmp_path):
    run_setup(clone, "sdist", "--formats=gztar", "--dist-dir", str(tmp_path / "dist"))
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(str(archive)) as stream:
        names = {name.split("/", 1)[1] for name in stream.getnames() if "/" in name}
    for needed in (
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "fcos_core/build/backend.py",
        "csrc/library.cpp",
        "csrc/nms/nms.h",
        "configs/fcos/a.yaml",
    ):
        assert needed in names


def test_clean_leaves_the_tree_as_cloned(clone):
    before = listing(clone)
    for name in (
        "build/temp/a.o",
        "dist/a.whl",
        "fcos_core.egg-info/PKG-INFO",
        "fcos_core/_ext.cpython-311-x86_64-linux-gnu.so",
        "fcos_core/_ext.cpython-311-x86_64-linux-gnu.so.json",
        "fcos_core/_ext.pyd",
        ".pytest_cache/README.md",
        "fcos_core/build/__pycache__/a.pyc",
    ):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("")
    output = run_setup(clone, "clean")
    assert listing(clone) == before
    assert "removing build" in output and "_ext.pyd" in output


def test_without_torch_the_installation_goes_on_and_says_when_ops_are_built(monkeypatch, capsys):
    monkeypatch.setattr(commands, "expose_torch", lambda: None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    assert "ext_modules" not in commands.setup_arguments(ROOT)
    assert "they will be at first use" in capsys.readouterr().err


def test_without_torch_asking_for_the_extension_alone_is_an_error(monkeypatch):
    monkeypatch.setattr(commands, "expose_torch", lambda: None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "build_ext", "--inplace"])
    with pytest.raises(SystemExit, match="build_ext needs torch"):
        commands.setup_arguments(ROOT)


def test_with_torch_the_extension_is_declared_with_relative_sources(monkeypatch):
    monkeypatch.setattr(commands, "expose_torch", lambda: "somewhere")
    (extension,) = commands.setup_arguments(ROOT)["ext_modules"]
    assert extension.name == "fcos_core._ext"
    assert "csrc/library.cpp" in extension.sources


def test_backend_never_asks_for_a_torch_of_its_own():
    for name in ("wheel", "sdist", "editable"):
        hook = getattr(backend, "get_requires_for_build_" + name, None)
        assert hook is None or hook() == []


def test_metadata_for_an_old_setuptools_is_that_of_pyproject():
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = pytest.importorskip("tomli")
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as stream:
        content = tomllib.load(stream)
    project = content["project"]
    read = metadata.read(ROOT)
    assert metadata.dependencies(ROOT) == content["tool"]["fcos_core"]["dependencies"]
    assert "dependencies" in project["dynamic"]
    assert read["extras_require"] == project["optional-dependencies"]
    assert read["classifiers"] == project["classifiers"]
    assert read["python_requires"] == project["requires-python"]
    assert read["entry_points"] == {
        "console_scripts": ["{} = {}".format(name, target) for name, target in project["scripts"].items()]
    }
    assert (read["name"], read["description"]) == (project["name"], project["description"])
    import fcos_core

    assert read["version"] == fcos_core.__version__


def test_dependencies_leave_the_torch_that_is_there_alone(tmp_path, monkeypatch):
    """NumPy 2 beside torch 2.1, or a torchvision that wants another torch, would break what worked before."""
    (tmp_path / "torch").mkdir()
    for version, narrowed in (("1.7.1", True), ("2.2.2+cu121", True), ("2.3.1", False), ("2.14.1+cu130", False)):
        (tmp_path / "torch" / "version.py").write_text("__version__ = '{}'\ndebug = False\n".format(version))
        monkeypatch.setattr(commands, "expose_torch", lambda: str(tmp_path))
        needed = commands.setup_arguments(ROOT)["install_requires"]
        assert ("numpy<2" in needed) == ("opencv-python<4.12" in needed) == narrowed, version
        assert ("numpy" in needed) == ("opencv-python" in needed) == (not narrowed), version
        assert "torch>=1.7" in needed and not [name for name in needed if name.startswith("torchvision")]
    monkeypatch.setattr(commands, "expose_torch", lambda: None)
    assert {"numpy", "torch>=1.7", "torchvision"} <= set(commands.setup_arguments(ROOT)["install_requires"])


def test_the_one_setuptools_that_misreads_pyproject_is_named(monkeypatch):
    monkeypatch.setattr(commands.setuptools, "__version__", "61.3.1")
    with pytest.raises(SystemExit, match="setuptools 61 misreads"):
        commands.setup_arguments(ROOT)


def test_which_setuptools_reads_pyproject():
    assert [metadata.setuptools_reads_pyproject(v) for v in ("47.1.0", "60.10.0", "61.0", "84.2.1")] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize("option, fetched", [(None, True), ("no_deps", False), ("uninstall", False)])
def test_develop_leaves_to_pip_what_is_required(option, fetched, monkeypatch):
    seen, called = [], []

    class Old:
        no_deps = uninstall = False

        def run(self):
            seen.append(self.no_deps)

    monkeypatch.setattr(subprocess, "call", lambda command: called.append(command) or 0)
    command = commands.develop_command(["yacs", "torch>=1.7"], Old)()
    if option:
        setattr(command, option, True)
    command.run()
    assert seen == [True]  # easy_install has nothing to do
    assert called == ([[sys.executable, "-m", "pip", "install", "yacs", "torch>=1.7"]] if fetched else [])


def test_develop_says_what_to_type_where_pip_fails(monkeypatch):
    base = type("Old", (), {"no_deps": False, "uninstall": False, "run": lambda self: None})
    monkeypatch.setattr(subprocess, "call", lambda command: 1)
    with pytest.raises(SystemExit, match="python -m pip install -e ."):
        commands.develop_command(["yacs"], base)().run()


def test_an_old_setuptools_is_named_where_no_fallback_is():
    """pip must see no hook, to fall back; uv shows what the attempt to take it raises."""
    assert hasattr(backend, "build_editable") == hasattr(backend._setuptools, "build_editable")
    with pytest.raises(AttributeError, match="setuptools .* pip install -U 'setuptools>=64"):
        backend.__getattr__("build_editable")
