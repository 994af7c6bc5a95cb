"""Cells of torch and Python: install and test the package as a user does."""

import os
import re
import time
import xml.etree.ElementTree as ElementTree
from typing import NamedTuple, Tuple

from compatibility import records
from compatibility.steps import Environment, StepError, commit, find_python, work_folder


class Torch(NamedTuple):
    """A release of torch, its torchvision, and the Pythons to try it with (the first one unless told)."""

    version: str
    vision: str
    pythons: Tuple[str, ...]
    others: Tuple[str, ...] = ()  # what else a user must ask for with it


# torch before 2.3 was compiled for NumPy 1 and cannot exchange arrays with NumPy 2
_NUMPY_1 = ("numpy<2",)
TORCHES = (
    Torch("1.7.1", "0.8.2", ("3.7", "3.8")),
    Torch("1.8.1", "0.9.1", ("3.8",)),
    Torch("1.9.1", "0.10.1", ("3.9",), _NUMPY_1),
    Torch("1.10.2", "0.11.3", ("3.7",)),
    Torch("1.11.0", "0.12.0", ("3.9",), _NUMPY_1),  # on 3.10 torch.distributed.run itself dies of signal 11 at its end
    Torch("1.12.1", "0.13.1", ("3.8",)),
    Torch("1.13.1", "0.14.1", ("3.10",), _NUMPY_1),
    Torch("2.0.1", "0.15.2", ("3.9",), _NUMPY_1),
    Torch("2.1.2", "0.16.2", ("3.10",), _NUMPY_1),
    Torch("2.2.2", "0.17.2", ("3.11",), _NUMPY_1),
    Torch("2.3.1", "0.18.1", ("3.12",)),
    Torch("2.4.1", "0.19.1", ("3.8",)),
    Torch("2.5.1", "0.20.1", ("3.9",)),
    Torch("2.6.0", "0.21.0", ("3.13",)),
    Torch("2.7.1", "0.22.1", ("3.12",)),
    Torch("2.8.0", "0.23.0", ("3.9",)),
    Torch("2.9.1", "0.24.1", ("3.10",)),
    Torch("2.10.0", "0.25.0", ("3.11",)),
    Torch("2.11.0", "0.26.0", ("3.12",)),
    Torch("2.12.1", "0.27.1", ("3.13",)),
    Torch("2.13.0", "0.28.0", ("3.12",)),
    Torch("2.14.1", "0.29.1", ("3.11",)),
    Torch("2.15.0", "0.29.2", ("3.13",)),
)


def all_cells():
    """List all cells as (Torch, Python version)."""
    return [(torch, python) for torch in TORCHES for python in torch.pythons]


def parse(text):
    """Read a cell such as "2.1.2/3.10" or "2.1.2".

    Returns:
        tuple[Torch, str]

    Raises:
        StepError: if there is no such release in the table.
    """
    version, _, python = text.partition("/")
    for torch in TORCHES:
        if torch.version == version:
            return torch, python or torch.pythons[0]
    raise StepError("no torch {!r} in the table; it has {}".format(version, " ".join(t.version for t in TORCHES)))


def run_all(options):
    """Run the cells that were asked for; returns the exit code."""
    chosen = [parse(text) for text in options.cells]
    if options.all or options.missing:
        chosen += [cell for cell in all_cells() if cell not in chosen]
    if options.missing:
        known = {(r["torch"], r["python"]) for r in records.load()["cells"] if r["commit"] == commit()}
        chosen = [(torch, python) for torch, python in chosen if (torch.version, python) not in known]
    failed = 0
    for torch, python in chosen:
        record = run_cell(torch, python, options)
        failed += record["result"] != "passed"
        print(records.line(record), flush=True)
        if not options.no_record:
            records.add("cells", record, ("torch", "python"))
    return 1 if failed else 0


def run_cell(torch, python, options):
    """Run one cell.

    Returns:
        dict: the record; "result" is "passed" or "failed", and "reason" says why.
    """
    record = {
        "torch": torch.version,
        "torchvision": torch.vision,
        "python": python,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "pytest": options.pytest,
        "result": "failed",
        "reason": "",
    }
    log = os.path.join(options.logs, "torch-{}-python-{}.log".format(torch.version, python))
    try:
        with work_folder(options.work) as folder:
            environment = Environment(find_python(python, options.pythons), folder, log)
            install(environment, torch, record)
            run_tests(environment, options.pytest, record)
        record["result"] = "passed"
    except StepError as error:
        record["reason"] = str(error)
    return record


def install(environment, torch, record):
    """Install torch, then the package, and see that its library was built without warnings and is the one taken."""
    wanted = ["torch==" + torch.version, "torchvision==" + torch.vision] + list(torch.others)
    record["torch_seconds"] = round(environment.pip("install torch", "install", *wanted))
    record["pip"] = environment.version_of("pip")
    watch = BuildWatch(environment.source)
    # the compiler is asked for warnings; all else is what a user types
    seconds = environment.pip(
        "install the package", "install", "-v", "-e", ".[test]", on_line=watch, CFLAGS="-Wall -Wextra"
    )
    record.update(install_seconds=round(seconds), build_seconds=watch.seconds)
    for name in ("torch", "numpy"):
        record[name + "_installed"] = environment.version_of(name)
    if record["torch_installed"].split("+")[0] != torch.version:
        raise StepError("torch {} was replaced by {!r}".format(torch.version, record["torch_installed"]))
    if watch.warnings:
        raise StepError("{} compiler warnings, the first: {}".format(len(watch.warnings), watch.warnings[0]))
    library = []
    environment.run("find the library", [environment.python, "-m", "fcos_core.build"], on_line=library.append)
    if not library[-1].startswith(os.path.join(environment.source, "fcos_core")):
        raise StepError("the library of the installation is not taken, but {}".format(library[-1].strip()))


class BuildWatch:
    """Reads the lines of an installation: how long it compiled, and the warnings about our sources.

    Args:
        source (str): the clone; headers of torch, which lie in a folder csrc too, have warnings of their own.
    """

    def __init__(self, source):
        self.seconds, self.warnings = None, []
        # gcc's and clang's form, nvcc's (file.cu(48): warning #177-D), and that of the assembler of GPU code
        place = r"csrc/\S+?(?::\d+:.*\bwarning:|\(\d+\): [Ww]arning\b).*|ptxas .*\bwarning\b.*"
        self._warning = re.compile(r"^\s*(?:{}/)?({})".format(re.escape(source), place))

    def __call__(self, line):
        done = re.search(r"compiled and linked in (\d+) s", line)
        if done:
            self.seconds = int(done.group(1))
        found = self._warning.match(line)
        if found:
            self.warnings.append(found.group(1).strip())


def run_tests(environment, arguments, record):
    """Run the test suite and count."""
    report = os.path.join(environment.folder, "report.xml")
    command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=" + report]
    code, seconds = environment.attempt("test", command + arguments.split())
    record["test_seconds"] = round(seconds)
    if os.path.exists(report):
        record.update(count(report))
    if code:
        names = record.get("failures", [])
        raise StepError("pytest ended with code {}: {} failed".format(code, len(names)))


def count(report):
    """Count the results in a JUnit report.

    Returns:
        dict: passed, failed, skipped (int; expected failures count as skipped) and failures (list[str], names).
    """
    found = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            found["failed"] += 1
            found["failures"].append("{}::{}".format(case.get("classname"), case.get("name")))
        elif "skipped" in kinds:
            found["skipped"] += 1
        else:
            found["passed"] += 1
    return found
