"""Which library `ensure_extension` takes, and real builds of sources that compile in a second."""

import ctypes
import os
import stat
import sys

import pytest

pytest.importorskip("torch")

from fcos_core.build import (  # noqa: E402
    BuildError,
    arch,
    cache,
    cuda,
    ensure_extension,
    extension,
    sources,
    stamp,
    torch_files,
)
from fcos_core.build import __main__ as command  # noqa: E402

# No torch header, hence quick to compile.
LIBRARY = """#include <Python.h>
PyMODINIT_FUNC PyInit__ext(void) { return nullptr; }
extern "C" int answer() { return %d; }
"""
posix = pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for ninja")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A wheel's package folder with sources of its own, and an empty cache."""
    folder = tmp_path / "site" / "fcos_core"
    (folder / "csrc").mkdir(parents=True)
    (folder / "csrc" / "library.cpp").write_text(LIBRARY % 42)
    csrc = str(folder / "csrc")
    monkeypatch.setattr(extension.sources, "csrc_dir", lambda: csrc if os.path.isdir(csrc) else None)
    monkeypatch.setattr(extension, "package_dir", lambda: str(folder))
    monkeypatch.setenv("FCOS_CORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FCOS_CORE_NINJA", raising=False)
    # the same on a machine with a GPU
    monkeypatch.setenv("FORCE_CUDA", "0")
    return folder


def install(package, stamp_of=None):
    """Put a library that was never compiled into the package; with a stamp if one is given."""
    library = package / stamp.library_name()
    library.write_bytes(b"not a library at all")
    if stamp_of is not None:
        stamp.write(stamp_of, str(library))
    return str(library)


def current(package):
    return stamp.collect(sources.source_hash(str(package / "csrc")))


def forbid_build(monkeypatch):
    def build(*arguments, **keywords):
        raise AssertionError("nothing was to be built")

    monkeypatch.setattr(extension, "run_worker", build)


def test_installed_library_is_taken_if_its_stamp_fits(package, monkeypatch):
    forbid_build(monkeypatch)
    library = install(package, current(package))
    assert ensure_extension() == library


def fake_worker(csrc, output, temporary, log=None):
    """In the place of the compiler: a library of the sources' own text."""
    library = os.path.join(output, stamp.library_name())
    with open(os.path.join(csrc, "library.cpp")) as stream, open(library, "w") as target:
        target.write(stream.read())
    stamp.write(stamp.collect(sources.source_hash(csrc)), library)


@pytest.mark.parametrize("kind", ["foreign", "stale", "absent"])
def test_any_other_is_left_alone_and_one_is_built(package, kind, monkeypatch, capfd):
    monkeypatch.setattr(extension, "run_worker", fake_worker)
    if kind == "foreign":
        install(package)
    if kind == "stale":
        install(package, dict(current(package), torch="0.4.1"))
    library = ensure_extension()
    assert library.startswith(cache.libraries_dir())
    messages = capfd.readouterr().err
    assert "some minutes, first use only" in messages
    assert ("built for torch 0.4.1" in messages) == (kind == "stale")


def test_the_package_folder_is_not_written_to(package, monkeypatch):
    """It may lie in a site-packages that belongs to root."""
    monkeypatch.setattr(extension, "run_worker", fake_worker)
    install(package, dict(current(package), torch="0.4.1"))
    before = sorted((name, os.stat(os.path.join(str(package), name)).st_mtime) for name in os.listdir(str(package)))
    mode = os.stat(str(package)).st_mode
    os.chmod(str(package), 0o555)
    try:
        library = ensure_extension()
    finally:
        os.chmod(str(package), mode)
    assert library.startswith(cache.libraries_dir())
    after = sorted((name, os.stat(os.path.join(str(package), name)).st_mtime) for name in os.listdir(str(package)))
    assert after == before


def test_torch_replaced_underneath_is_noticed_by_the_next_process(package, monkeypatch, capfd):
    """The installed library fits, torch is upgraded, another one is built; back again, the first one serves."""
    monkeypatch.setattr(extension, "run_worker", fake_worker)
    first = install(package, current(package))
    assert ensure_extension() == first
    collect = stamp.collect
    monkeypatch.setattr(stamp, "collect", lambda *a, **k: dict(collect(*a, **k), torch="99.0"))
    second = ensure_extension()
    assert second.startswith(cache.libraries_dir())
    said = capfd.readouterr().err
    assert "building the ops for torch 99.0" in said and "built for torch" in said
    assert ensure_extension() == second and "building" not in capfd.readouterr().err
    monkeypatch.setattr(stamp, "collect", collect)
    assert ensure_extension() == first


def test_edited_sources_are_built_again(package, monkeypatch):
    monkeypatch.setattr(extension, "run_worker", fake_worker)
    first = ensure_extension()
    (package / "csrc" / "library.cpp").write_text(LIBRARY % 43)
    second = ensure_extension()
    assert first != second
    with open(second) as stream:
        assert "return 43" in stream.read()


def test_real_build_is_loadable_and_stamped(package):
    library = ensure_extension()
    assert ctypes.CDLL(library).answer() == 42
    assert stamp.check(library, current(package)) == ""


def test_without_sources_a_fitting_library_still_serves(package, monkeypatch):
    forbid_build(monkeypatch)
    library = install(package, current(package))
    os.rename(str(package / "csrc"), str(package / "moved"))
    assert ensure_extension() == library


def test_without_sources_and_library_the_error_says_so(package):
    os.rename(str(package / "csrc"), str(package / "moved"))
    with pytest.raises(BuildError, match="no sources to build another; install fcos_core again"):
        ensure_extension()
    install(package, dict(stamp.collect("aaaa"), torch="0.4.1"))
    with pytest.raises(BuildError, match="built for torch 0.4.1"):
        ensure_extension()


@posix
def test_compiler_behind_a_launcher(package, monkeypatch):
    """CXX="ccache g++": torch takes the first word only."""
    monkeypatch.setenv("CXX", "env g++")
    assert ctypes.CDLL(ensure_extension()).answer() == 42


@pytest.mark.parametrize("toolkit", [True, False])
def test_a_library_without_cuda_kernels_beside_a_gpu(package, monkeypatch, toolkit):
    """With a toolkit there is a better one to build; without, it serves."""
    library = install(package, current(package))
    wanted = []

    def find_or_build(stamp_wanted, folder, compile_into, reason, force):
        wanted.append((stamp_wanted["kernels"], stamp_wanted["archs"], reason))
        return "built"

    monkeypatch.setattr(extension, "_archs_wanted", lambda: "86")
    monkeypatch.setattr(extension, "_can_compile_cuda", lambda: toolkit)
    monkeypatch.setattr(extension, "find_or_build", find_or_build)
    assert ensure_extension() == ("built" if toolkit else library)
    assert wanted == ([("cuda", "86", "built without CUDA kernels")] if toolkit else [])


def test_compiler_error_is_the_message(package):
    (package / "csrc" / "library.cpp").write_text("int good;\nint bad = nowhere;\n")
    with pytest.raises(BuildError, match=r"library\.cpp:2:11: error: .*nowhere.*python -m fcos_core\.build"):
        ensure_extension()


def test_missing_compiler_is_named_with_what_to_install(package, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="expected CXX to name a program, got 'no-such-compiler'"):
        ensure_extension()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    with pytest.raises(BuildError, match="no C.. compiler found; install one"):
        ensure_extension()


@pytest.fixture
def idle_ninja(tmp_path, monkeypatch):
    """A ninja that prints its version and compiles nothing, as after the edit to torch that circulates."""
    script = tmp_path / "bin" / "ninja"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 1.11.1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(script.parent), os.environ["PATH"]]))


@posix
def test_objects_that_ninja_did_not_make_are_named_before_the_link(package, idle_ninja, monkeypatch):
    monkeypatch.setenv("FCOS_CORE_NINJA", "1")
    with pytest.raises(BuildError) as error:
        ensure_extension()
    message = str(error.value)
    assert "got none for" in message and "library.o" in message
    assert "cpp_extension.py was edited" in message and "FCOS_CORE_NINJA=0" in message


@posix
def test_build_helps_itself_without_ninja(package, idle_ninja):
    library = ensure_extension()
    assert ctypes.CDLL(library).answer() == 42
    with open(os.path.join(os.path.dirname(library), "build.log")) as stream:
        assert "trying once more without ninja" in stream.read()


KERNEL = """
__global__ void kernel(float* x) { if (x) x[threadIdx.x] = 1.f; }
int launch() { kernel<<<1, 1>>>(nullptr); return 1; }
"""
CALLER = """#include <Python.h>
#ifdef WITH_CUDA
int launch();
#endif
PyMODINIT_FUNC PyInit__ext(void) { return nullptr; }
extern "C" int answer() {
#ifdef WITH_CUDA
  return 42 + launch();
#else
  return 42;
#endif
}
"""


def test_real_build_with_cuda_kernels(package, monkeypatch):
    """Compiled and linked on a machine that need not have a GPU."""
    import torch

    if not torch.version.cuda or cuda.toolkits.choose(cuda.toolkits.find_toolkits(), torch.version.cuda)[0] is None:
        pytest.skip("no toolkit for this torch")
    (package / "csrc" / "library.cpp").write_text(CALLER)
    (package / "csrc" / "kernel_cuda.cu").write_text(KERNEL)
    monkeypatch.setenv("FORCE_CUDA", "1")
    # a library must fit the GPUs of this process, where there are any
    number = (arch.of_gpus(torch) or [86])[0]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "{}.{}".format(number // 10, number % 10))
    library = ensure_extension()
    built = stamp.read(library)
    assert (built["kernels"], built["archs"]) == ("cuda", str(number))
    assert ctypes.CDLL(library).answer() == 43


def test_state_without_building(package, monkeypatch):
    forbid_build(monkeypatch)
    state = extension.state()
    assert (state["path"], state["reason"], state["has_sources"]) == ("", "missing", True)
    install(package, dict(current(package), torch="0.4.1"))
    assert "built for torch 0.4.1" in extension.state()["reason"]
    library = install(package, dict(current(package), compiler="g++ 12"))
    state = extension.state()
    assert (state["path"], state["reason"], state["kernels"], state["compiler"]) == (library, "", "cpu", "g++ 12")
    os.rename(str(package / "csrc"), str(package / "moved"))
    assert extension.state()["has_sources"] is False and extension.state()["path"] == library


def test_state_knows_the_cache(package, monkeypatch):
    monkeypatch.setattr(extension, "run_worker", fake_worker)
    library = ensure_extension()
    assert extension.state()["path"] == library and extension.state()["reason"] == ""


def test_a_cached_library_with_cuda_kernels_serves_without_its_toolkit(package, monkeypatch):
    """The toolkit of a cluster is a module that is loaded for building only."""
    wanted = dict(current(package), kernels="cuda", archs="86")
    entry = os.path.join(cache.libraries_dir(), stamp.runtime_digest(wanted))
    os.makedirs(entry)
    library = os.path.join(entry, stamp.library_name())
    with open(library, "w") as stream:
        stream.write("library")
    stamp.write(wanted, library)
    forbid_build(monkeypatch)
    monkeypatch.setattr(extension, "_archs_wanted", lambda: "86")
    monkeypatch.setattr(extension, "_can_compile_cuda", lambda: False)
    assert ensure_extension() == library == extension.state()["path"]


@posix
def test_a_broken_ninja_is_no_obstacle(package, tmp_path, monkeypatch):
    script = tmp_path / "bin" / "ninja"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nexit 127\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", os.pathsep.join([str(script.parent), os.environ["PATH"]]))
    library = ensure_extension()
    with open(os.path.join(os.path.dirname(library), "build.log")) as stream:
        assert "without ninja, one file at a time" in stream.read()


# ---- the command


def test_found_without_torch_is_what_torch_finds(package, site, monkeypatch):
    """Absent, in the cache, installed: each time what `ensure_extension` takes."""
    monkeypatch.setattr(extension, "run_worker", fake_worker)
    assert extension.find_extension(site) is None
    cached = ensure_extension()
    assert extension.find_extension(site) == cached
    installed = install(package, current(package))
    assert extension.find_extension(site) == installed == ensure_extension()


def test_found_without_torch_is_nothing_stale(package, site, monkeypatch):
    install(package, dict(current(package), torch="0.4.1"))
    assert extension.find_extension(site) is None
    library = install(package, current(package))
    assert extension.find_extension(site) == library
    with monkeypatch.context() as context:
        # asks for kernels that this library does not have
        context.setenv("FORCE_CUDA", "1")
        assert extension.find_extension(site) is None
    with monkeypatch.context() as context:
        # a driver that cannot be asked
        context.setattr(arch, "of_driver", lambda cuda: None)
        assert extension.find_extension(site) is None
    (package / "csrc" / "library.cpp").write_text(LIBRARY % 43)
    assert extension.find_extension(site) is None


def test_found_without_torch_asks_for_the_gpus_of_the_driver(package, site, monkeypatch):
    monkeypatch.delenv("FORCE_CUDA")
    monkeypatch.setattr(arch, "of_driver", lambda cuda: [86])
    cuda_stamp = dict(current(package), kernels="cuda")
    install(package, dict(cuda_stamp, archs="75"))
    assert extension.find_extension(site) is None
    library = install(package, dict(cuda_stamp, archs="75 86"))
    assert extension.find_extension(site) == library


def test_without_sources_what_is_installed_is_found_without_torch(package, site):
    library = install(package, current(package))
    os.rename(str(package / "csrc"), str(package / "moved"))
    assert extension.find_extension(site) == library
    install(package, dict(current(package), torch="0.4.1"))
    assert extension.find_extension(site) is None


def run_command(package, monkeypatch, capfd, *arguments):
    code = command.main(list(arguments))
    said = capfd.readouterr()
    return code, said.out.strip(), said.err.strip()


def test_command_with_nothing_to_do_leaves_torch_alone(package, site, monkeypatch, capfd):
    library = install(package, current(package))
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises
    monkeypatch.setattr(torch_files, "_is_imported_from", lambda folder: True)
    assert run_command(package, monkeypatch, capfd) == (0, library, "")


@pytest.mark.parametrize("arguments", [[], ["--force"], ["--output", "a", "--temp", "b"]])
def test_command_says_in_a_sentence_that_torch_is_broken(package, site, monkeypatch, capfd, arguments):
    if arguments:
        install(package, current(package))
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = run_command(package, monkeypatch, capfd, *arguments)
    assert code == 1 and not out and len(err.splitlines()) == 1
    assert err.startswith("fcos_core.build: torch is installed but importing it fails (")
    assert "; python -m pip install " in err


def test_command_builds_where_there_is_none(package, monkeypatch, capfd):
    monkeypatch.setattr(extension, "run_worker", fake_worker)
    code, out, err = run_command(package, monkeypatch, capfd)
    assert code == 0 and out.startswith(cache.libraries_dir()) and "some minutes, first use only" in err
    assert run_command(package, monkeypatch, capfd) == (0, out, "")
    code, again, err = run_command(package, monkeypatch, capfd, "--force")
    assert (code, again) == (0, out) and "asked for" in err
