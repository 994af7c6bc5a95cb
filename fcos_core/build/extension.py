"""Finding a library that fits this process, or building one: the second build moment, first use.

Also the call that both moments share: running the worker in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from fcos_core.build import arch, cache, errors, sources, stamp, toolkits
from fcos_core.build.errors import BuildError
from fcos_core.build.lock import FileLock

COMMAND = "python -m fcos_core.build"


def ensure_extension(force=False):
    """Return a library with the operators that fits the torch, Python and sources of this process.

    The installed one if its stamp fits; else the one in the cache; else one is built into the cache, with messages on
    stderr.  Any number of processes may call this at once: one builds, the others wait.

    Args:
        force (bool): build a new one into the cache even if there is one that fits.

    Returns:
        str: path of the library.

    Raises:
        BuildError: with the cause and what to type, if there is none and none can be built.
    """
    csrc = sources.csrc_dir()
    wanted = stamp.collect("" if csrc is None else sources.source_hash(csrc), archs=_archs_wanted())
    installed = os.path.join(package_dir(), stamp.library_name())
    if csrc is None:
        return _without_sources(installed, wanted)
    reason = "asked for" if force else stamp.check(installed, wanted)
    if reason and wanted["kernels"] == "cuda" and not _can_compile_cuda():
        # the CPU kernels and, for some operators, compositions of torch's own serve until there is a toolkit
        wanted = dict(wanted, kernels="cpu", archs="")
        reason = "asked for" if force else stamp.check(installed, wanted)
    if not reason:
        return installed
    return find_or_build(
        wanted, cache.libraries_dir(), lambda folder, log: _compile(csrc, folder, log), reason=reason, force=force
    )


def _archs_wanted():
    """Architectures of the GPUs of this process for its stamp; None where CUDA kernels are not wanted."""
    import torch

    forced = os.environ.get("FORCE_CUDA")
    gpus = [] if forced == "0" else arch.of_gpus(torch)
    return arch.render([(gpu, False) for gpu in gpus]) if gpus or forced == "1" else None


def _can_compile_cuda():
    import torch

    return toolkits.wanted_here(torch)[0] is not None


def package_dir():
    """Return the folder where an installed library lies."""
    return sources.PACKAGE_DIR


def find_or_build(wanted, folder, compile_into, reason="missing", force=False):
    """Return the library of a cache that fits, after building it if need be.

    Args:
        wanted (dict): the stamp that it must fit.
        folder (str): folder of the cache.
        compile_into (callable): called with a folder and the path of a log; puts library and stamp there.
        reason (str): why the installed library is not used, for the message.
        force (bool): build even if there is one.

    Returns:
        str: path of the library.

    Raises:
        BuildError: if the cache cannot be written to or `compile_into` raises it, here or in the process waited for.
    """
    entry = os.path.join(folder, stamp.runtime_digest(wanted))
    library = os.path.join(entry, stamp.library_name())
    if not force and not stamp.check(library, wanted):
        return library
    _make_writable(entry)
    lock = FileLock(os.path.join(entry, "lock"), lambda: _say("waiting for another process, which is building the ops"))
    failure = os.path.join(entry, "failure.json")
    started = time.time()
    with lock:
        if (lock.waited or not force) and not stamp.check(library, wanted):
            return library
        if lock.waited:
            _raise_failure_since(started, failure)
        if lock.held:
            _remove_abandoned(entry)
        _build(wanted, entry, library, failure, compile_into, reason)
    return library


def _make_writable(entry):
    try:
        os.makedirs(entry, exist_ok=True)
        tempfile.TemporaryFile(dir=entry).close()
    except OSError as error:
        raise BuildError(
            "ensure_extension: expected to write to {}, got '{}'; set FCOS_CORE_CACHE to a folder that you may write "
            "to".format(entry, error)
        ) from error


def _remove_abandoned(entry):
    """Remove what a build left that was killed; nobody else builds while the lock is held."""
    for name in os.listdir(entry):
        if name.startswith("build-"):
            shutil.rmtree(os.path.join(entry, name), ignore_errors=True)


def _build(wanted, entry, library, failure, compile_into, reason):
    _say(
        "building the ops for torch {}, about a minute, first use only{}".format(
            wanted["torch"], "" if reason == "missing" else " (the installed library: {})".format(reason)
        )
    )
    started = time.time()
    log = os.path.join(entry, "build.log")
    # beside their final place: a rename within one file system is atomic
    scratch = tempfile.mkdtemp(prefix="build-", dir=entry)
    try:
        compile_into(scratch, log)
        built = os.path.join(scratch, stamp.library_name())
        misfit = stamp.check(built, wanted)
        if misfit:
            raise BuildError(
                "ensure_extension: expected {} to build for this process, got a library {}; is that the Python of "
                "this process, with the same torch first on its path?".format(sys.executable, misfit)
            )
        # the stamp comes last: without one that fits, a library is not used
        os.replace(built, library)
        os.replace(stamp.path_for(built), stamp.path_for(library))
    except BuildError as error:
        with open(failure, "w", encoding="utf-8") as stream:
            json.dump({"message": str(error)}, stream)
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if os.path.exists(failure):
        os.remove(failure)
    _say("built in {:.0f} s: {}".format(time.time() - started, library))


def _raise_failure_since(started, failure):
    """Share the failure of the process that was waited for, instead of failing again for as long."""
    try:
        # a second of grace for file systems with coarse times
        if os.path.getmtime(failure) < started - 1:
            return
        with open(failure) as stream:
            message = json.load(stream)["message"]
    except (OSError, ValueError, KeyError):
        return
    raise BuildError(message)


def _without_sources(installed, wanted):
    """Judge an installed library by all but the sources, which this installation does not have."""
    try:
        with open(stamp.path_for(installed)) as stream:
            wanted = dict(wanted, sources=json.load(stream).get("sources"))
    except (OSError, ValueError):
        pass
    reason = stamp.check(installed, wanted)
    if not reason:
        return installed
    raise BuildError(
        "ensure_extension: expected {} to fit this process, got one {}, and this installation has no sources to build "
        "another; install fcos_core again".format(installed, "that is missing" if reason == "missing" else reason)
    )


def _compile(csrc, folder, log):
    with tempfile.TemporaryDirectory(prefix="fcos_core-") as temporary:
        run_worker(csrc, folder, temporary, log)


def run_worker(csrc, output, temporary, log=None):
    """Compile in a process of its own.

    Args:
        csrc (str): the source folder.
        output (str): folder for the library and its stamp.
        temporary (str): folder for object files, made if need be.
        log (str or None): file for all that the build prints; without one it goes to stdout.

    Raises:
        BuildError: with the first real error and what to type.
    """
    command = [sys.executable, "-m", "fcos_core.build", "--csrc", csrc, "--output", output, "--temp", temporary]
    # The same modules in the same order: first this package, whatever may be installed beside it.
    path = [os.path.dirname(sources.PACKAGE_DIR)] + [os.path.abspath(entry) for entry in sys.path]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path), PYTHONUNBUFFERED="1")
    os.makedirs(temporary, exist_ok=True)
    lines = []
    process = subprocess.Popen(
        command,
        # a folder without modules: -m puts it first on the path
        cwd=temporary,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    stream = open(log, "w", encoding="utf-8", errors="replace") if log else sys.stdout
    encoding = stream.encoding or "ascii"
    try:
        for raw in process.stdout:
            lines.append(raw.decode(errors="replace"))
            # compilers quote with characters that not every terminal can show
            stream.write(lines[-1].encode(encoding, "replace").decode(encoding))
            stream.flush()
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        process.stdout.close()
        if log:
            stream.close()
    if code:
        raise BuildError(_explain("".join(lines), code, log))


def _explain(text, code, log):
    cause = errors.first_error(text) if text.strip() else "the compiling process ended with code {}".format(code)
    if cause.startswith("fcos_core.build: "):  # a message of ours, complete as it stands
        message = cause[len("fcos_core.build: ") :]
    else:
        message = "could not build the fcos_core ops: {}".format(cause)
        hint = errors.advice(text)
        if hint:
            message += "; " + hint
    if log:
        message += " (all of it: {}; to try again: {})".format(log, COMMAND)
    return message


def _say(text):
    print("fcos_core: " + text, file=sys.stderr, flush=True)
