"""Looking for a library and building one, with a compile function that takes no time."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from fcos_core.build import BuildError, extension, sources, stamp
from fcos_core.build.cache import cache_dir
from fcos_core.build.lock import FileLock

ROOT = os.path.dirname(sources.PACKAGE_DIR)
WANTED = stamp.make("2.0", True, None, "py", "linux", "aaaa", libc="glibc 2.31")


class FakeCompiler:
    """Writes a library with a stamp, and counts."""

    def __init__(self, built=WANTED, error=None):
        self.calls, self.built, self.error = 0, built, error

    def __call__(self, folder, log):
        self.calls += 1
        if self.error:
            raise BuildError(self.error)
        library = os.path.join(folder, stamp.library_name())
        with open(library, "w") as stream:
            stream.write("library {}".format(self.calls))
        stamp.write(self.built, library)


def test_built_once_then_found(tmp_path, capfd):
    compiler = FakeCompiler()
    library = extension.find_or_build(WANTED, str(tmp_path), compiler)
    assert extension.find_or_build(WANTED, str(tmp_path), compiler) == library
    assert compiler.calls == 1
    assert stamp.check(library, WANTED) == ""
    messages = capfd.readouterr().err
    assert "building the ops for torch 2.0, some minutes, first use only" in messages
    assert messages.count("building") == 1
    assert not [name for name in os.listdir(os.path.dirname(library)) if name.startswith("build-")]


def test_another_torch_gets_another_library(tmp_path):
    compiler = FakeCompiler()
    first = extension.find_or_build(WANTED, str(tmp_path), compiler)
    other = dict(WANTED, torch="2.1")
    second = extension.find_or_build(other, str(tmp_path), FakeCompiler(other))
    assert first != second
    assert extension.find_or_build(WANTED, str(tmp_path), compiler) == first
    assert compiler.calls == 1


def test_damaged_library_is_built_again(tmp_path):
    compiler = FakeCompiler()
    library = extension.find_or_build(WANTED, str(tmp_path), compiler)
    with open(library, "w"):
        pass
    extension.find_or_build(WANTED, str(tmp_path), compiler)
    assert compiler.calls == 2
    assert stamp.check(library, WANTED) == ""


def test_force_builds_again_and_says_why(tmp_path, capfd):
    compiler = FakeCompiler()
    extension.find_or_build(WANTED, str(tmp_path), compiler)
    extension.find_or_build(WANTED, str(tmp_path), compiler, reason="asked for", force=True)
    assert compiler.calls == 2
    assert "(the installed library: asked for)" in capfd.readouterr().err


def test_library_for_another_torch_than_this_process_is_not_kept(tmp_path):
    compiler = FakeCompiler(dict(WANTED, torch="1.9"))
    with pytest.raises(BuildError, match="built for torch 1.9, this is 2.0"):
        extension.find_or_build(WANTED, str(tmp_path), compiler)
    with pytest.raises(BuildError):
        extension.find_or_build(WANTED, str(tmp_path), compiler)
    assert compiler.calls == 2


def test_failure_is_raised_and_the_next_try_builds(tmp_path):
    with pytest.raises(BuildError, match="no good"):
        extension.find_or_build(WANTED, str(tmp_path), FakeCompiler(error="no good"))
    compiler = FakeCompiler()
    extension.find_or_build(WANTED, str(tmp_path), compiler)
    assert compiler.calls == 1


def test_remains_of_a_killed_build_are_removed(tmp_path):
    entry = tmp_path / stamp.runtime_digest(WANTED)
    (entry / "build-killed").mkdir(parents=True)
    extension.find_or_build(WANTED, str(tmp_path), FakeCompiler())
    assert not (entry / "build-killed").exists()


def test_cache_that_cannot_be_written_says_which_variable_to_set(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="FCOS_CORE_CACHE"):
        extension.find_or_build(WANTED, str(tmp_path / "file" / "cache"), FakeCompiler())


PROCESS = """
    import os, sys, time
    sys.path.insert(0, sys.argv[1])
    from fcos_core.build import BuildError, extension, stamp
    wanted = stamp.make("2.0", True, None, "py", "linux", "aaaa")

    def compile_into(folder, log):
        with open(os.path.join(sys.argv[2], "calls"), "a") as stream:
            stream.write("x")
        time.sleep(0.5)
        if sys.argv[3] == "fail":
            raise BuildError("no good")
        library = os.path.join(folder, stamp.library_name())
        with open(library, "w") as stream:
            stream.write("library")
        stamp.write(wanted, library)

    # all start together, however long each one takes to get here
    open(os.path.join(sys.argv[2], "ready-{}".format(os.getpid())), "w").close()
    while not os.path.exists(os.path.join(sys.argv[2], "go")):
        time.sleep(0.01)
    try:
        library = extension.find_or_build(wanted, os.path.join(sys.argv[2], "cache"), compile_into)
    except BuildError as error:
        sys.exit(str(error))
    assert stamp.check(library, wanted) == ""
    print(library)
"""


def run_together(number, folder, mode):
    """Run that many processes at once; return their results and how often it was compiled."""
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), ROOT, str(folder), mode]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "universal_newlines": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(number)]
    while len([name for name in os.listdir(str(folder)) if name.startswith("ready-")]) < number:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)
    (folder / "go").write_text("")
    results = [process.communicate() + (process.returncode,) for process in processes]
    return results, len((folder / "calls").read_text())


def test_eight_processes_build_once(tmp_path):
    results, calls = run_together(8, tmp_path, "succeed")
    assert calls == 1
    assert [code for _, _, code in results] == [0] * 8
    assert len({out for out, _, _ in results}) == 1
    assert sum("some minutes" in err for _, err, _ in results) == 1


def test_those_who_wait_share_the_failure(tmp_path):
    results, calls = run_together(4, tmp_path, "fail")
    assert [code for _, _, code in results] == [1] * 4
    assert all("no good" in err for _, err, _ in results)
    assert calls == 1


def test_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    path = str(tmp_path / "lock")
    script = (
        "import sys, time; sys.path.insert(0, {!r}); from fcos_core.build.lock import FileLock\n"
        "with FileLock({!r}): print('held', flush=True); time.sleep(600)"
    ).format(ROOT, path)
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline().strip() == b"held"
        lock = FileLock(path, on_wait=holder.kill)
        with lock:
            assert lock.waited and lock.held
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.mark.parametrize(
    "environ, system, expected",
    [
        ({"FCOS_CORE_CACHE": "/scratch/ops", "XDG_CACHE_HOME": "/xdg"}, "linux", "/scratch/ops"),
        ({"XDG_CACHE_HOME": "/xdg"}, "linux", "/xdg/fcos_core"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "/home/u/.cache/fcos_core"),
        ({}, "linux", "/home/u/.cache/fcos_core"),
        ({}, "darwin", "/home/u/Library/Caches/fcos_core"),
        ({"LOCALAPPDATA": "/local"}, "win32", "/local/fcos_core"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="paths of POSIX")
def test_cache_folder(environ, system, expected):
    assert cache_dir(environ, system, home="/home/u") == expected
