"""What all cells are made of: commands with a log, clones, environments, interpreters."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class StepError(Exception):
    """A step failed; the message says which, and where its log is."""


def find_python(version, pythons):
    """Return the interpreter for a version such as "3.9": one that was named, else pythonX.Y on PATH.

    Raises:
        StepError: if there is none that runs.
    """
    path = pythons.get(version) or shutil.which("python" + version)
    said = output_of([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]) if path else ""
    if said != version:
        raise StepError("no Python {0}; name one with --python {0}=PATH".format(version))
    return path


def output_of(command, **keywords):
    """Return what a command prints, stripped; an empty string if it fails."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **keywords
        )
    except OSError:
        return ""
    return result.stdout.decode(errors="replace").strip() if result.returncode == 0 else ""


def commit():
    """Return the short hash of the commit that is tested."""
    found = output_of(["git", "-C", ROOT, "rev-parse", "--short=10", "HEAD"])
    if not found:
        raise StepError("{} is no git repository; cells are run in a clone of one".format(ROOT))
    return found


@contextlib.contextmanager
def work_folder(parent=None):
    """A folder that is gone afterwards, whatever happened."""
    folder = tempfile.mkdtemp(prefix="fcos_core-matrix-", dir=parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clone(folder, name):
    """Clone this repository's last commit into a new folder; returns its path."""
    target = os.path.join(folder, name)
    # hard links would let a step reach into this repository
    result = subprocess.run(
        ["git", "clone", "-q", "--no-hardlinks", ROOT, target],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if result.returncode:
        raise StepError("git clone failed: {}".format(result.stdout.decode(errors="replace").strip()))
    return target


def _link_tree(source, target):
    """Copy a folder with links to its files; pip replaces files and writes into none, so a copy stays what it is."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


class Environment:
    """A virtual environment with a clone beside it, and a log of all that is run there.

    Args:
        python (str): interpreter to make it with.
        folder (str): where it is made.
        log (str): path of the log.
    """

    def __init__(self, python, folder, log):
        self.folder, self.log = folder, log
        os.makedirs(os.path.dirname(log), exist_ok=True)
        open(log, "w").close()
        self.venv = os.path.join(folder, "venv")
        self.scripts = os.path.join(self.venv, "Scripts" if os.name == "nt" else "bin")
        self.python = os.path.join(self.scripts, "python")
        self.source = clone(folder, "fcos_core-source")
        self.variables = _variables(folder)
        self.run("make the environment", [python, "-m", "venv", self.venv], folder)

    def run(self, step, command, cwd=None, on_line=None, **variables):
        """Run a command with its output in the log.

        Args:
            step (str): what it is, for messages.
            command (list[str]): the command.
            cwd (str or None): folder; default the clone.
            on_line (callable or None): called with each line as it comes.
            variables (str): more environment variables.

        Returns:
            float: seconds.

        Raises:
            StepError: if it ends with another code than 0.
        """
        code, seconds = self.attempt(step, command, cwd, on_line, **variables)
        if code:
            raise StepError("{}: ended with code {}, see {}".format(step, code, self.log))
        return seconds

    def attempt(self, step, command, cwd=None, on_line=None, **variables):
        """As `run`; returns the exit code and seconds."""
        environment = dict(self.variables, **variables)
        started = time.time()
        with open(self.log, "a", encoding="utf-8", errors="replace") as stream:
            stream.write("\n=== {}: {}\n".format(step, " ".join(command)))
            stream.flush()
            process = subprocess.Popen(
                command,
                cwd=cwd or self.source,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            try:
                for raw in process.stdout:
                    line = raw.decode(errors="replace")
                    stream.write(line)
                    stream.flush()
                    if on_line is not None:
                        on_line(line)
                code = process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                process.stdout.close()
        return code, time.time() - started

    def keep(self):
        """Keep the environment as it is now, for `renew`."""
        _link_tree(self.venv, self.venv + "-kept")

    def renew(self):
        """Bring back what `keep` kept, and take a new clone and an empty cache: as if nothing had been installed."""
        for folder in (self.venv, self.source, self.variables["FCOS_CORE_CACHE"]):
            shutil.rmtree(folder, ignore_errors=True)
        _link_tree(self.venv + "-kept", self.venv)
        # another name, so that nothing finds what lay in the former one
        self.clones = getattr(self, "clones", 0) + 1
        self.source = clone(self.folder, "fcos_core-source-{}".format(self.clones))

    def pip(self, step, *arguments, **keywords):
        """Run the environment's own pip; returns seconds."""
        return self.run(step, [self.python, "-m", "pip"] + list(arguments), **keywords)

    def version_of(self, module):
        """Return the version that a module gives of itself, or an empty string."""
        code = "import {0}; print({0}.__version__)".format(module)
        return output_of([self.python, "-c", code], cwd=self.folder, env=self.variables)


def _variables(folder):
    """The environment variables of this process without those that would reach into the environment or out of it."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "FORCE_CUDA", "OMP_NUM_THREADS", "MAX_JOBS")
    variables = {name: value for name, value in os.environ.items() if name not in dropped}
    variables.update(
        PYTHONNOUSERSITE="1",
        PYTHONDONTWRITEBYTECODE="1",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PIP_NO_INPUT="1",
        PIP_NO_CACHE_DIR="1",
        MPLBACKEND="Agg",
        # operators that cannot be compiled are an error here
        FCOS_CORE_FALLBACK="0",
        FCOS_CORE_CACHE=os.path.join(folder, "cache"),
    )
    return variables
