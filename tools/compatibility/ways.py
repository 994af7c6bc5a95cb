"""The ways to install: each one in a new environment, with torch and without, and the operators used afterwards."""

import glob
import os
import re
import shutil
import time

from compatibility import cells, records
from compatibility.steps import ROOT, Environment, StepError, commit, find_python, output_of, work_folder

# torch/Python to try the ways with; "none" stands for an environment without torch, into which torch comes later
CELLS = ("1.7.1/3.7", "2.14.1/3.11", "2.14.1/3.13")

# what torch and its build code need beside it where a way brings no dependencies
_BUILD_PACKAGES = ("numpy", "setuptools<81", "wheel", "ninja")


def _pip(environment, *arguments):
    environment.pip("install the package", "install", "-v", *arguments)


def _no_isolation(environment):
    environment.pip("install what builds", "install", "-U", *_BUILD_PACKAGES)
    _pip(environment, "--no-build-isolation", "-e", ".")


def _setup_py(*words):
    def run(environment):
        environment.pip("install what builds", "install", "-U", *_BUILD_PACKAGES)
        environment.run(" ".join(words), [environment.python, "setup.py"] + list(words))
        if words[0] == "build_ext":
            environment.pip("install what is used", "install", "-v", "yacs", "pillow", "ninja", "numpy")

    return run


def _uv(environment):
    environment.pip("install what builds", "install", "uv", *_BUILD_PACKAGES)
    uv = os.path.join(environment.scripts, "uv")
    environment.run("uv pip install -e .", [uv, "pip", "install", "--python", environment.python, "-v", "-e", "."])


def _wheel(environment):
    folder = os.path.join(environment.folder, "wheels")
    environment.pip("make a wheel", "wheel", "-v", "--no-deps", "-w", folder, ".")
    _pip(environment, glob.glob(os.path.join(folder, "fcos_core*.whl"))[0])


def _sdist(environment):
    environment.pip("install what builds", "install", "-U", *_BUILD_PACKAGES)
    folder = os.path.join(environment.folder, "sdist")
    environment.run("make an sdist", [environment.python, "setup.py", "-q", "sdist", "-d", folder])
    _pip(environment, glob.glob(os.path.join(folder, "fcos_core*.tar.gz"))[0])


def _old_pip(environment):
    environment.pip("install pip 20", "install", "-U", "pip==20.3.4")
    _pip(environment, "-e", ".")


# name -> what is done in an environment; those in the clone leave the package there
WAYS = {
    "pip install -e .": lambda environment: _pip(environment, "-e", "."),
    "pip install .": lambda environment: _pip(environment, "."),
    "pip install --no-build-isolation -e .": _no_isolation,
    "python setup.py develop": _setup_py("develop"),
    "python setup.py build_ext --inplace": _setup_py("build_ext", "--inplace"),
    "uv pip install -e .": _uv,
    "pip wheel .": _wheel,
    "sdist, then pip install": _sdist,
    "pip 20, pip install -e .": _old_pip,
}

_USE = """
import torch
from fcos_core.build import ensure_extension
from fcos_core.layers import _fake, nms
_fake.register = lambda: None  # it wants all operators
kept = nms(torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 29, 29]]), torch.tensor([0.5, 0.9, 0.1]), 0.5)
assert kept.tolist() == [1, 2], kept
print("library", ensure_extension())
"""


def run_all(options):
    """Run the ways that were asked for; returns the exit code."""
    unknown = [name for name in options.ways if name not in WAYS]
    if unknown:
        raise SystemExit("no way {!r}; there are: {}".format(unknown[0], ", ".join(sorted(WAYS))))
    failed = 0
    for text in options.torch or CELLS:
        for present in (True, False):
            for record in run_cell(text, present, options):
                failed += record["result"] != "passed"
                print(records.line(record), flush=True)
                if not options.no_record:
                    records.add("ways", record, ("way", "python", "torch"))
    return 1 if failed else 0


def run_cell(text, present, options):
    """Try the ways with one torch and Python, each in an environment in which there is nothing but torch, or nothing.

    Args:
        text (str): torch and Python, such as "2.14.1/3.11".
        present (bool): whether torch is there before the package is installed.

    Yields:
        dict: a record for each way.
    """
    torch, python = cells.parse(text)
    names = [name for name in options.ways or WAYS if _exists(name, python, present)]
    log = "ways-{}-{}.log".format(text.replace("/", "-"), "torch" if present else "none")
    with work_folder(options.work) as folder:
        environment = Environment(find_python(python, options.pythons), folder, os.path.join(options.logs, log))
        # whatever asks for torch gets this release, and not a newer one of some gigabytes
        constraint = os.path.join(folder, "constraint.txt")
        with open(constraint, "w") as stream:
            stream.write("\n".join(("torch==" + torch.version,) + torch.others) + "\n")
        environment.variables["PIP_CONSTRAINT"] = environment.variables["UV_CONSTRAINT"] = constraint
        if present:
            environment.pip("install torch", "install", "torch", "numpy")
        environment.keep()
        for name in names:
            record = {
                "way": name,
                "torch": torch.version if present else "none, then {}".format(torch.version),
                "python": python,
                "commit": commit(),
                "date": time.strftime("%Y-%m-%d"),
                "result": "failed",
                "reason": "",
            }
            try:
                environment.renew()
                _leave_one_operator(environment.source)
                _try(environment, name, present, record)
                record["result"] = "passed"
            except StepError as error:
                record["reason"] = str(error)
            yield record


def _exists(name, python, present):
    """Whether there is such a way with this Python: pip 20 ends with 3.11, uv begins with 3.8."""
    minor = int(python.split(".")[1])
    if name.startswith("python setup.py build_ext"):
        return present  # it says that it needs torch, otherwise
    if name.startswith("pip 20"):
        return minor <= 11
    return minor >= 8 or not name.startswith("uv")


def _leave_one_operator(source):
    """Take all operators but nms out of a clone: the ways differ in all but what compilers do for minutes."""
    for name in os.listdir(os.path.join(source, "csrc")):
        folder = os.path.join(source, "csrc", name)
        if os.path.isdir(folder) and name != "nms":
            shutil.rmtree(folder)
    os.remove(os.path.join(source, "csrc", "autograd.cpp"))  # half of the rest, and nms has no gradient


def _try(environment, name, present, record):
    start = os.path.getsize(environment.log)
    started = time.time()
    WAYS[name](environment)
    record["install_seconds"] = round(time.time() - started)
    record["pip"] = environment.version_of("pip")
    with open(environment.log, encoding="utf-8", errors="replace") as stream:
        stream.seek(start)
        text = stream.read()
    record["downloaded"] = downloaded(text)
    if present and re.search(r"(?:Downloading|Collecting|Using cached) torch[-=~> ]", text):
        raise StepError("torch was fetched though there was one, see {}".format(environment.log))
    in_tree = name.startswith("python setup.py build_ext")
    folder = environment.source if in_tree else environment.folder
    built = list(glob.glob(os.path.join(_package(environment, folder), "_ext*")))
    # these bring what is required, torch too, before they build
    if (present or name.startswith(("pip 20", "uv"))) != bool(built):
        words = "a library was built without torch" if built else "no library was built though torch was there"
        raise StepError("{}, see {}".format(words, environment.log))
    said = []
    seconds = environment.run("first use", [environment.python, "-c", _USE], folder, on_line=said.append)
    record["first_use_seconds"] = round(seconds)
    library = [line.split(None, 1)[1].strip() for line in said if line.startswith("library ")][-1]
    if built and library not in built:
        raise StepError("the library of the installation was not taken, but {}".format(library))


def _package(environment, folder):
    """Folder of the package that an interpreter started in `folder` imports."""
    code = "import fcos_core, os; print(os.path.dirname(os.path.abspath(fcos_core.__file__)))"
    found = output_of([environment.python, "-c", code], cwd=folder, env=environment.variables)
    if not found or found.startswith(ROOT + os.sep):
        raise StepError("fcos_core is not installed, but {!r} is imported".format(found))
    return found


def downloaded(text):
    """Sum up what pip or uv say that they fetched: number of files and megabytes."""
    factor = {"kB": 1e-3, "KB": 1e-3, "KiB": 1e-3, "MB": 1.0, "MiB": 1.0, "GB": 1e3, "GiB": 1e3}
    sizes = re.findall(r"Downloading \S+ \(([\d.]+) ?(kB|KB|KiB|MB|MiB|GB|GiB)\)", text)
    sizes = [float(number) * factor[unit] for number, unit in sizes]
    return "{} files, {:.0f} MB".format(len(sizes), sum(sizes))
