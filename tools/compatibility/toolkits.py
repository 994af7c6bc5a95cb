"""CUDA toolkits: compile for all architectures, link with a torch of the same CUDA major version, load."""

import os
import re
import sys
import time

from compatibility import cells, records
from compatibility.steps import ROOT, Environment, StepError, commit, find_python, work_folder

sys.path.insert(0, ROOT)

from fcos_core.build import arch  # noqa: E402
from fcos_core.build import toolkits as found_toolkits  # noqa: E402

# major version of CUDA -> torch whose default wheel is made with it
TORCH_OF = {10: "1.12.1", 11: "2.0.1", 12: "2.10.0", 13: "2.14.1"}
# architectures below are compiled by old toolkits only
OLDEST = 50


def run_all(options):
    """Run each toolkit that was asked for; returns the exit code."""
    failed = 0
    for home in options.homes:
        record = run_toolkit(home, options)
        failed += record["result"] != "passed"
        print(records.line(record), flush=True)
        if not options.no_record:
            records.add("toolkits", record, ("cuda", "torch"))
    return 1 if failed else 0


def run_toolkit(home, options):
    """Run one toolkit; returns its record as `cells.run_cell` does."""
    version = found_toolkits.read_version(home) or (0, 0)
    cuda = "{}.{}".format(*version)
    record = {
        "cuda": cuda,
        "torch": TORCH_OF.get(version[0], ""),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "result": "failed",
        "reason": "",
    }
    log = os.path.join(options.logs, "cuda-{}.log".format(cuda))
    try:
        if version[0] not in TORCH_OF:
            raise StepError("{} has no nvcc of CUDA {}".format(home, ", ".join(map(str, TORCH_OF))))
        torch, python = cells.parse(record["torch"])
        numbers = [number for number in arch.known_to(home) if number >= OLDEST]
        record["archs"] = " ".join(map(str, numbers))
        with work_folder(options.work) as folder:
            environment = Environment(find_python(python, options.pythons), folder, log)
            wanted = ["torch==" + torch.version, "setuptools<81", "wheel", "ninja", "numpy"] + list(torch.others)
            environment.pip("install torch", "install", *wanted)
            build(environment, home, numbers, record)
        record["result"] = "passed"
    except StepError as error:
        record["reason"] = str(error)
    return record


def build(environment, home, numbers, record):
    """Compile, link and load the library for all architectures, warnings being errors."""
    command = [environment.python, "-m", "fcos_core.build", "--output", os.path.join(environment.folder, "library")]
    watch, said = cells.BuildWatch(environment.source), []
    environment.run(
        "build",
        command + ["--temp", os.path.join(environment.folder, "objects")],
        on_line=lambda line: (watch(line), said.append(line)),
        CUDA_HOME=home,
        FORCE_CUDA="1",
        TORCH_CUDA_ARCH_LIST=";".join("{}.{}".format(*divmod(number, 10)) for number in numbers),
        CFLAGS="-Wall -Wextra",
    )
    text = "".join(said)
    record["build_seconds"] = watch.seconds
    named = re.search(r"building the fcos_core ops .* with (.*?), (?:ninja|without)", text)
    record["compiler"] = named.group(1) if named else ""
    if "CUDA kernels: " not in text or "no CUDA kernels: " in text:
        raise StepError("no CUDA kernels were built, see {}".format(environment.log))
    if watch.warnings:
        raise StepError("{} compiler warnings, the first: {}".format(len(watch.warnings), watch.warnings[0]))
    code = (
        "import torch; from fcos_core.build import stamp; import sys, os; "
        "torch.ops.load_library(os.path.join(sys.argv[1], stamp.library_name())); "
        "assert torch.ops.fcos_core._built_with_cuda()"
    )
    environment.run("load", [environment.python, "-c", code, os.path.join(environment.folder, "library")])
