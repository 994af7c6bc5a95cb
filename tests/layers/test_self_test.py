"""The self-test passes on a sound library, finds a wrong result, and knows every operator."""

import json

import pytest
import torch

from fcos_core.build import probe
from fcos_core.layers import self_test
from fcos_core.layers._library import load


def test_every_operator_has_a_case():
    load()
    assert self_test.operators() and set(self_test.operators()) <= set(self_test.CASES)


def test_all_pass(device):
    load()
    name = "cuda:0" if device.type == "cuda" else "cpu"
    for op in self_test.operators():
        row = self_test.run(op, name)
        assert row["error"] == "" and row["first"] > 0 and row["again"] > 0, row


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda device: torch.tensor([0.0, 1.0]), "expected [0, 2], got [0.0, 1.0]"),
        (lambda device: torch.tensor([0.0, float("nan")]), "got [0.0, nan]"),
        (lambda device: torch.tensor([0]), "got [0]"),
        (lambda device: torch.zeros(2, 3) @ torch.zeros(2, 3), "RuntimeError: "),
    ],
)
def test_wrong_results_and_errors_are_told(monkeypatch, call, message):
    load()
    monkeypatch.setitem(self_test.CASES, "nms", (call, [0, 2]))
    assert message in self_test.run("nms", "cpu")["error"]


def test_an_operator_without_a_case_is_named_as_such(monkeypatch):
    load()
    monkeypatch.delitem(self_test.CASES, "nms")
    row = self_test.run("nms", "cpu")
    assert row["error"] == "" and "not tested" in row["remark"]


def test_what_it_prints(capsys):
    self_test.main(["cpu"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(probe.MARK)]
    content = [json.loads(line[len(probe.MARK) :]) for line in lines]
    assert content[0] == {"running": "loading the operators", "device": "cpu"}
    assert [line["op"] for line in content if "op" in line][1:] == self_test.operators()


def test_a_library_that_cannot_be_loaded_is_told(capsys, monkeypatch):
    def fail():
        raise RuntimeError("no C++ compiler found; install one")

    monkeypatch.setattr(self_test, "load", fail)
    self_test.main(["cpu"])
    assert "no C++ compiler found; install one" in capsys.readouterr().out
