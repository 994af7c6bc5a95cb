"""IoU losses against recorded numbers and against the geometry of boxes."""

import warnings

import pytest
import torch

from fcos_core.layers._library import load
from fcos_core.layers.iou_loss import LOSS_TYPES, IOULoss, giou_loss, iou_loss
from tests.golden import recipe
from tests.layers import on_cuda
from tests.layers.on_cuda import needs_cuda
from tests.reference import iou_loss as reference

GOLDEN = recipe.Golden("structures.npz")


def golden_input(key, dtype):
    return torch.from_numpy(GOLDEN["iou_loss/" + key]).to(dtype)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("weighted", ["w", "now"])
@pytest.mark.parametrize("precision,dtype,tolerance", [("f32", torch.float32, 1e-6), ("f64", torch.float64, 1e-13)])
def test_value_and_gradient_against_golden(loss_type, weighted, precision, dtype, tolerance, device):
    prefix = f"iou_loss/{loss_type}/{weighted}/{precision}/"
    pred = golden_input("pred", dtype).to(device).requires_grad_()
    weight = golden_input("weight", dtype).to(device) if weighted == "w" else None
    loss = IOULoss(loss_type)(pred, golden_input("target", dtype).to(device), weight)
    loss.backward()
    recipe.assert_close(loss.item(), GOLDEN[prefix + "value"], tolerance, "loss")
    recipe.assert_close(pred.grad.cpu().numpy(), GOLDEN[prefix + "grad"], 5 * tolerance, "gradient")


def test_weights_without_sum_are_ignored():
    """Legacy: with weights that sum to 0 the plain sum is returned."""
    pred, target = golden_input("pred", torch.float32), golden_input("target", torch.float32)
    loss = IOULoss("iou")(pred, target, torch.zeros(len(pred)))
    recipe.assert_close(loss.item(), GOLDEN["iou_loss/iou/zero_weight/value"], 1e-6, "loss")
    assert loss == IOULoss("iou")(pred, target)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_agrees_with_boxes(loss_type):
    """The same from corners: boxes around the origin, areas smoothed by one, enclosing box."""
    pred, target = torch.rand(20, 4, dtype=torch.float64) * 9, torch.rand(20, 4, dtype=torch.float64) * 9
    sign = torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    expected = []
    for a, b in zip((pred * sign).tolist(), (target * sign).tolist()):
        intersection = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
        enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1])) + 1e-7
        iou = torch.tensor((intersection + 1) / (union + 1), dtype=torch.float64)
        losses = {"iou": -iou.log(), "linear_iou": 1 - iou, "giou": 1 - iou + (enclosing - union) / enclosing}
        expected.append(losses[loss_type])
    assert torch.allclose(iou_loss(pred, target, loss_type), torch.stack(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradient_is_that_of_finite_differences(loss_type):
    pred = (torch.rand(5, 4, dtype=torch.float64) * 9 + 0.5).requires_grad_()
    target = torch.rand(5, 4, dtype=torch.float64) * 9 + 0.5
    weight = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: IOULoss(loss_type)(p, target, weight), (pred,))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_perfect_prediction_costs_nothing(loss_type):
    boxes = torch.rand(6, 4) * 50 + 1
    assert iou_loss(boxes, boxes, loss_type).abs().max() < 1e-5


def test_any_leading_shape():
    pred, target = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    dense = iou_loss(pred, target, "giou")
    assert dense.shape == (2, 3)
    assert torch.equal(dense.reshape(-1), iou_loss(pred.reshape(-1, 4), target.reshape(-1, 4), "giou"))


@pytest.mark.parametrize("weight", [None, torch.zeros(0)])
def test_no_boxes(weight):
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = IOULoss("giou")(pred, torch.zeros(0, 4), weight)
    loss.backward()
    assert loss.item() == 0 and pred.grad.shape == (0, 4)


def test_half_precision_does_not_overflow():
    pred, target = torch.full((1, 4), 500.0), torch.full((1, 4), 400.0)  # areas beyond the largest float16
    loss = iou_loss(pred.half(), target.half(), "iou")
    assert loss.dtype == torch.float32 and torch.allclose(loss, iou_loss(pred, target, "iou"))


def test_unknown_type():
    for make in (lambda: IOULoss("diou"), lambda: iou_loss(torch.ones(1, 4), torch.ones(1, 4), "diou")):
        with pytest.raises(ValueError, match="one of iou, linear_iou, giou, got 'diou'"):
            make()


# ---- the operator against its reference


# relative to the size of the terms of a loss, which cancel; half precision is computed in float32
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCES)
NUMBERS = {kind: number for number, kind in enumerate(reference.KINDS)}


def operator(name="iou_loss"):
    load()
    return getattr(torch.ops.fcos_core, name)


def through_layers(pred, target, weight, kind, reduction):
    if kind == "box_giou":
        return giou_loss(pred, target, weight, reduction)
    return iou_loss(pred, target, kind, weight, reduction)


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype, kind):
    for name, pred, target, weight in reference.sample_inputs(kind, device, dtype, requires_grad=True):
        exact_pred = pred.detach().double().cpu().requires_grad_()
        exact = reference.iou_loss(exact_pred, target.cpu(), None if weight is None else weight.cpu(), kind)
        losses = through_layers(pred, target, weight, kind, "none")
        assert losses.dtype == torch.promote_types(dtype, torch.float32) and losses.device == pred.device
        error = (losses.detach().double().cpu() - exact.detach()).abs()
        assert bool((error <= TOLERANCES[dtype] * (2 + exact.detach().abs())).all()), (name, float(error.max()))
        total = through_layers(pred, target, weight, kind, "sum")
        assert total.dim() == 0 and total.dtype == losses.dtype
        bound = TOLERANCES[dtype] * (2 * len(pred) + 1)
        assert abs(float(total.detach()) - float(exact.detach().sum())) <= bound, name

        factors = torch.linspace(-1, 2, len(pred), dtype=torch.float64).to(losses.dtype)
        (expected,) = torch.autograd.grad((exact * factors.double()).sum() + exact_pred.sum() * 0, exact_pred)
        (grad,) = torch.autograd.grad(losses, pred, factors.to(device))
        assert_gradient_close(grad, expected, dtype, name)
        exact = reference.iou_loss(exact_pred, target.cpu(), None if weight is None else weight.cpu(), kind)
        (expected,) = torch.autograd.grad(exact.sum() * 3 + exact_pred.sum() * 0, exact_pred)
        (grad,) = torch.autograd.grad(total * 3, pred)
        assert_gradient_close(grad, expected, dtype, name)


def assert_gradient_close(grad, expected, dtype, name):
    assert grad.dtype == dtype and grad.shape == expected.shape
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    error = (grad.double().cpu() - expected).abs()
    bound = ROUNDING[dtype] * (expected.abs() + 0.05 * largest) + (6e-8 if dtype == torch.float16 else 0.0)
    # terms of a slope are as large as 1 / side, and cancel
    bound += 0.1 * TOLERANCES[dtype]
    assert bool((error <= bound).all()), (name, float((error - bound).max()))


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_composite_is_the_kernel(dtype, kind):
    """What serves GPUs in a build without CUDA gives the same numbers, and a hand-written gradient too."""
    for name, pred, target, weight in reference.sample_inputs(kind, "cpu", dtype):
        for reduction in (0, 2):
            arguments = (pred, target, weight, NUMBERS[kind], reduction)
            expected = operator()(*arguments)
            result = operator("_iou_loss_composite")(*arguments)
            assert result.dtype == expected.dtype and result.shape == expected.shape, name
            bound = TOLERANCES[dtype] * (2 * (len(pred) if reduction else 1) + expected.abs())
            assert bool(((result - expected).abs() <= bound).all()), name
            grad = torch.rand(expected.shape).to(expected.dtype)
            expected = operator("_iou_loss_backward")(grad, *arguments)
            result = operator("_iou_loss_backward_composite")(grad, *arguments)
            assert_gradient_close(result, expected.double(), dtype, name)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_formulas_in_torch_are_the_kernel(device, kind):
    """Gradients of targets and weights come from these, and then that of the prediction, too."""
    pred, target, weight = (t.double().to(device) for t in reference.random_inputs(40, kind))
    assert bool((weight == 0).any())
    results = []
    for constant in (True, False):
        leaves = [t.clone().requires_grad_() for t in (pred, target, weight)]
        used = leaves[:1] + [t.detach() for t in leaves[1:]] if constant else leaves
        total = through_layers(*used, kind, "sum")
        results.append((total.detach(), torch.autograd.grad(total, leaves[0])[0]))
    assert torch.allclose(results[0][0], results[1][0], rtol=1e-12)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_gradcheck(device, kind, reduction):
    pred, target, weight = (t.double().to(device) for t in reference.random_inputs(7, kind))

    def function(p):
        return through_layers(p, target, weight, kind, reduction)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, about their own internals
        assert torch.autograd.gradcheck(function, (pred.requires_grad_(),))


def test_gradients_of_target_and_weight():
    pred, target, weight = (t.double().requires_grad_() for t in reference.random_inputs(4, "giou"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.autograd.gradcheck(
            lambda *t: iou_loss(t[0], t[1], "giou", t[2], "sum"), (pred, target, weight + 1)
        )


@pytest.mark.parametrize("kind", reference.KINDS)
def test_weight_zero_looks_at_nothing(device, kind):
    pred, target, _ = (t.to(device) for t in reference.random_inputs(6, kind))
    weight = torch.tensor([1.0, 0, 1, 0, 0, 1], device=device)
    pred[1], pred[3, 2], target[4, 0] = float("nan"), float("inf"), -float("inf")
    pred.requires_grad_()
    total = through_layers(pred, target, weight, kind, "sum")
    (grad,) = torch.autograd.grad(total, pred)
    assert torch.isfinite(total) and torch.isfinite(grad).all() and bool((grad[weight == 0] == 0).all())
    kept = weight > 0
    expected = through_layers(pred[kept], target[kept], None, kind, "sum")
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert torch.isnan(through_layers(pred, target, None, kind, "sum"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_number_of_threads_does_not_matter(dtype):
    pred, target, weight = reference.random_inputs(5000, "giou")
    pred, target = pred.to(dtype).requires_grad_(), target.to(dtype)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            total = iou_loss(pred, target, "giou", weight, "sum")
            results.append((float(total.detach()), torch.autograd.grad(total, pred)[0]))
    finally:
        torch.set_num_threads(before)
    assert all(total == results[0][0] and grad.equal(results[0][1]) for total, grad in results[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_address_does_not_matter(device, dtype):
    pred, target, weight = (t.to(device) for t in reference.random_inputs(300, "giou"))
    results = []
    for offset in (0, 1, 3):
        memory = torch.cat([torch.zeros(offset, device=device, dtype=dtype), pred.to(dtype).flatten()])
        shifted = memory[offset:].view(-1, 4).requires_grad_()
        total = iou_loss(shifted, target.to(dtype), "giou", weight, "sum")
        results.append((total.detach(), torch.autograd.grad(total, shifted)[0]))
    assert all(a.equal(b) for result in results[1:] for a, b in zip(result, results[0]))


def test_shapes_and_dtypes_meet():
    pred, target, weight = (t.reshape(2, 5, -1).squeeze(-1) for t in reference.random_inputs(10, "iou"))
    dense = iou_loss(pred, target, "iou", weight)
    assert dense.shape == (2, 5)
    flat = iou_loss(pred.reshape(-1, 4), target.reshape(-1, 4), "iou", weight.reshape(-1))
    assert dense.reshape(-1).equal(flat)
    assert iou_loss(pred, target[:1], "iou").equal(iou_loss(pred, target[:1].expand(2, 5, 4), "iou"))
    assert iou_loss(pred.half(), target, "iou").equal(iou_loss(pred.half().float(), target, "iou"))
    assert iou_loss(pred, target.double(), "iou").dtype == torch.float64


# ---- CUDA only


@needs_cuda
@pytest.mark.parametrize("kind", reference.KINDS)
def test_cuda_streams_graphs_and_no_waiting(kind):
    one, two = ([t.cuda() for t in reference.random_inputs(3000, kind, seed=seed)] for seed in (0, 1))
    one[0].requires_grad_()
    two[0].requires_grad_()

    def gradient(pred, target, weight):
        total = through_layers(pred, target, weight, kind, "sum")
        return torch.autograd.grad(total, pred, torch.full_like(total, 0.5))[0]

    expected = gradient(*two)
    with on_cuda.no_sync():
        assert gradient(*two) is not None
    assert gradient(*two).equal(expected)
    assert on_cuda.on_side_stream(gradient, *two).equal(expected)
    assert on_cuda.replayed(gradient, one, two).equal(expected)


# ---- torch: opcheck, tracing


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "opcheck"), reason="opcheck came with torch 2.4")
@pytest.mark.parametrize("kind", reference.KINDS)
def test_opcheck(device, kind):
    pred, target, weight = (t.to(device) for t in reference.random_inputs(9, kind))
    for reduction in (0, 2):
        for w in (weight, None):
            arguments = (pred.clone().requires_grad_(), target, w, NUMBERS[kind], reduction)
            torch.library.opcheck(operator(), arguments)
            grad = torch.ones_like(operator()(*arguments)).detach()
            torch.library.opcheck(operator("_iou_loss_backward"), (grad, pred) + arguments[1:])


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
def test_compiles_without_graph_breaks(device):
    pred, target, weight = (t.to(device) for t in reference.random_inputs(20, "giou"))

    def loss(p):
        return iou_loss(p * 2, target, "giou", weight, "sum") * 3

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager, traced = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    expected, result = loss(eager), compiled(traced)
    expected.backward()
    result.backward()
    assert result.equal(expected) and traced.grad.equal(eager.grad)


# ---- wrong calls

BOXES = torch.ones(3, 4)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((BOXES[0], BOXES[0], None, 0, 0), r"expected pred of shape \[M, 4\], got \[4\]; see"),
        ((BOXES, BOXES[:2], None, 0, 0), r"expected target of shape \[M, 4\], as pred, got \[2, 4\]"),
        ((BOXES.long(), BOXES, None, 0, 0), r"expected pred of dtype float64, .* got torch.int64; convert"),
        (
            (BOXES, BOXES.double(), None, 0, 0),
            r"expected target of the dtype of pred \(torch.float32\), got torch.float64",
        ),
        ((BOXES, BOXES, BOXES, 0, 0), r"expected weight of shape \[M\], one per box, got \[3, 4\]"),
        ((BOXES, BOXES, BOXES[:, 0].long(), 0, 0), r"expected weight of dtype float64, .* got torch.int64"),
        ((BOXES, BOXES, None, 4, 0), r"expected kind in 0..3, got 4; 0 iou"),
        ((BOXES, BOXES, None, 0, 1), r"expected reduction 0 \(none\) or 2 \(sum\), got 1; divide"),
    ],
)
def test_messages(arguments, message):
    for name in ("iou_loss", "_iou_loss_composite"):
        with pytest.raises(RuntimeError, match="iou_loss: " + message):
            operator(name)(*arguments)


def test_messages_about_gradients_and_words():
    with pytest.raises(RuntimeError, match="iou_loss: expected target to need no gradient, got one that does; detach"):
        operator()(BOXES, BOXES.clone().requires_grad_(), None, 0, 0)
    with pytest.raises(RuntimeError, match=r"expected grad of shape \[M\], one per box, got \[\]"):
        operator("_iou_loss_backward")(torch.ones(()), BOXES, BOXES, None, 0, 0)
    with pytest.raises(RuntimeError, match=r"expected grad of shape \[\], one number, got \[3\]"):
        operator("_iou_loss_backward")(torch.ones(3), BOXES, BOXES, None, 0, 2)
    with pytest.raises(ValueError, match=r"giou_loss: expected reduction to be one of \['none', 'sum'\], got 'mean'"):
        giou_loss(BOXES, BOXES, reduction="mean")
    leaf = BOXES.clone().requires_grad_()
    (grad,) = torch.autograd.grad(iou_loss(leaf, BOXES * 2, reduction="sum"), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="iou_loss: expected one backward pass, got a second"):
        grad.sum().backward()
