"""When setup.py starts no compiler: only where a build would give what is there."""

import os
import shutil
import stat
import sys

import pytest

pytest.importorskip("torch")

import setuptools  # noqa: E402

from fcos_core.build import (  # noqa: E402
    BuildError,
    arch,
    commands,
    hostcc,
    inputs,
    stamp,
    toolkits,
    torch_files,
)

posix = pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for a compiler")


@pytest.fixture
def csrc(tmp_path):
    folder = tmp_path / "csrc"
    (folder / "nms").mkdir(parents=True)
    (folder / "library.cpp").write_text("int one();\n")
    (folder / "nms" / "nms.h").write_text("int two();\n")
    return folder


@pytest.fixture
def environ(tmp_path):
    """The environment of a machine with a compiler of its own."""
    program = tmp_path / "c++"
    program.write_text("#!/bin/sh\necho 'c++ 12.2'\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    kept = {name: os.environ[name] for name in ("SYSTEMROOT", "HOME") if name in os.environ}
    return dict(kept, CXX=str(program), PATH=os.environ["PATH"], FORCE_CUDA="0")


def build(folder, wanted):
    """What a build leaves, by the stamp alone."""
    folder.mkdir(exist_ok=True)
    library = folder / stamp.library_name()
    library.write_bytes(b"a library")
    stamp.write(wanted["stamp"], str(library))
    inputs.write(str(folder), wanted)


@posix
def test_made_of_the_same(site, csrc, environ, tmp_path):
    wanted = inputs.collect(site, str(csrc), environ)
    assert not inputs.made(str(tmp_path / "out"), wanted)
    build(tmp_path / "out", wanted)
    again = inputs.collect(site, str(csrc), dict(environ, PYTHONPATH="elsewhere", SHLVL="2"))
    assert inputs.made(str(tmp_path / "out"), again)
    inputs.forget(str(tmp_path / "out"))
    assert not inputs.made(str(tmp_path / "out"), again)
    inputs.forget(str(tmp_path / "out"))


@posix
@pytest.mark.parametrize("name, value", [("CXXFLAGS", "-O0"), ("CPPFLAGS", "-DX"), ("LDFLAGS", "-s"), ("CPATH", "/a")])
def test_flags_of_the_environment_count(site, csrc, environ, tmp_path, name, value):
    build(tmp_path / "out", inputs.collect(site, str(csrc), environ))
    assert not inputs.made(str(tmp_path / "out"), inputs.collect(site, str(csrc), dict(environ, **{name: value})))


@posix
def test_each_file_and_tool_counts(site, csrc, environ, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def made():
        return inputs.made(str(out), inputs.collect(site, str(csrc), environ))

    build(out, inputs.collect(site, str(csrc), environ))
    assert made()
    header = csrc / "nms" / "nms.h"
    text = header.read_text()
    header.write_text(text + "int three();\n")
    assert not made()
    header.write_text(text)
    assert made()
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'c++ 13.1'\n")
    assert not made()
    (tmp_path / "c++").write_text("#!/bin/sh\necho 'c++ 12.2'\n")
    assert made()
    known = torch_files.read(site)
    for change in ({"version": "0.4.1"}, {"cxx11_abi": not known.cxx11_abi}, {"cuda": "9.0"}):
        with monkeypatch.context() as context:
            context.setattr(torch_files, "read", lambda folder: known._replace(**change))  # noqa: B023
            assert not made(), change
    with monkeypatch.context() as context:
        # a torch of the same version in its place
        context.setattr(os.path, "getmtime", lambda path: 7.0)
        assert not made()
    with monkeypatch.context() as context:
        context.setattr(inputs, "_hash_of_this_package", lambda: "other flags")
        assert not made()
    assert made()
    (out / stamp.library_name()).write_bytes(b"another one, of somebody else")
    assert not made()


@posix
def test_gpus_and_toolkits_count_where_kernels_are_wanted(site, csrc, environ, tmp_path, monkeypatch):
    out = tmp_path / "out"
    del environ["FORCE_CUDA"]
    here = {"gpus": [86], "toolkits": [toolkits.Toolkit("/opt/cuda", (12, 4), "usual place")], "host": "works"}
    known = torch_files.read(site)
    monkeypatch.setattr(torch_files, "read", lambda folder: known._replace(cuda="12.4"))
    monkeypatch.setattr(arch, "of_driver", lambda cuda: here["gpus"])
    monkeypatch.setattr(toolkits, "find_toolkits", lambda environ: here["toolkits"])
    monkeypatch.setattr(hostcc, "choose_here", lambda toolkit, environ: here["host"])

    def made():
        return inputs.made(str(out), inputs.collect(site, str(csrc), environ))

    build(out, inputs.collect(site, str(csrc), environ))
    assert made()
    for name, value in (
        ("gpus", [90]),
        ("gpus", []),
        ("toolkits", []),
        ("toolkits", [toolkits.Toolkit("/opt/cuda", (12, 6), "usual place")]),
        ("host", "-ccbin g++-12"),
    ):
        before = here[name]
        here[name] = value
        assert not made(), name
        here[name] = before
    environ["TORCH_CUDA_ARCH_LIST"] = "7.5"
    assert not made()


def test_where_only_a_build_can_tell(site, csrc, environ, monkeypatch, tmp_path):
    assert inputs.collect(None, str(csrc), environ) is None
    assert inputs.collect(str(tmp_path), str(csrc), environ) is None
    assert inputs.collect(site, str(csrc), dict(environ, CXX="no-such-compiler")) is None
    monkeypatch.setattr(arch, "of_driver", lambda cuda: None)
    assert inputs.collect(site, str(csrc), environ) is None
    (tmp_path / "out").mkdir()
    inputs.write(str(tmp_path / "out"), None)
    assert os.listdir(str(tmp_path / "out")) == [] and not inputs.made(str(tmp_path / "out"), None)


# ---- setup.py


@pytest.fixture
def build_ext(site, csrc, environ, tmp_path, monkeypatch):
    """Run setup.py's command; the list holds how often a compiler would have been started."""
    started = []

    def worker(folder, output, temporary):
        started.append(os.path.relpath(folder))
        if os.path.exists("broken"):
            raise BuildError("it does not compile")
        os.makedirs(output, exist_ok=True)
        library = os.path.join(output, stamp.library_name())
        with open(library, "w") as stream:
            stream.write("library {}".format(len(started)))
        stamp.write(inputs.collect(site, folder)["stamp"], library)

    monkeypatch.setattr(commands, "run_worker", worker)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "fcos_core").mkdir()

    def run(force=False, editable=False):
        extension = setuptools.Extension("fcos_core._ext", ["csrc/library.cpp"])
        distribution = setuptools.Distribution(
            {"name": "fcos_core", "packages": ["fcos_core"], "ext_modules": [extension]}
        )
        command = commands.BuildExt(distribution)
        command.inplace, command.force = True, force
        command.ensure_finalized()
        if editable:
            # what setuptools does for `pip install -e .`
            command.editable_mode, command.build_temp = True, str(tmp_path / "temp{}".format(len(os.listdir("."))))
            os.makedirs(command.build_temp)
        command.run()
        with open(os.path.join("fcos_core", stamp.library_name())) as stream:
            return len(started), stream.read()

    return run


@posix
def test_the_second_build_starts_no_compiler(build_ext, csrc, tmp_path, capsys):
    assert build_ext() == (1, "library 1")
    shutil.rmtree(str(tmp_path / "fcos_core"))
    (tmp_path / "fcos_core").mkdir()
    capsys.readouterr()
    # what is missing is put there again
    assert build_ext() == (1, "library 1")
    assert "nothing to compile, the library (without CUDA kernels) is that of" in capsys.readouterr().out
    assert stamp.read(os.path.join("fcos_core", stamp.library_name()))["torch"] == sys.modules["torch"].__version__
    (csrc / "library.cpp").write_text("int four();\n")
    assert build_ext() == (2, "library 2")
    assert build_ext(force=True) == (3, "library 3")
    shutil.rmtree(str(tmp_path / "build"))
    assert build_ext() == (4, "library 4")


@posix
def test_an_editable_installation_once_more_starts_no_compiler(build_ext, tmp_path):
    assert build_ext(editable=True) == (1, "library 1")
    assert build_ext(editable=True) == (1, "library 1")
    assert [name for name in os.listdir(str(tmp_path)) if name.startswith("temp") and os.listdir(name)] == []


@posix
def test_after_a_build_that_failed_the_next_one_compiles(build_ext, csrc, tmp_path):
    assert build_ext() == (1, "library 1")
    (tmp_path / "broken").write_text("")
    text = (csrc / "library.cpp").read_text()
    (csrc / "library.cpp").write_text("int four(;\n")
    with pytest.raises(SystemExit, match="it does not compile"):
        build_ext()
    (tmp_path / "broken").unlink()
    (csrc / "library.cpp").write_text(text)
    # it may have left half of what it made
    assert build_ext() == (3, "library 3")
