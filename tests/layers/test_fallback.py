"""The operators of tensor operations of torch: against the references and the compiled ones, and when they serve."""

import inspect
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from fcos_core.build import BuildError, sources
from fcos_core.layers import _fallback, _library
from fcos_core.layers._fallback import OPERATORS
from tests.reference import (
    deform_conv,
    deform_psroi_pooling,
    group_norm_relu,
    iou_loss,
    nms,
    roi_align,
    roi_pool,
    sigmoid_focal_loss,
)

ROOT = os.path.dirname(sources.PACKAGE_DIR)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
# of the largest entry; halves are computed in float32 and rounded once, by both
TOLERANCES = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def calls(op, device, dtype):
    """Yield (name, arguments of the operator) for the samples of a reference, leaves that require grad."""
    if op == "deform_conv":
        for s in deform_conv.sample_inputs(device, dtype, requires_grad=True):
            yield s.name, (s.input, s.weight, s.offset, s.mask, s.bias) + tuple(s.numbers)
    elif op == "deform_psroi_pooling":
        for s in deform_psroi_pooling.sample_inputs(device, dtype, requires_grad=True):
            yield s.name, s.arguments
    elif op == "roi_align":
        for s in roi_align.sample_inputs(device, dtype, requires_grad=True):
            aligned = "channels_last" in s.name or "many" in s.name
            yield s.name, (s.input, s.rois, s.spatial_scale) + s.output_size + (s.sampling_ratio, aligned)
    elif op == "roi_pool":
        for s in roi_pool.sample_inputs(device, dtype, requires_grad=True):
            yield s.name, (s.input, s.rois, s.spatial_scale) + s.output_size
    elif op == "sigmoid_focal_loss":
        for s in sigmoid_focal_loss.sample_inputs(device, dtype, requires_grad=True):
            for gamma, reduction in ((2.0, 0), (1.5, 0), (0.0, 2)):
                yield s.name, (s.logits, s.targets, gamma, 0.25, reduction)
    elif op == "iou_loss":
        for kind, name in enumerate(iou_loss.KINDS):
            for number, s in enumerate(iou_loss.sample_inputs(name, device, dtype, requires_grad=True)):
                yield "{}, {}".format(name, s.name), (s.pred, s.target, s.weight, kind, 2 * (number % 2))
    elif op == "group_norm_relu":
        for s in group_norm_relu.sample_inputs(device, dtype, requires_grad=True):
            yield s.name, (s.input, s.weight, s.bias, s.num_groups, 1e-5)


DIFFERENTIABLE = ["deform_conv", "deform_psroi_pooling", "group_norm_relu", "iou_loss", "roi_align", "roi_pool"]
DIFFERENTIABLE += ["sigmoid_focal_loss"]


def run(function, arguments):
    """Outputs of a function, detached, and gradients of all tensors that require one, for some weights."""
    output = function(*arguments)
    outputs = output if isinstance(output, tuple) else (output,)
    leaves = [value for value in arguments if isinstance(value, torch.Tensor) and value.requires_grad]
    if not outputs[0].requires_grad:
        return [value.detach() for value in outputs]
    weights = torch.linspace(-1, 1, outputs[0].numel() or 1, dtype=torch.float64)[: outputs[0].numel()]
    weights = weights.reshape(outputs[0].shape).to(outputs[0].device, outputs[0].dtype)
    grads = torch.autograd.grad(outputs[0], leaves, weights, allow_unused=True) if leaves else ()
    return [value.detach() for value in outputs] + list(grads)


def strides(tensor):
    """Strides that mean something: not those of sides of length one."""
    return [step for step, size in zip(tensor.stride(), tensor.shape) if size > 1 and tensor.numel()]


def assert_same(got, expected, dtype, name, layout=True):
    assert (got is None) == (expected is None), name
    if got is None:
        return
    assert got.dtype == expected.dtype and got.shape == expected.shape and got.device == expected.device, name
    assert not layout or strides(got) == strides(expected), name
    if not got.is_floating_point():
        assert torch.equal(got, expected), name
        return
    got, expected = got.double(), expected.double()
    assert torch.equal(got.isnan(), expected.isnan()), name
    error = (got - expected).abs()
    error = error.masked_fill(error.isnan(), 0)
    largest = max(1.0, float(expected.masked_fill(expected.isnan(), 0).abs().max()) if expected.numel() else 0.0)
    assert bool((error <= TOLERANCES[dtype] * largest).all()), (name, float(error.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_is_the_compiled_operator(device, op, dtype):
    """Value, gradients, dtype and layout, for every sample of the reference; of half dtypes for some."""
    _library.load()
    for number, (name, arguments) in enumerate(calls(op, device, dtype)):
        if dtype != torch.float32 and number % 5:
            continue
        if name.startswith("far from 0") and torch.__version__.startswith(("1.7.", "1.8.", "1.9.")):
            continue  # its own group norm, which the compiled operator calls, loses the digits of the variance
        expected = run(getattr(torch.ops.fcos_core, op), arguments)
        for got, wanted in zip(run(OPERATORS[op], arguments), expected):
            # without any output, the compiled ones do not know the layout of the input
            assert_same(got, wanted, dtype, name, layout=expected[0].numel() > 0)


def reference(op, arguments):
    """Output of the slow reference in float64 for arguments of the operator."""
    if op == "sigmoid_focal_loss":
        losses = sigmoid_focal_loss.sigmoid_focal_loss(*arguments[:4])
        return losses.sum() if arguments[4] else losses
    if op == "roi_align":
        return roi_align.roi_align(*arguments[:2], arguments[3:5], arguments[2], *arguments[5:])
    if op == "roi_pool":
        return roi_pool.roi_pool(*arguments[:2], arguments[3:5], arguments[2])[0]
    if op == "deform_conv":
        return deform_conv.deform_conv(*arguments)
    if op == "iou_loss":
        losses = iou_loss.iou_loss(*arguments[:3], iou_loss.KINDS[arguments[3]])
        return losses.sum() if arguments[4] else losses
    if op == "group_norm_relu":
        return group_norm_relu.group_norm_relu(*arguments)
    return deform_psroi_pooling.deform_psroi_pooling(*arguments)[0]


@pytest.mark.parametrize("op", DIFFERENTIABLE)
def test_matches_reference(device, op):
    """Value and gradients in float64; needs no library, so it also speaks where nothing can be compiled."""
    compared = 0
    for name, arguments in calls(op, device, torch.float64):
        expected = run(lambda *values: reference(op, values), arguments)
        if expected[0].numel() == 0 or 0 in arguments[0].shape or arguments[0].numel() > 15000:
            continue
        # positions in the millions of pixels leave fewer digits; on a cell the slopes of the two differ by convention
        tolerance = 1e-8 if op == "roi_align" else 1e-11
        got = run(OPERATORS[op], arguments)
        got = got[:1] + got[len(got) - len(expected) + 1 :]
        if op == "deform_psroi_pooling" and name.startswith("whole positions"):
            got, expected = got[:2], expected[:2]
        for one, other in zip(got, expected):
            other = torch.zeros_like(one) if other is None else other
            assert float((one.double() - other.double()).abs().max()) < tolerance, name
        compared += 1
    assert compared > 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nms_keeps_the_same(device, dtype):
    _library.load()
    for sample in nms.sample_inputs(device, dtype):
        for threshold in (0.0, 0.5):
            kept = OPERATORS["nms"](sample.boxes, sample.scores, threshold)
            assert kept.dtype == torch.int64
            assert torch.equal(kept, torch.ops.fcos_core.nms(sample.boxes, sample.scores, threshold)), sample.name
            kept = OPERATORS["ml_nms"](*sample[1:], threshold)
            assert torch.equal(kept, torch.ops.fcos_core.ml_nms(*sample[1:], threshold)), sample.name
            if dtype == torch.float64 and len(kept) < 500:
                assert kept.tolist() == nms.ml_nms(*sample[1:], threshold), sample.name
    for sample in nms.batched_inputs(device, dtype):
        mask = OPERATORS["batched_nms"](*sample[1:], 0.5)
        assert torch.equal(mask, torch.ops.fcos_core.batched_nms(*sample[1:], 0.5)), sample.name


def test_nms_of_ties_and_strange_numbers_in_blocks(monkeypatch):
    monkeypatch.setattr(_fallback.nms, "_MAX_BLOCK", 7)
    for seed in range(6):
        boxes, scores, labels = nms.tied_boxes(300, seed=seed)
        kept = OPERATORS["ml_nms"](boxes, scores, labels, 0.4)
        _library.load()
        assert kept.tolist() == torch.ops.fcos_core.ml_nms(boxes, scores, labels, 0.4).tolist()


@pytest.mark.parametrize("op", ["deform_conv", "deform_psroi_pooling", "roi_align", "sigmoid_focal_loss"])
def test_parts_bound_the_memory_and_change_nothing(monkeypatch, op):
    module = getattr(_fallback, op)
    limit = {"deform_conv": "_MAX_COLUMNS", "deform_psroi_pooling": "_MAX_VALUES", "roi_align": "_MAX_ENTRIES"}
    name = limit.get(op, "_MAX_ELEMENTS")
    for number, (_, arguments) in enumerate(calls(op, torch.device("cpu"), torch.float64)):
        if number > 3:
            break
        whole = run(OPERATORS[op], arguments)
        monkeypatch.setattr(module, name, 1500)
        for got, expected in zip(run(OPERATORS[op], arguments), whole):
            assert_same(got, expected, torch.float64, op)
        monkeypatch.undo()


def test_broken_rois_and_offsets_are_nan_as_compiled():
    inf, nan = float("inf"), float("nan")
    input = roi_align.random_map((2, 6, 9, 11))
    rois = torch.tensor([[0, nan, 1, 9, 9], [0, 1, 1, inf, 9], [1, 2, 3, 30, 40], [0, -3e38, 1, 3e38, 9]])
    _library.load()
    for name, arguments in (
        ("roi_align", (0.25, 3, 2, 2, False)),
        ("roi_align", (0.25, 3, 2, 0, True)),
        ("roi_pool", (0.25, 3, 2)),
        ("deform_psroi_pooling", (None, 0.25, 6, 1, 2, 2, 2, 0.1)),
    ):
        call = (input.clone().requires_grad_(), rois) + arguments
        expected = run(getattr(torch.ops.fcos_core, name), call)
        for got, wanted in zip(run(OPERATORS[name], call), expected):
            assert_same(got, wanted, torch.float32, name)
    *tensors, numbers = deform_conv.random_inputs(1, 8, (5, 6), 3)
    for value in (nan, inf, -1e30, -1.0):
        offset = tensors[2].clone()
        offset[:, ::5] = value
        leaves = [t.detach().clone().requires_grad_() for t in (tensors[0], tensors[1], offset, tensors[3], tensors[4])]
        expected = run(torch.ops.fcos_core.deform_conv, tuple(leaves) + tuple(numbers))
        for got, wanted in zip(run(OPERATORS["deform_conv"], tuple(leaves) + tuple(numbers)), expected):
            assert_same(got, wanted, torch.float64, "offsets {}".format(value))


def wrong_calls():
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    map_, rois = torch.rand(1, 4, 6, 6), torch.tensor([[0.0, 1, 1, 4, 4]])
    weight, offset = torch.rand(2, 4, 3, 3), torch.zeros(1, 18, 6, 6)
    numbers = ((1, 1), (1, 1), (1, 1), 1, 1)
    logits, targets = torch.rand(3, 2), torch.tensor([0, 1, 2])
    return [
        ("nms", (boxes[:, :3], scores, 0.5)),
        ("nms", (boxes, scores[:2], 0.5)),
        ("nms", (boxes.long(), scores, 0.5)),
        ("nms", (boxes, scores, -0.5)),
        ("ml_nms", (boxes, scores, scores, 0.5)),
        ("ml_nms", (boxes, scores, targets[:2], 0.5)),
        ("batched_nms", (boxes, scores, targets, 0.5)),
        ("batched_nms", (boxes[None], scores[None], scores[None], 0.5)),
        ("roi_align", (map_, rois[:, :4], 0.25, 2, 2, 2, False)),
        ("roi_align", (map_, rois + 1, 0.25, 2, 2, 2, False)),
        ("roi_align", (map_, rois, 0.0, 2, 2, 2, False)),
        ("roi_align", (map_, rois, 0.25, 0, 2, 2, False)),
        ("roi_align", (map_, rois, 0.25, 2, 2, 2000, False)),
        ("roi_align", (None, rois, 0.25, 2, 2, 2, False)),
        ("roi_pool", (map_[0], rois, 0.25, 2, 2)),
        ("roi_pool", (map_, rois, float("nan"), 2, 2)),
        ("_roi_pool_backward", (map_, rois, map_.int() + 99, 1, 4, 6, 6)),
        ("deform_conv", (map_, weight, offset[:, :16], None, None) + numbers),
        ("deform_conv", (map_, weight[:, :3], offset, None, None) + numbers),
        ("deform_conv", (map_, weight.double(), offset, None, None) + numbers),
        ("deform_conv", (map_, weight, offset, None, None, (0, 1)) + numbers[1:]),
        ("deform_conv", (map_[:, :, :1, :1], weight, offset, None, None, (1, 1), (0, 0)) + numbers[2:]),
        ("deform_conv", (map_, weight, offset, offset, None) + numbers),
        ("deform_psroi_pooling", (map_, rois, None, 0.25, 3, 1, 2, 2, 2, 0.1)),
        ("deform_psroi_pooling", (map_, rois, torch.rand(1, 3, 2, 2), 0.25, 4, 1, 2, 2, 2, 0.1)),
        ("deform_psroi_pooling", (map_, rois, None, 0.25, 4, 1, 2, 2, 2, 1.5)),
        ("deform_psroi_pooling", (map_, rois + 1, None, 0.25, 4, 1, 2, 2, 2, 0.5)),
        ("sigmoid_focal_loss", (logits, targets + 1, 2.0, 0.25, 0)),
        ("sigmoid_focal_loss", (logits, targets, -1.0, 0.25, 0)),
        ("sigmoid_focal_loss", (logits, targets, 2.0, 2.0, 0)),
        ("sigmoid_focal_loss", (logits, targets, 2.0, 0.25, 1)),
        ("sigmoid_focal_loss", (logits.long(), targets, 2.0, 0.25, 0)),
    ]


@pytest.mark.parametrize("name, arguments", wrong_calls())
def test_wrong_calls_are_refused_in_the_same_words(name, arguments):
    _library.load()
    if arguments[0] is None:
        expected = "roi_align: expected input to be a tensor, got None"
    else:
        with pytest.raises(RuntimeError) as compiled:
            getattr(torch.ops.fcos_core, name)(*arguments)
        expected = str(compiled.value).splitlines()[0]
    with pytest.raises(RuntimeError) as ours:
        OPERATORS[name](*arguments)
    assert str(ours.value).startswith(expected) and ": expected " in expected


def test_second_derivatives_are_refused():
    for op in DIFFERENTIABLE:
        name, arguments = next(iter(calls(op, torch.device("cpu"), torch.float64)))
        output = OPERATORS[op](*arguments)
        output = output[0] if isinstance(output, tuple) else output
        leaf = next(value for value in arguments if isinstance(value, torch.Tensor) and value.requires_grad)
        (grad,) = torch.autograd.grad(output.pow(2).sum(), leaf, create_graph=True)
        with pytest.raises(RuntimeError, match="expected one backward pass, got a second one"):
            grad.sum().backward()


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="the CPU autocasts from torch 1.10 on")
def test_autocast_gives_the_dtypes_of_the_compiled_operators():
    _library.load()
    for op in ("deform_conv", "sigmoid_focal_loss", "roi_align", "deform_psroi_pooling"):
        _, arguments = next(iter(calls(op, torch.device("cpu"), torch.float32)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = run(getattr(torch.ops.fcos_core, op), arguments)
            got = run(OPERATORS[op], arguments)
        for one, other in zip(got, expected):
            assert one.dtype == other.dtype, op
            difference = (one.double() - other.double()).abs().max()
            assert float(difference) <= 0.02 * max(1.0, float(other.double().abs().max())), op


def test_every_operator_has_one():
    _library.load()
    schemas = [one for one in torch._C._jit_get_all_schemas() if one.name.startswith("fcos_core::")]
    schemas = {one.name.split("::")[1]: one for one in schemas}
    names = {name for name in schemas if "_composite" not in name and "_built_with" not in name}
    assert set(OPERATORS) == names
    for name, function in OPERATORS.items():
        parameters = list(inspect.signature(function).parameters.values())
        if parameters[-1].kind != inspect.Parameter.VAR_POSITIONAL:
            assert [one.name for one in parameters] == [one.name for one in schemas[name].arguments], name


# ---- when they serve


@pytest.fixture
def fresh(monkeypatch):
    """As if nothing had been loaded in this process; what is registered stays as it is."""
    monkeypatch.setattr(_library, "_loaded", False)
    monkeypatch.setattr(_library, "_substitutes_because", "")
    installed = []
    monkeypatch.setattr(_fallback, "install", lambda: installed.append(True))
    return installed


def cannot_build():
    raise BuildError("find_compiler: no C++ compiler found; install one")


def test_a_build_that_fails_is_told_once(fresh, monkeypatch):
    monkeypatch.delenv("FCOS_CORE_FALLBACK", raising=False)
    monkeypatch.setattr(_library, "ensure_extension", cannot_build)
    with pytest.warns(_library.SlowOperatorsWarning, match="no C.. compiler found; install one") as said:
        _library.load()
    assert "deformable convolution, RoI pooling and the focal loss take 2 to 13 times as long" in str(said[0].message)
    assert fresh == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _library.load()
        assert "no C++ compiler" in _library.substitutes_because()


def test_it_can_be_made_an_error(fresh, monkeypatch):
    monkeypatch.setenv("FCOS_CORE_FALLBACK", "0")
    monkeypatch.setattr(_library, "ensure_extension", cannot_build)
    with pytest.raises(BuildError, match="no C.. compiler found"):
        _library.load()
    assert not fresh and not _library._loaded


def test_they_can_be_asked_for(fresh, monkeypatch):
    monkeypatch.setenv("FCOS_CORE_FALLBACK", "1")
    monkeypatch.setattr(_library, "ensure_extension", lambda: pytest.fail("nothing is to be built"))
    with pytest.warns(_library.SlowOperatorsWarning, match="FCOS_CORE_FALLBACK is 1"):
        _library.load()
    assert fresh == [True]


def test_other_values_are_refused(fresh, monkeypatch):
    monkeypatch.setenv("FCOS_CORE_FALLBACK", "yes")
    with pytest.raises(BuildError, match="expected FCOS_CORE_FALLBACK to be 0 or 1, got 'yes'"):
        _library.load()


def test_the_log_of_a_run_says_it(fresh, monkeypatch, caplog):
    import logging

    monkeypatch.delenv("FCOS_CORE_FALLBACK", raising=False)
    monkeypatch.setattr(_library, "ensure_extension", cannot_build)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _library.check_operators(torch.device("cpu"), logging.getLogger("fcos_core.test"))
    assert "no C++ compiler found" in caplog.text and caplog.text.count("could not be compiled") == 1


WITHOUT_COMPILER = """
import warnings
import torch
import fcos_core, fcos_core._C
from fcos_core.layers import deform_conv, nms, self_test
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for op in self_test.CASES:
        row = self_test.run(op, "cpu")
        assert not row["error"], row
said = [str(one.message) for one in said if "could not be compiled" in str(one.message)]
assert len(said) == 1, said
assert self_test.operators() == sorted(self_test.CASES), self_test.operators()
dets, scores = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8]]), torch.tensor([0.5, 0.9])
assert fcos_core._C.nms(dets, scores, 0.5).tolist() == [1]
print(said[0])
"""


def test_without_a_compiler_everything_runs(tmp_path):
    """The real thing: no compiler, no library, an empty cache; all operators, both ways, with one warning."""
    path = os.pathsep.join([str(tmp_path), ROOT, os.environ.get("PYTHONPATH", "")])
    environment = dict(os.environ, PYTHONPATH=path, PATH="", FCOS_CORE_CACHE=str(tmp_path / "cache"))
    environment.pop("FCOS_CORE_FALLBACK", None)
    environment.pop("CXX", None)
    # an installed library would serve: this process finds none beside the package
    (tmp_path / "sitecustomize.py").write_text(
        "import fcos_core.build.extension as extension\nextension.package_dir = lambda: {!r}\n".format(str(tmp_path))
    )
    script = [sys.executable, "-c", WITHOUT_COMPILER]
    result = subprocess.run(
        script, env=environment, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300
    )
    output = result.stdout.decode()
    assert result.returncode == 0, result.stderr.decode()
    assert "no C++ compiler found; install one" in output and "take 2 to 13 times as long" in output
    assert np.sum([line.startswith("fcos_core:") for line in output.splitlines()]) == 1
