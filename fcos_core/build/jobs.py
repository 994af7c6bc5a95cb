"""Ninja or not, and how many compilers at a time.  Pure decisions on top of small look-ups."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig

from fcos_core.build.errors import BuildError

# One compiler that reads torch's headers with autograd takes 1 to 1.5 GB.
BYTES_PER_JOB = 2 * 1024**3


def use_ninja(environ, system, ninja):
    """Decide whether ninja runs the compilers.

    Off on Windows unless asked for: there the combination has left people with a link error (LNK1181) and no
    compiler output.

    Args:
        environ (dict): environment variables; FCOS_CORE_NINJA is read.
        system (str): `platform.system()`.
        ninja (str or None): path of the ninja program.

    Returns:
        bool: the decision.

    Raises:
        BuildError: if FCOS_CORE_NINJA has another value than 0 or 1, or asks for a ninja that is not there.
    """
    asked = environ.get("FCOS_CORE_NINJA", "")
    if asked not in ("", "0", "1"):
        raise BuildError("use_ninja: expected FCOS_CORE_NINJA to be 0 or 1, got {!r}; unset it".format(asked))
    if asked == "1" and ninja is None:
        raise BuildError("use_ninja: FCOS_CORE_NINJA is 1 but there is no ninja; python -m pip install ninja")
    if asked:
        return asked == "1"
    return ninja is not None and system != "Windows"


def max_jobs(environ, cores, memory):
    """Decide how many compilers run at a time.

    Args:
        environ (dict): environment variables; MAX_JOBS wins if it is a positive number.
        cores (int): processors this process may use.
        memory (int or None): bytes of memory that are free; None if unknown.

    Returns:
        int: at least 1.
    """
    asked = environ.get("MAX_JOBS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    by_memory = cores if memory is None else memory // BYTES_PER_JOB
    return max(1, min(cores, by_memory))


def find_ninja(environ=os.environ):
    """Return the path of a ninja program, or None.

    The `ninja` package puts one into the environment's scripts folder, which is on PATH only where the environment is
    activated; so that folder and the package's own are looked at, too.
    """
    folders = [environ.get("PATH", ""), sysconfig.get_path("scripts"), os.path.dirname(sys.executable)]
    try:
        import ninja

        folders.append(ninja.BIN_DIR)
    except (ImportError, AttributeError):
        pass
    return shutil.which("ninja", path=os.pathsep.join(folder for folder in folders if folder))


def ninja_version(path):
    """Ask a ninja for its version.

    Returns:
        tuple[str, str]: the version, empty if it does not run properly; and what it printed or why it did not start.
    """
    try:
        result = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", str(error)
    output = result.stdout.decode(errors="replace").strip()
    works = result.returncode == 0 and re.match(r"\d+\.\d+", output)
    return (output.split()[0] if works else ""), output[-200:]


def find_working_ninja(environ=os.environ):
    """Return the path of a ninja that runs, or None: a broken one is no reason to stop."""
    path = find_ninja(environ)
    return path if path is not None and ninja_version(path)[0] else None


def available_cores():
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory():
    """Return the bytes of memory that are free here, or None where the system does not say (only Linux does)."""
    if platform.system() != "Linux":
        return None
    limits = []
    try:
        with open("/proc/meminfo") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        return None
    # a container's own limit, first cgroup v2, then v1
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            with open(limit) as first, open(used) as second:
                limits.append(max(0, int(first.read()) - int(second.read())))
            break
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits) if limits else None
