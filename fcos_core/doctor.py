"""`python -m fcos_core.doctor`: does training work here, and what to type if not.

Prints the facts (torch, GPUs, driver, CUDA toolkits, compilers, packages, the library of operators), then findings in
order of weight, each with its cause and remedy, a verdict in one sentence, and a self-test of each operator on each
device, which builds the operators first if need be.  The exit status is 0 only if training would work.

Nothing that may be broken is imported here: torch and the packages are asked in processes of their own.
"""

import argparse
import json
import sys

from fcos_core.build import diagnose, facts, findings, probe, toolkits, variables
from fcos_core.build.findings import LIMITS, NOTE, STOPS

_TITLES = {STOPS: "STOPS", LIMITS: "limits", NOTE: "note"}


def main(arguments=None):
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fcos_core.doctor", description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", action="store_true", help="print one json document instead of text")
    parser.add_argument("--cpu", action="store_true", help="judge a training with MODEL.DEVICE cpu; test no GPU")
    parser.add_argument("--no-self-test", action="store_true", help="neither build nor run the operators")
    options = parser.parse_args(arguments)
    known = facts.collect()
    found = diagnose.diagnose(known, options.cpu)
    works, sentence = diagnose.verdict(known, found, options.cpu)
    if not options.json:
        _print_lines(_fact_lines(known) + [""] + _finding_lines(found) + ["", sentence, ""])
    rows = []
    if known.torch and not known.torch.error and not options.no_self_test and not _unbuildable(found):
        rows = self_test(_devices(known, options.cpu), print_row=None if options.json else _print_row)
        failures = [findings.self_test_failed(row["op"], row["device"], row["error"]) for row in rows if row["error"]]
        failures += [findings.not_compiled(row["remark"]) for row in rows[:1] if row["remark"] and not row["error"]]
        if failures:
            found = findings.in_order(failures + found)
            works, sentence = diagnose.verdict(known, found, options.cpu)
        if not options.json:
            passed = sum(not row["error"] for row in rows)
            _print_lines(["self-test: {} of {} passed".format(passed, len(rows))])
            _print_lines([""] + _finding_lines(failures) + ["", sentence] if failures else [])
    if options.json:
        print(json.dumps(as_json(known, found, works, sentence, rows), indent=1))
    return 0 if works else 1


def as_json(known, found, works, sentence, rows):
    """Put everything into plain types: facts, findings, verdict, self_test."""
    return {
        "facts": _plain(known),
        "findings": [_plain(finding) for finding in found],
        "verdict": {"works": works, "sentence": sentence},
        "self_test": rows,
    }


def _plain(value):
    if hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# ---- text


def _print_lines(lines):
    # not every terminal can show what compilers and drivers say about themselves
    encoding = sys.stdout.encoding or "ascii"
    for line in lines:
        print(line.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _fact_lines(known):
    rows = [("Python", "{}.{}.{} ({}), {}".format(*(known.python + (known.executable, known.platform))))]
    rows += _torch_rows(known) + _gpu_rows(known) + _tool_rows(known) + _library_rows(known)
    rows.append(("packages", ", ".join(_package(name, known.packages[name]) for name in sorted(known.packages))))
    for name, value in sorted(known.environ.items()):
        rows.append((name, "{!r}: {}".format(value, variables.VARIABLES.get(name, "a CUDA toolkit"))))
    width = max(len(name) for name, _ in rows)
    return ["{:<{}}  {}".format(name, width, text) for name, text in rows]


def _package(name, package):
    return "{} {}".format(name, "({})".format(package.error) if package.error else package.version or "(no version)")


def _torch_rows(known):
    torch = known.torch
    if torch is None or torch.error:
        return [("torch", torch.error if torch else "not installed")]
    build = "CUDA {}".format(torch.cuda) if torch.cuda else "ROCm {}".format(torch.hip) if torch.hip else "CPU build"
    abi = "new" if torch.cxx11_abi else "old"
    text = "{} ({}, {} C++ ABI) in {}".format(torch.version, build, abi, torch.folder)
    return [("torch", text)] + [("torch has code for", " ".join(torch.archs))] * bool(torch.archs)


def _gpu_rows(known):
    rows = []
    if known.driver:
        cuda = "{}.{}".format(*known.driver.cuda) if known.driver.cuda else "unknown"
        rows.append(("driver", "{} (serves CUDA up to {})".format(known.driver.version, cuda)))
    gpus = known.torch.gpus if known.torch else ()
    for index, gpu in enumerate(gpus):
        rows.append(("GPU {}".format(index), "{}, sm_{}, {} MB".format(gpu.name, gpu.arch, gpu.memory // 2**20)))
    if not gpus:
        others = ", ".join(gpu.name for gpu in known.driver.gpus) if known.driver else ""
        rows.append(("GPU", "none that torch can use" + (" (the driver lists {})".format(others) if others else "")))
    return rows


def _tool_rows(known):
    tools, torch = known.tools, known.torch
    taken, why = None, ""
    if torch and torch.cuda:
        taken, why = toolkits.choose(tools.toolkits, torch.cuda)
    rows = [("CUDA toolkit", "{}{}".format(one, " <- a build takes this one" if one == taken else ""))
            for one in tools.toolkits] or [("CUDA toolkit", "none")]  # fmt: skip
    if taken:
        limit = facts.hostcc.limits(taken.home, taken.version)
        flags = ["a build gives it {}".format(" ".join(known.host.flags))] if known.host and known.host.flags else []
        newest = "nvcc takes gcc up to {}, clang up to {}".format(limit.gcc or "?", limit.clang or "?")
        rows.append(("why this one", why))
        rows.append(("nvcc's compiler", "; ".join([known.host_default or "none", newest] + flags)))
    rows.append(("C++ compiler", tools.compiler or "none on PATH"))
    ninja = "{} ({})".format(tools.ninja_version or "does not run", tools.ninja) if tools.ninja else "none"
    rows.append(("ninja", ninja))
    rows.append(("setuptools", tools.setuptools or "none"))
    return rows


def _library_rows(known):
    library = known.library
    if library is None:
        return []
    if library.error:
        return [("operators", library.error)]
    if library.path:
        kernels = "CUDA kernels for {}".format(library.archs) if library.kernels == "cuda" else "CPU kernels"
        return [("operators", "{} ({}, compiled by {})".format(library.path, kernels, library.compiler))]
    rows = [("operators", "none that fits: {}".format(library.reason))]
    return rows + [("CUDA kernels", library.plan)] * bool(library.plan)


def _finding_lines(found):
    lines = []
    for finding in found:
        lines.append("{:<6}  {}: {}".format(_TITLES[finding.weight], finding.name, finding.cause))
        lines += ["        -> {}".format(finding.remedy)] * bool(finding.remedy)
    return lines or ["no findings"]


# ---- self-test


def _unbuildable(found):
    names = ("library-unbuildable", "library-refused", "sources-missing")
    return any(finding.name in names and finding.weight == STOPS for finding in found)


def _devices(known, cpu_only):
    return ["cpu"] + ["cuda:{}".format(index) for index in range(0 if cpu_only else len(known.torch.gpus))]


def self_test(devices, print_row=None, seconds=1800.0):
    """Run every operator on every device, in a process of its own, which a crash or a hang does not outlive.

    Args:
        devices (list[str]): such as ["cpu", "cuda:0"].
        print_row (callable or None): called with each row as it comes.
        seconds (float): how long one row may take; the first one may have to build the operators.

    Returns:
        list[dict]: op, device, first and again (milliseconds or None), error (str, "" if it passed), remark (str).
    """
    empty = {"op": "the self-test", "device": devices[0], "first": None, "again": None, "error": "", "remark": ""}
    rows, running = [], None
    command = [sys.executable, "-m", "fcos_core.layers.self_test"] + devices
    for line in probe.lines(command, seconds, stderr=None):
        if "running" in line:
            running = dict(empty, op=line["running"], device=line["device"])
            continue
        if "ended" in line:
            if running is None and not line["ended"]:
                break
            line = dict(running or empty, error=line["ended"] or "the process ended")
        running = None
        rows.append(line)
        if print_row:
            print_row(line)
    return rows


def _print_row(row):
    if row["error"]:
        text = "FAILED: {}".format(row["error"])
    else:
        parts = ["{:10.3f} ms {}".format(row[key], key) for key in ("first", "again") if row[key] is not None]
        # the whole of a long one is among the findings
        text = ", ".join(parts + [row["remark"].split(",")[0]] * bool(row["remark"]))
    _print_lines(["{:<28} {:<8} {}".format(row["op"], row["device"], text)])


if __name__ == "__main__":
    sys.exit(main())
