"""The fuzzer (fuzz.py) over every operator, and that it would notice what it looks for."""

import os

import numpy as np
import pytest
import torch

from tests.layers import fuzz
from tests.layers.fuzz_rules import RULES

CALLS = int(os.environ.get("FCOS_CORE_FUZZ", "2000"))  # of each operator
SEED = int(os.environ.get("FCOS_CORE_FUZZ_SEED", "0"))


def test_every_operator_has_rules():
    assert sorted(fuzz.schemas()) == sorted(RULES)


@pytest.mark.parametrize("op", sorted(RULES))
def test_calls_are_answered_rightly_or_refused_in_words(op, device, record_property):
    """How many calls of which kind is printed with -rA."""
    counts, problems = fuzz.run(op, RULES[op], device, CALLS, SEED)
    line = fuzz.summary(op, counts)
    record_property("calls", line)
    print(line)
    assert not problems, "{} problems, the first of which are\n{}".format(
        len(problems), "\n".join(map(fuzz.explain, problems[:8]))
    )
    assert counts["calls"] == CALLS
    if CALLS >= 500:
        # the bends are not so wild that nothing is answered, nor so tame that nothing is refused
        assert counts["compared"] > CALLS / 10 and counts["refused by us"] > CALLS / 20


def test_a_call_is_made_again_from_its_number():
    schema, rules = fuzz.schemas()["nms"], RULES["nms"]
    device = torch.device("cpu")
    calls = [str(fuzz.make_call(schema, rules, device, 3, i)) for i in range(40)]
    assert [str(fuzz.make_call(schema, rules, device, 3, i)) for i in reversed(range(40))] == calls[::-1]
    assert len(set(calls)) > 30


def test_command_line(capsys):
    assert fuzz.main(["--op", "nms", "--calls", "5", "--seed", "1", "--first", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == ["nms cpu seed 1 call {}".format(i) for i in range(7, 12)]
    assert lines[5].startswith("nms: 5 calls") and lines[6] == "0 problems"


# ---- the fuzzer notices


def problems_of(monkeypatch, function, calls=1000):
    """What it says of another function in the place of batched_nms."""
    real = torch.ops.fcos_core.batched_nms

    class Operators:
        batched_nms = staticmethod(lambda *arguments, **keywords: function(real, *arguments, **keywords))

    monkeypatch.setattr(torch.ops, "fcos_core", Operators)
    _, problems = fuzz.run("batched_nms", RULES["batched_nms"], "cpu", calls)
    return [problem.text for problem in problems]


def ignores_strides(real, boxes, *arguments):
    if (
        isinstance(boxes, torch.Tensor)
        and boxes.layout == torch.strided
        and not boxes.is_contiguous()
        and boxes.numel()
    ):
        strides = [int(np.prod(boxes.shape[d + 1 :])) for d in range(boxes.dim())]
        boxes = boxes.as_strided(boxes.shape, strides)
    return real(boxes, *arguments)


def overflows_a_vector(real, *arguments):
    try:
        return real(*arguments)
    except RuntimeError:
        raise RuntimeError("vector::_M_range_check: __n (which is 4) >= this->size() (which is 4)") from None


def swallows_errors(real, boxes, scores, *arguments):
    try:
        return real(boxes, scores, *arguments)
    except RuntimeError:
        return torch.zeros(scores.shape, dtype=torch.bool)


def fails_without_words(real, *arguments):
    try:
        return real(*arguments)
    except RuntimeError:
        raise RuntimeError("invalid argument") from None


def lacks_memory(real, *arguments):
    raise MemoryError("std::bad_alloc")


def writes_to_scores(real, boxes, scores, *arguments):
    result = real(boxes, scores, *arguments)
    with torch.no_grad():
        scores.zero_()
    return result


@pytest.mark.parametrize(
    "function, text",
    [
        (ignores_strides, "result 0 is not that of contiguous copies"),
        (overflows_a_vector, "said RuntimeError: vector"),
        (swallows_errors, "answered, although"),
        (fails_without_words, "said RuntimeError: invalid argument"),
        (lacks_memory, "raised MemoryError"),
        (writes_to_scores, "wrote to an argument"),
        (lambda real, *a: real(*a).int(), "result 0 is int32"),
        (lambda real, *a: real(*a)[:, :1], "result 0 is bool"),
        (lambda real, *a: ~real(*a), "result 0 is not that of the reference"),
    ],
)
def test_it_notices(monkeypatch, function, text):
    fuzz.schemas()
    # samples are kept and shared, and one of these functions writes to them
    monkeypatch.setattr(fuzz, "_samples", {})
    assert any(said.startswith(text) for said in problems_of(monkeypatch, function))
