"""The records of what was run, and the page written from them."""

import json
import os

from compatibility.steps import ROOT

RECORDS = os.path.join(ROOT, "docs", "compatibility.json")
PAGE = os.path.join(ROOT, "docs", "compatibility.md")

_HEAD = """# What was tried

Written by `python tools/compatibility_matrix.py` from `docs/compatibility.json`; the commit and the day are those of
each run. [install.md](install.md) says what to do when something does not work, and has the table of what goes with
what.

每个 torch 版本都在新的虚拟环境里安装并运行了全部 CPU 测试；下表由脚本根据记录生成。
"""

_CELLS = """## Versions of torch

Each row: a new environment, `pip install torch torchvision` of that version, `pip install -e '.[test]'`, then the whole
test suite on the CPU. Torch is the default wheel of the package index. Seconds are those of a two-core machine that had
other work to do; the compilers were asked for all warnings, and had none about our sources.

torch 1.11.0 is tried on Python 3.9 alone. On 3.10 its own launcher dies of a segmentation fault at the end of any
script that it started, one that prints a line included: `python -m torch.distributed.run --nproc_per_node 2 script.py`,
5 times of 5, in `torch/distributed/elastic/utils/store.py`.
"""

_TOOLKITS = """## CUDA toolkits

Each row: all CUDA sources compiled without warnings for all GPUs (sm_) that the toolkit knows and we serve, linked with
a torch of the same CUDA major version, and the library loaded.
"""

_WAYS = """## Ways to install

Each row: a new clone with one of the operators (compiling all takes the same time in each way), in a new environment
that holds torch and NumPy, or nothing. Without torch, the operators are built at first use, and the seconds of that are
in the column of that name; pip 20 and uv bring torch before they build. Downloads are those of pip and uv from the
package index, without what they take from a disk beside it.
"""


def load(path=RECORDS):
    """Return all records: a dict with lists of dicts under "cells", "toolkits" and "ways"."""
    known = {"cells": [], "toolkits": [], "ways": []}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as stream:
            known.update(json.load(stream))
    return known


def add(kind, record, keys, path=RECORDS, page=PAGE):
    """Add a record in place of one that agrees in all keys, and write the page again."""
    known = load(path)
    known[kind] = [old for old in known[kind] if any(old.get(key) != record.get(key) for key in keys)] + [record]
    known[kind].sort(key=lambda one: [_sortable(str(one.get(key, ""))) for key in keys])
    with open(path, "w", encoding="utf-8") as stream:
        json.dump(known, stream, indent=1, sort_keys=True)
        stream.write("\n")
    write_page(path, page)


def _sortable(text):
    """Order versions by number."""
    return [int(part) if part.isdigit() else -1 for part in text.split(".")], text


def write_page(path=RECORDS, page=PAGE):
    """Write the page; returns its path."""
    with open(page, "w", encoding="utf-8") as stream:
        stream.write(render(load(path)))
    return page


def render(known):
    """Return the text of the page.

    Args:
        known (dict): what `load` returns.
    """
    parts = [_HEAD]
    if known["cells"]:
        parts.append(_CELLS + "\n" + _table(_CELL_COLUMNS, known["cells"]))
    if known["toolkits"]:
        parts.append(_TOOLKITS + "\n" + _table(_TOOLKIT_COLUMNS, known["toolkits"]))
    if known["ways"]:
        parts.append(_WAYS + "\n" + _table(_WAY_COLUMNS, known["ways"]))
    return "\n".join(parts)


def _table(columns, rows):
    lines = ["| {} |".format(" | ".join(columns)), "|{}".format("---|" * len(columns))]
    lines += ["| {} |".format(" | ".join(str(value(row)) for value in columns.values())) for row in rows]
    return "\n".join(lines) + "\n"


def _seconds(key):
    return lambda row: "" if row.get(key) is None else "{} s".format(row[key])


def _tests(row):
    if "passed" not in row:
        return ""
    counted = "{passed} passed, {skipped} skipped, {failed} failed".format(**row)
    return counted + (" (only `{}`)".format(row["pytest"]) if row.get("pytest") else "")


def _result(row):
    reason = row.get("reason", "").split(", see ")[0].replace("|", "\\|")
    return "passed" if row["result"] == "passed" else "**failed**: {}".format(reason)


_WHEN = {"commit": lambda row: "`{}`".format(row["commit"]), "day": lambda row: row["date"]}
_CELL_COLUMNS = dict(
    {
        "torch": lambda row: row.get("torch_installed") or row["torch"],
        "Python": lambda row: row["python"],
        "NumPy": lambda row: row.get("numpy_installed", ""),
        "pip": lambda row: row.get("pip", ""),
        "installing": _seconds("install_seconds"),
        "of it compiling": _seconds("build_seconds"),
        "tests": _tests,
        "testing": _seconds("test_seconds"),
        "result": _result,
    },
    **_WHEN
)
_TOOLKIT_COLUMNS = dict(
    {
        "CUDA": lambda row: row["cuda"],
        "host compiler": lambda row: row.get("compiler", ""),
        "torch": lambda row: row["torch"],
        "sm_": lambda row: row.get("archs", ""),
        "compiling and linking": _seconds("build_seconds"),
        "result": _result,
    },
    **_WHEN
)
_WAY_COLUMNS = dict(
    {
        "way": lambda row: "`{}`".format(row["way"]),
        "torch": lambda row: row["torch"],
        "Python": lambda row: row["python"],
        "pip": lambda row: row.get("pip", ""),
        "installing": _seconds("install_seconds"),
        "downloaded": lambda row: row.get("downloaded", ""),
        "first use": _seconds("first_use_seconds"),
        "result": _result,
    },
    **_WHEN
)


def line(record):
    """Return a record as one line for the terminal."""
    named = " ".join("{} {}".format(key, record[key]) for key in ("way", "cuda", "torch", "python") if key in record)
    times = " ".join("{}={}".format(key, record[key]) for key in sorted(record) if key.endswith("_seconds"))
    return "{}: {} {} {} {}".format(named, record["result"], record["reason"], times, _tests(record)).strip()
