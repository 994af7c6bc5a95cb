"""What an environment says about itself, asked in a process of its own.

A package that was built for another NumPy or torch can end the process that imports it, and a driver can keep it
waiting for ever.  So the doctor runs `python -m fcos_core.build.probe NAME...`, which imports one thing after the other
and prints a line of json before and after each; who dies is known, and the rest is asked by another process.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
import time
import warnings

# imports and drivers print, too: our lines begin with this
MARK = "@fcos_core "
TORCH, LIBRARY = "torch", "library"
# how long one answer may take: importing torch from a cold network disk does
SECONDS = 180.0


# ---- inside the process


def main(names):
    """Ask for each name and print what came out."""
    for name in names:
        _print({"trying": name})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = {TORCH: torch_facts, LIBRARY: library_facts}.get(name, lambda name=name: package_facts(name))()
        # some imports raise what is no Exception, such as SystemExit
        except BaseException as error:
            found = {"error": one_line(error)}
        _print(dict(found, name=name))


def _print(content):
    sys.stdout.write("\n{}{}\n".format(MARK, json.dumps(content)))
    sys.stdout.flush()


def one_line(error):
    """Write an exception as "Type: first line of its message", cut where it gets long."""
    lines = str(error).strip().splitlines() or [""]
    return "{}: {}".format(type(error).__name__, lines[0])[:500].rstrip(": ")


def package_facts(name):
    """Version of a package; `name` is what is imported."""
    module = importlib.import_module(name)
    if name == "pycocotools":
        # the compiled part is what breaks
        importlib.import_module("pycocotools._mask")
    return {"version": str(getattr(module, "__version__", "")) or _version_by_metadata(name)}


def _version_by_metadata(name):
    try:
        from importlib import metadata  # Python 3.8

        return metadata.version(name)
    except Exception:
        pass
    try:
        import pkg_resources

        return pkg_resources.get_distribution(name).version
    except Exception:
        return ""


def torch_facts():
    """Version, build and GPUs of torch."""
    import torch

    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or ""
    found = {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "cxx11_abi": bool(torch.compiled_with_cxx11_abi()),
        "archs": flags.split(),
        "folder": os.path.dirname(torch.__file__),
        "numpy_error": "",
        "gpus": [],
        "gpu_error": "",
    }
    try:
        import numpy

        torch.from_numpy(numpy.zeros(1, dtype=numpy.float32)).numpy()
    except Exception as error:
        found["numpy_error"] = one_line(error)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            available = torch.cuda.is_available()
        if said and not available:
            found["gpu_error"] = one_line(said[-1].message)
        for index in range(torch.cuda.device_count() if available else 0):
            properties = torch.cuda.get_device_properties(index)
            arch = 10 * properties.major + properties.minor
            found["gpus"].append({"name": properties.name, "arch": arch, "memory": properties.total_memory})
    except Exception as error:
        found["gpu_error"] = one_line(error)
    return found


def library_facts():
    """State of the library of operators, and what a build would do about CUDA."""
    import torch

    from fcos_core.build import cuda, extension
    from fcos_core.build.errors import BuildError

    found = extension.state()
    try:
        plan = cuda.plan(torch)
        found.update(plan=plan.why, plan_toolkit=plan.toolkit.home if plan.toolkit else "", plan_archs=plan.archs)
    except BuildError as error:
        found.update(plan=str(error), plan_toolkit="", plan_archs="")
    return found


# ---- from outside


def ask(names, seconds=SECONDS):
    """Ask about each name, in as few processes as it takes.

    Args:
        names (list[str]): packages by what is imported; `TORCH` and `LIBRARY` for more than a version.
        seconds (float): how long one name may take.

    Returns:
        dict[str, dict]: name -> what was found; {"error": ...} where that failed or ended the process, with
        "unanswered": True where it took too long.
    """
    answers, left = {}, list(names)
    while left:
        for line in lines([sys.executable, "-m", "fcos_core.build.probe"] + left, seconds):
            if "trying" in line:
                current = line["trying"]
                answers[current] = None
            elif "ended" in line:
                break
            else:
                answers[line.pop("name")] = line
        started = [name for name in left if name in answers]
        if not started:
            answers[left[0]] = {"error": "the process does not start: {}".format(line["ended"])}
        for name in started:
            if answers[name] is None:
                answers[name] = {"error": line["ended"] or "the process ended", "unanswered": line.get("late", False)}
        left = [name for name in left if name not in answers]
    return answers


def lines(command, seconds, stderr=subprocess.DEVNULL):
    """Run a command that prints marked lines of json, with the modules of this process.

    Args:
        command (list[str]): what to run.
        seconds (float): how long it may be silent.
        stderr: as for `subprocess.Popen`; None shows it.

    Yields:
        dict: each line; at last {"ended": how (str, "" if well), "late": whether it was silent for too long}.
    """
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [root] + [os.path.abspath(entry) for entry in sys.path]
    process = subprocess.Popen(
        command,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(path)),
        # -m puts the current folder first on the path
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )
    deadline = _Deadline(process, seconds)
    try:
        for raw in process.stdout:
            line = raw.decode(errors="replace")
            if line.startswith(MARK):
                deadline.move()
                yield json.loads(line[len(MARK) :])
        code = process.wait()
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    how = "no answer within {:.0f} s".format(seconds) if deadline.passed else _end_of(code)
    yield {"ended": how, "late": deadline.passed}


def _end_of(code):
    if code == 0:
        return ""
    if code < 0:
        return "the process was ended by signal {}".format(-code)
    return "the process ended with code {}".format(code if code < 2**31 else hex(code))


class _Deadline(object):
    """Kills a process that prints nothing for a time."""

    def __init__(self, process, seconds):
        self.passed = False
        self._process, self._seconds = process, seconds
        self._end = time.time() + seconds
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        while not self._over.wait(max(0.0, self._end - time.time())):
            if time.time() >= self._end:
                self.passed = True
                self._process.kill()
                return

    def move(self):
        """Begin anew to count."""
        self._end = time.time() + self._seconds

    def cancel(self):
        """Count no more."""
        self._over.set()


if __name__ == "__main__":
    main(sys.argv[1:])
