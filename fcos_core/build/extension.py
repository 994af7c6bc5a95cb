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

from fcos_core.build import arch, cache, cuda, errors, findings, sources, stamp, torch_files
from fcos_core.build.errors import BuildError
from fcos_core.build.lock import FileLock


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
    csrc, installed, wanted, reason = _look(force)
    if not reason:
        return installed
    if csrc is None:
        raise BuildError("ensure_extension: {}".format(findings.no_sources(reason)))
    return find_or_build(
        wanted, cache.libraries_dir(), lambda folder, log: _compile(csrc, folder, log), reason=reason, force=force
    )


def find_extension(site):
    """Find the library that `ensure_extension` would return, without importing torch, which takes seconds.

    Only to name it: before a library is loaded, it is held against the imported torch.

    Args:
        site (str): the folder that holds torch.

    Returns:
        str or None: path of the library; None where there is none yet, or only torch can tell which one fits.
    """
    torch = torch_files.read(site)
    gpus = None if torch is None else arch.of_driver(torch.cuda)
    if gpus is None:
        return None
    csrc, installed, wanted, reason = _judge(_archs_for(gpus), torch=torch)
    if not reason:
        return installed
    cached = _cached(wanted)
    return None if csrc is None or stamp.check(cached, wanted) else cached


def state():
    """Say what `ensure_extension` would return, without building anything.

    Returns:
        dict: path (str, of the library that fits; "" if there is none), reason (str, why the installed one does not
        fit; "" if one fits), kernels, archs and compiler (str, from the stamp), has_sources (bool).
    """
    csrc, installed, wanted, reason = _look()
    cached = _cached(wanted)
    found = installed if not reason else "" if stamp.check(cached, wanted) else cached
    reason = "" if found else reason
    built = stamp.read(found) if found else {}
    described = {key: built.get(key, "") for key in ("kernels", "archs", "compiler")}
    return dict(described, path=found, reason=reason, has_sources=csrc is not None)


def _look(force=False):
    """Judge the installed library by the imported torch; see `_judge`."""
    csrc, installed, wanted, reason = _judge(_archs_wanted(), force)
    if reason and csrc is not None and wanted["kernels"] == "cuda":
        if stamp.check(_cached(wanted), wanted) and not _can_compile_cuda():
            # the CPU kernels and, for some operators, compositions of torch's own serve until there is a toolkit
            return _judge(None, force)
    return csrc, installed, wanted, reason


def _judge(archs, force=False, torch=None):
    """Hold the installed library against a stamp.

    Args:
        archs (str or None): architectures of the GPUs; None where CUDA kernels are not wanted.
        force (bool): take no installed one if another can be built.
        torch (torch_files.TorchBuild or None): None imports torch and asks.

    Returns:
        tuple: source folder or None, path of the installed library, the stamp that one must fit, and why the installed
        one does not (str, "" if it fits).
    """
    csrc = sources.csrc_dir()
    wanted = stamp.collect("" if csrc is None else sources.source_hash(csrc), archs=archs, torch=torch)
    installed = os.path.join(package_dir(), stamp.library_name())
    if csrc is None:
        # all but the sources, which this installation does not have
        wanted = dict(wanted, sources=stamp.read(installed).get("sources", ""))
    reason = "asked for" if force and csrc is not None else stamp.check(installed, wanted)
    return csrc, installed, wanted, reason


def _cached(wanted):
    """Path where the library with a stamp (dict) lies in the cache."""
    return os.path.join(_entry(wanted, cache.libraries_dir()), stamp.library_name())


def _archs_wanted():
    """Architectures of the GPUs of this process for its stamp; None where CUDA kernels are not wanted."""
    import torch

    return _archs_for([] if os.environ.get("FORCE_CUDA") == "0" else arch.of_gpus(torch))


def _archs_for(gpus):
    forced = os.environ.get("FORCE_CUDA")
    if forced == "0" or not (gpus or forced == "1"):
        return None
    return arch.render([(gpu, False) for gpu in gpus])


def _can_compile_cuda():
    import torch

    return cuda.plan(torch).toolkit is not None


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
    entry = _entry(wanted, folder)
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


def _entry(wanted, folder):
    """Folder of the library with a stamp (dict) below the folder of a cache."""
    return os.path.join(folder, stamp.runtime_digest(wanted))


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
        "building the ops for torch {}, some minutes, first use only{}".format(
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
        message += " (all of it: {}; to try again: {})".format(log, findings.BUILD_COMMAND)
    return message


def _say(text):
    print("fcos_core: " + text, file=sys.stderr, flush=True)
