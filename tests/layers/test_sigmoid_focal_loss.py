"""Sigmoid focal loss: against a slow reference, by its properties, and against wrong calls."""

import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_core import _C
from fcos_core.layers import SigmoidFocalLoss, sigmoid_focal_loss
from fcos_core.layers import sigmoid_focal_loss as function_from_package
from fcos_core.layers._library import load
from fcos_core.layers.sigmoid_focal_loss import sigmoid_focal_loss_cpu, sigmoid_focal_loss_cuda
from tests.layers import on_cuda
from tests.layers.on_cuda import needs_cuda
from tests.reference import sigmoid_focal_loss as reference

# relative; half precision is computed in float32 and rounded once
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCES)
PARAMETERS = [(2.0, 0.25), (1.5, 0.4), (0.0, 0.5), (0.5, 0.0), (5.0, 1.0), (1.0, 0.25)]
GOLDEN = np.load(os.path.join(os.path.dirname(__file__), os.pardir, "golden", "ops.npz"))


def assert_close(actual, expected, dtype, what="", gamma=2.0):
    """Within the tolerance of each element; float16 additionally loses what is below 6e-8."""
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    error = (actual - expected).abs()
    # p^gamma multiplies the relative error of p by gamma
    bound = TOLERANCES[dtype] * max(1.0, gamma) * expected.abs() + (6e-8 if dtype == torch.float16 else 1e-37)
    assert actual.shape == expected.shape and bool((error <= bound).all()), (what, float((error - bound).max()))


def composite(logits, targets, gamma, alpha, reduction):
    load()
    return torch.ops.fcos_core._sigmoid_focal_loss_composite(logits, targets, gamma, alpha, reduction)


def composite_backward(grad, logits, targets, gamma, alpha, reduction):
    load()
    return torch.ops.fcos_core._sigmoid_focal_loss_backward_composite(grad, logits, targets, gamma, alpha, reduction)


# ---- values


@pytest.mark.parametrize("gamma, alpha", PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype, gamma, alpha):
    for name, logits, targets in reference.sample_inputs(device, dtype, requires_grad=True):
        exact_logits = logits.detach().double().requires_grad_()
        exact = reference.sigmoid_focal_loss(exact_logits, targets, gamma, alpha)
        losses = sigmoid_focal_loss(logits, targets, gamma, alpha, reduction="none")
        assert losses.dtype == dtype and losses.device == logits.device
        assert_close(losses, exact, dtype, name, gamma)

        total = sigmoid_focal_loss(logits, targets, gamma, alpha)
        assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and total.dim() == 0
        tolerance = TOLERANCES[dtype if dtype == torch.float64 else torch.float32]
        assert float(total.detach()) == pytest.approx(float(exact.detach().sum()), rel=tolerance)

        weights = torch.rand(logits.shape, dtype=torch.float64).to(device)
        (expected,) = torch.autograd.grad((exact * weights.to(dtype).double()).sum(), exact_logits, retain_graph=True)
        (grad,) = torch.autograd.grad(losses, logits, weights.to(dtype))
        assert grad.dtype == dtype and grad.shape == logits.shape
        assert_gradient_close(grad, expected, dtype, name)
        (expected,) = torch.autograd.grad(exact.sum() * 3, exact_logits)
        (grad,) = torch.autograd.grad(total * 3, logits)
        assert_gradient_close(grad, expected, dtype, name)


def assert_gradient_close(grad, expected, dtype, name):
    # terms of the slope of the reference cancel for saturated logits: bound relative to the largest entry there
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    error = (grad.double().cpu() - expected.cpu()).abs()
    bound = TOLERANCES[dtype] * (expected.abs().cpu() + 0.01 * largest)
    assert bool((error <= bound).all()), (name, float(error.max()))


@pytest.mark.parametrize("gamma, alpha", PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_composite_is_the_kernel(dtype, gamma, alpha):
    """What serves GPUs in a build without CUDA gives the same numbers, and a hand-written gradient too."""
    for name, logits, targets in reference.sample_inputs("cpu", dtype, requires_grad=True):
        for reduction, word in ((0, "none"), (2, "sum")):
            expected = sigmoid_focal_loss(logits, targets, gamma, alpha, reduction=word)
            result = composite(logits, targets, gamma, alpha, reduction)
            assert result.dtype == expected.dtype and not result.requires_grad
            assert_close(result, expected, dtype, name, gamma)
            grad = torch.rand(expected.shape).to(expected.dtype)
            (expected,) = torch.autograd.grad(expected, logits, grad)
            result = composite_backward(grad, logits, targets, gamma, alpha, reduction)
            assert result.dtype == expected.dtype
            assert_gradient_close(result, expected.double(), dtype, name)


def test_composite_in_steps():
    """More logits than one step of the composite takes."""
    logits = torch.zeros(1, 1).expand(3, 2**23 + 1)
    targets = torch.tensor([0, 5, -1])
    expected = 0.75 * 0.25 * np.log(2) * (2 * (2**23 + 1) - 1) + 0.25 * 0.25 * np.log(2)
    assert float(composite(logits, targets, 2.0, 0.25, 2)) == pytest.approx(expected, rel=1e-6)


def test_composite_marks_targets_out_of_range():
    logits = torch.zeros(4, 2)
    losses = composite(logits, torch.tensor([0, 3, -2, 2]), 2.0, 0.25, 0)
    assert torch.isnan(losses).all(1).tolist() == [False, True, True, False]
    grad = composite_backward(torch.ones(4, 2), logits, torch.tensor([0, 3, -2, 2]), 2.0, 0.25, 0)
    assert torch.isnan(grad).all(1).tolist() == [False, True, True, False]


@pytest.mark.parametrize("key", ["g2.0_a0.25", "g1.5_a0.40"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_golden(device, dtype, key):
    gamma, alpha = (float(part[1:]) for part in key.split("_"))
    logits = torch.from_numpy(GOLDEN["focal/logits"]).to(device, dtype).requires_grad_()
    targets = torch.from_numpy(GOLDEN["focal/targets"]).to(device)
    total = SigmoidFocalLoss(gamma, alpha)(logits, targets)
    total.backward()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert float(total.detach()) == pytest.approx(float(GOLDEN["focal/{}/f64/sum".format(key)]), rel=tolerance)
    expected = GOLDEN["focal/{}/f64/grad".format(key)]
    assert np.abs(logits.grad.double().cpu().numpy() - expected).max() <= tolerance

    old = _C.sigmoid_focalloss_forward(logits.detach(), targets, 80, gamma, alpha)
    assert float(old.double().sum()) == pytest.approx(float(GOLDEN["focal/{}/f64/sum".format(key)]), rel=tolerance)
    grad = _C.sigmoid_focalloss_backward(logits.detach(), targets, torch.ones_like(old), 80, gamma, alpha)
    assert np.abs(grad.double().cpu().numpy() - expected).max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_golden_of_saturated_logits(device, dtype):
    """Legacy: the old CUDA code cut the positive loss off at 21.8, the old CPU code gave inf and NaN."""
    logits = torch.from_numpy(GOLDEN["focal/extreme_logits"]).to(device, dtype).reshape(-1, 1)
    smallest = 1e-35 if dtype == torch.float32 else 0.0
    for target, key in ((1, "positive"), (0, "negative")):
        targets = torch.full((len(logits),), target, device=device)
        losses = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction="none").double().cpu().numpy()
        expected = GOLDEN["focal/extreme_{}_exact_f64".format(key)].reshape(-1, 1)
        # the golden positive side went through 1 - p, which is 0 from 50 on
        exact = reference.sigmoid_focal_loss(logits, targets, 2.0, 0.25).cpu().numpy()
        np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-20)
        np.testing.assert_allclose(losses, exact, rtol=2e-6 if dtype == torch.float32 else 1e-12, atol=smallest)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_huge_logits_stay_finite(device, dtype, gamma):
    values = [-1e4, -3e4, -200.0, -88.0, -87.0, 0.0, 87.0, 89.0, 200.0, 1e4, 3e4]
    if dtype in (torch.float32, torch.float64):
        values += [-3e38, 3e38]
    for target in (0, 1):
        logits = torch.tensor(values, device=device, dtype=dtype).reshape(-1, 1).requires_grad_()
        targets = torch.full((len(values),), target, device=device)
        for losses in (
            sigmoid_focal_loss(logits, targets, gamma, 0.25, reduction="none"),
            composite(logits, targets, gamma, 0.25, 0),
        ):
            assert torch.isfinite(losses.float()).all() and (losses.float() >= 0).all()
            # linear where the classifier is sure and wrong
            wrong = values.index(-1e4) if target else values.index(1e4)
            assert float(losses[wrong].detach()) == pytest.approx((0.25 if target else 0.75) * 1e4, rel=1e-2)
        sigmoid_focal_loss(logits, targets, gamma, 0.25, reduction="none").float().sum().backward()
        assert torch.isfinite(logits.grad.float()).all()
        assert float(logits.grad[wrong]) == pytest.approx(-0.25 if target else 0.75, rel=1e-2)
        if target == 0:
            assert float(logits.grad[values.index(-1e4)]) == 0


def test_nan_logits_show(device):
    logits = torch.tensor([[0.0, float("nan")], [1.0, 1.0]], device=device, requires_grad=True)
    total = sigmoid_focal_loss(logits, torch.tensor([1, 0], device=device), 2.0, 0.25)
    total.backward()
    assert torch.isnan(total)
    assert torch.isnan(logits.grad).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_gradcheck(device, gamma, reduction):
    logits, targets = reference.random_inputs(9, 5, positives=0.6)
    targets[0] = -1
    logits = logits.double().to(device).requires_grad_()
    targets = targets.to(device)

    def function(x):
        return sigmoid_focal_loss(x, targets, gamma, 0.3, reduction=reduction)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, about their own internals
        assert torch.autograd.gradcheck(function, (logits,))


def test_second_derivative_is_refused():
    logits = torch.randn(3, 2, requires_grad=True)
    total = sigmoid_focal_loss(logits, torch.tensor([0, 1, 2]), 2.0, 0.25)
    (grad,) = torch.autograd.grad(total, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: expected one backward pass, got a second"):
        grad.sum().backward()


def test_agrees_with_torchvision(device):
    torchvision = pytest.importorskip("torchvision")
    peer = getattr(torchvision.ops, "sigmoid_focal_loss", None)
    if peer is None:
        pytest.skip("torchvision without sigmoid_focal_loss")
    logits, targets = (t.to(device) for t in reference.random_inputs(50, 20))
    targets = targets.clamp(min=0)
    one_hot = torch.nn.functional.one_hot(targets, 21)[:, 1:].double()
    expected = peer(logits.double(), one_hot, alpha=0.25, gamma=2.0, reduction="none")
    losses = sigmoid_focal_loss(logits.double(), targets, 2.0, 0.25, reduction="none")
    # its 1 - p cancels for small p, hence the absolute part
    np.testing.assert_allclose(losses.cpu().numpy(), expected.cpu().numpy(), rtol=1e-10, atol=1e-15)


# ---- properties


def test_zero_gamma_is_half_of_binary_cross_entropy():
    logits, targets = reference.random_inputs(40, 6)
    targets = targets.clamp(min=0)
    one_hot = torch.nn.functional.one_hot(targets, 7)[:, 1:].double()
    expected = 0.5 * torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), one_hot, reduction="sum")
    assert float(sigmoid_focal_loss(logits, targets, 0.0, 0.5)) == pytest.approx(float(expected), rel=1e-6)


def test_ignored_rows_have_no_loss_and_no_gradient():
    logits, targets = reference.random_inputs(50, 9)
    logits.requires_grad_()
    assert (targets == -1).any()
    losses = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction="none")
    losses.sum().backward()
    assert (losses[targets == -1] == 0).all() and (logits.grad[targets == -1] == 0).all()
    assert (losses[targets != -1] > 0).all()
    kept = targets != -1
    total = sigmoid_focal_loss(logits, targets, 2.0, 0.25)
    without = sigmoid_focal_loss(logits[kept], targets[kept], 2.0, 0.25)
    assert float(total.detach()) == pytest.approx(float(without.detach()), rel=1e-6)


def test_rows_are_independent():
    logits, targets = reference.random_inputs(60, 7)
    shuffle = torch.from_numpy(np.random.permutation(60))
    losses = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction="none")
    assert sigmoid_focal_loss(logits[shuffle], targets[shuffle], 2.0, 0.25, reduction="none").equal(losses[shuffle])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_number_of_threads_does_not_matter(dtype):
    """Bit for bit: the chunks of the sum are fixed."""
    logits, targets = reference.random_inputs(2111, 80)
    logits = logits.to(dtype).requires_grad_()
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            total = sigmoid_focal_loss(logits, targets, 2.0, 0.25)
            (grad,) = torch.autograd.grad(total, logits)
            results.append((float(total.detach()), grad))
    finally:
        torch.set_num_threads(before)
    for total, grad in results[1:]:
        assert total == results[0][0] and grad.equal(results[0][1])


def test_sum_of_many_losses_is_accurate(device):
    """A running float32 sum of this many equal terms is wrong in the third digit; float16 would overflow."""
    for dtype in (torch.float32, torch.float16):
        logits = torch.zeros(400000, 80, dtype=dtype, device=device)
        total = sigmoid_focal_loss(logits, torch.zeros(400000, dtype=torch.int64, device=device), 2.0, 0.25)
        assert float(total.detach()) == pytest.approx(32e6 * 0.75 * 0.25 * np.log(2), rel=1e-6)


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 8, 20, 80, 91, 1203])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_classes(device, dtype, num_classes):
    """Rows that end within a vector, a block or a chunk, each with a right class."""
    num_rows = 1 + 30000 // num_classes
    logits, _ = reference.random_inputs(num_rows, num_classes)
    targets = torch.arange(num_rows, device=device) % (num_classes + 2) - 1
    logits = logits.to(device, dtype).requires_grad_()
    full = logits.detach().double()
    right = torch.nn.functional.one_hot(targets.clamp(min=0), num_classes + 1)[:, 1:].bool()
    z = torch.where(right, -full, full)
    weight = torch.where(right, torch.full_like(z, 0.25), torch.full_like(z, 0.75)) * (targets != -1)[:, None]
    q, softplus = torch.sigmoid(z), torch.log1p(torch.exp(-z.abs())) + z.clamp(min=0)
    losses = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction="none")
    assert_close(losses, weight * q**2 * softplus, dtype, gamma=2.0)
    total = sigmoid_focal_loss(logits, targets, 2.0, 0.25)
    exact = float((weight * q**2 * softplus).sum())
    tolerance = TOLERANCES[dtype if dtype == torch.float64 else torch.float32]
    assert float(total.detach()) == pytest.approx(exact, rel=tolerance)
    slope = weight * torch.where(right, -torch.ones_like(z), torch.ones_like(z)) * q**2
    slope = slope * (q + 2 * torch.sigmoid(-z) * softplus)
    (grad,) = torch.autograd.grad(total, logits)
    assert_gradient_close(grad, slope, dtype, num_classes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_address_does_not_matter(device, dtype):
    """Bit for bit, also where vectors of 16 bytes cannot be loaded; and which form the gradient has."""
    logits, targets = reference.random_inputs(211, 80)
    logits, targets = logits.to(device, dtype), targets.to(device)
    results = []
    for offset in (0, 1, 3):
        memory = torch.cat([torch.zeros(offset, device=device, dtype=dtype), logits.flatten()])
        shifted = memory[offset:].view_as(logits).requires_grad_()
        assert shifted.is_contiguous() and shifted.storage_offset() == offset
        total = sigmoid_focal_loss(shifted, targets, 2.0, 0.25)
        losses = sigmoid_focal_loss(shifted, targets, 2.0, 0.25, reduction="none")
        ones = torch.ones_like(losses).detach() * 3
        grads = [torch.autograd.grad(total, shifted, torch.full_like(total, 3))[0]]
        grads.append(torch.autograd.grad(losses, shifted, ones, retain_graph=True)[0])
        grads.append(torch.autograd.grad(losses, shifted, ones[:1, :1].expand_as(losses))[0])
        assert grads[1].equal(grads[0]) and grads[2].equal(grads[0])
        results.append((total.detach(), losses.detach(), grads[0]))
    for result in results[1:]:
        assert all(a.equal(b) for a, b in zip(result, results[0]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8], ids=str)
def test_integer_targets(device, dtype):
    logits, targets = (t.to(device) for t in reference.random_inputs(50, 20))
    logits.requires_grad_()
    expected = sigmoid_focal_loss(logits, targets, 1.5, 0.25)
    total = sigmoid_focal_loss(logits, targets.to(dtype), 1.5, 0.25)
    assert total.equal(expected)
    assert torch.autograd.grad(total, logits)[0].equal(torch.autograd.grad(expected, logits)[0])


# ---- CUDA only


@needs_cuda
@pytest.mark.parametrize("gamma, alpha", PARAMETERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_is_the_cpu(dtype, gamma, alpha):
    logits, targets = reference.random_inputs(1500, 80)
    logits = (2 * logits).to(dtype)
    weights = torch.rand(logits.shape).to(dtype)
    results = []
    for device in ("cpu", "cuda"):
        x, t = logits.to(device).requires_grad_(), targets.to(device)
        total = sigmoid_focal_loss(x, t, gamma, alpha)
        losses = sigmoid_focal_loss(x, t, gamma, alpha, reduction="none")
        grads = torch.autograd.grad(total, x)[0], torch.autograd.grad(losses, x, weights.to(device))[0]
        results.append((total, losses) + grads)
    for result, expected in zip(results[1], results[0]):
        assert result.dtype == expected.dtype
        error = (result.detach().double().cpu() - expected.detach().double()).abs()
        scale = expected.detach().double().abs()
        # both are within the tolerance of the exact value
        assert bool((error <= 2 * TOLERANCES[dtype] * max(1, gamma) * scale + 6e-8).all()), float(error.max())


@needs_cuda
def test_cuda_marks_targets_out_of_range():
    """No error, which would need a synchronisation."""
    logits = torch.zeros(6, 3, device="cuda", requires_grad=True)
    for dtype in (torch.int64, torch.int32):
        targets = torch.tensor([0, 4, -2, 3, -1, 2**31 - 1], dtype=dtype, device="cuda")
        losses = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction="none")
        (grad,) = torch.autograd.grad(losses.sum(), logits)
        for values in (losses, grad):
            assert torch.isnan(values).all(1).tolist() == [False, True, True, False, False, True]
            assert torch.isfinite(values[[0, 3, 4]]).all()
        assert torch.isnan(sigmoid_focal_loss(logits, targets, 2.0, 0.25))
    huge = torch.tensor([2**32 + 1, -(2**40), 2**62, 1, 1, 1], device="cuda")
    losses = sigmoid_focal_loss(logits, huge, 2.0, 0.25, reduction="none")
    assert torch.isnan(losses).all(1).tolist() == [True, True, True, False, False, False]


def gradient(logits, targets, reduction="sum"):
    """Gradient of the loss times one half."""
    loss = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction=reduction)
    return torch.autograd.grad(loss, logits, torch.full_like(loss, 0.5))[0]


@needs_cuda
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_cuda_does_not_synchronise(reduction):
    logits, targets = (t.cuda() for t in reference.random_inputs(500, 80))
    logits.requires_grad_()
    expected = gradient(logits, targets, reduction)
    with on_cuda.no_sync():
        grads = [gradient(logits, targets.to(dtype), reduction) for dtype in (torch.int64, torch.int32, torch.int16)]
    assert all(grad.equal(expected) for grad in grads)


@needs_cuda
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_streams_and_graphs(reduction):
    one, two = ([t.cuda() for t in reference.random_inputs(3000, 80, seed=seed)] for seed in (0, 1))
    one[0].requires_grad_()
    two[0].requires_grad_()
    for function in (
        lambda x, t: gradient(x, t, reduction),
        lambda x, t: sigmoid_focal_loss(x, t, 2.0, 0.25, reduction=reduction).detach(),
    ):
        expected = function(*two)
        assert function(*two).equal(expected)
        assert on_cuda.on_side_stream(function, *two).equal(expected)
        assert on_cuda.replayed(function, one, two).equal(expected)


@needs_cuda
def test_cuda_keeps_nothing_beside_the_gradient():
    logits, targets = (t.cuda() for t in reference.random_inputs(20000, 80))
    logits.requires_grad_()
    with torch.no_grad():
        assert on_cuda.peak_bytes(lambda: sigmoid_focal_loss(logits, targets, 2.0, 0.25)) < 2**16
    # the forward writes what will be the gradient
    assert on_cuda.peak_bytes(lambda: sigmoid_focal_loss(logits, targets, 2.0, 0.25)) < 4 * logits.numel() + 2**16
    assert on_cuda.peak_bytes(lambda: gradient(logits, targets)) < 4 * logits.numel() + 2**16


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_graph_serves_several_backward_passes(dtype):
    """The first returns what the forward wrote, whatever factor arrives; later ones have their own memory."""
    logits, targets = (t.cuda() for t in reference.random_inputs(300, 80))
    logits = logits.to(dtype).requires_grad_()
    total = sigmoid_focal_loss(logits, targets, 2.0, 0.25)
    factors = [torch.full_like(total, number) for number in (1, 1, 0.3)]
    grads = [torch.autograd.grad(total, logits, factor, retain_graph=True)[0] for factor in factors]
    assert grads[0].equal(grads[1]) and grads[0].data_ptr() != grads[1].data_ptr()
    for factor, grad in zip(factors, grads):
        fresh = sigmoid_focal_loss(logits, targets, 2.0, 0.25)
        assert torch.autograd.grad(fresh, logits, factor)[0].equal(grad)
    (grad,) = torch.autograd.grad(total, logits, create_graph=True)
    assert grad.equal(grads[0])
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: expected one backward pass, got a second"):
        grad.sum().backward()


@needs_cuda
@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [80, 91])
def test_cuda_beyond_32_bit_indices(num_classes):
    """More than 2^31 logits: the launch is cut into slabs of rows."""
    num_rows = (2**31 + 2**28) // num_classes + 5
    if torch.cuda.get_device_properties(0).total_memory < 5 * num_rows * num_classes:
        pytest.skip("needs 5 bytes of GPU memory for each of {} logits".format(num_rows * num_classes))
    logits = torch.zeros(num_rows, num_classes, dtype=torch.float16, device="cuda")
    targets = torch.zeros(num_rows, dtype=torch.int32, device="cuda")
    # rows at the beginning, at the end and around where 31 bits end
    edge = 2**31 // num_classes
    rows = torch.tensor([0, 1, edge - 2**28 // num_classes, edge - 1, edge, edge + 1, num_rows - 2, num_rows - 1])
    rows = torch.cat([rows, rows[2] + torch.arange(-20, 20)]).unique().cuda()
    logits[rows] = torch.randn(len(rows), num_classes, device="cuda").half()
    targets[rows] = (1 + torch.arange(len(rows), device="cuda") % num_classes).int()
    some = logits[rows].requires_grad_()
    losses = sigmoid_focal_loss(some, targets[rows], 2.0, 0.25)
    zeros = (num_rows - len(rows)) * num_classes * 0.75 * 0.25 * np.log(2)
    logits.requires_grad_()
    total = sigmoid_focal_loss(logits, targets, 2.0, 0.25)
    assert float(total.detach()) == pytest.approx(float(losses.detach()) + zeros, rel=1e-6)
    (grad,) = torch.autograd.grad(total, logits)
    assert grad[rows].equal(torch.autograd.grad(losses, some)[0])
    for column in (0, num_classes - 1):
        others = grad[:, column].clone()
        others[rows] = others[2].clone()
        assert bool((others == others[2]).all()) and float(others[2]) > 0


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device():
    logits, targets = (t.to("cuda:1") for t in reference.random_inputs(300, 20))
    grad = gradient(logits.requires_grad_(), targets)
    assert grad.device == logits.device and torch.cuda.current_device() == 0
    expected = gradient(logits.detach().cpu().requires_grad_(), targets.cpu())
    assert_gradient_close(grad, expected.double(), torch.float32, "second device")


# ---- torch: autocast, tracing


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="CPU autocast came with torch 1.10")
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_autocast_computes_in_float32(device, reduction):
    logits, targets = (t.to(device) for t in reference.random_inputs(60, 10))
    logits = logits.bfloat16().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        losses = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction=reduction)
    assert losses.dtype == torch.float32
    full = logits.detach().float().requires_grad_()
    expected = sigmoid_focal_loss(full, targets, 2.0, 0.25, reduction=reduction)
    assert losses.equal(expected)
    losses.sum().backward()
    expected.sum().backward()
    assert logits.grad.dtype == torch.bfloat16 and logits.grad.equal(full.grad.bfloat16())


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "opcheck"), reason="opcheck came with torch 2.4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, dtype):
    load()
    logits, targets = (t.to(device) for t in reference.random_inputs(12, 5))
    logits = logits.to(dtype).requires_grad_()
    for reduction in (0, 2):
        arguments = (logits, targets, 2.0, 0.25, reduction)
        torch.library.opcheck(torch.ops.fcos_core.sigmoid_focal_loss, arguments)
        grad = torch.ones_like(torch.ops.fcos_core.sigmoid_focal_loss(*arguments)).detach()
        torch.library.opcheck(
            torch.ops.fcos_core._sigmoid_focal_loss_backward, (grad, logits.detach(), targets, 2.0, 0.25, reduction)
        )


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_compiles_without_graph_breaks(device, reduction):
    logits, targets = (t.to(device) for t in reference.random_inputs(20, 5))

    def loss(x):
        return (sigmoid_focal_loss(x * 2, targets, 2.0, 0.25, reduction=reduction) * 3).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager, traced = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    expected, result = loss(eager), compiled(traced)
    expected.backward()
    result.backward()
    assert result.equal(expected) and traced.grad.equal(eager.grad)


# ---- wrong calls

LOGITS, TARGETS = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((LOGITS[0], TARGETS, 2.0, 0.25), r"expected logits of shape \[R, C\], got \[4\]; see"),
        ((LOGITS, TARGETS[:2], 2.0, 0.25), r"expected targets of shape \[R\], one per row of logits, got \[2\]"),
        ((LOGITS, LOGITS, 2.0, 0.25), r"expected targets of an integer dtype, got torch.float32; convert"),
        ((LOGITS.long(), TARGETS, 2.0, 0.25), r"expected logits of dtype float64, .* got torch.int64; convert"),
        ((LOGITS, TARGETS, -1.0, 0.25), r"expected gamma to be finite and at least 0, got -1; the paper uses 2"),
        ((LOGITS, TARGETS, float("nan"), 0.25), r"expected gamma to be finite and at least 0, got nan"),
        ((LOGITS, TARGETS, 0.25, 2.0), r"expected alpha in \[0, 1\], got 2; .* gamma comes before alpha"),
        ((LOGITS, TARGETS + 5, 2.0, 0.25), r"expected targets in -1..4 .* got 5 at row 0; check the labels"),
        ((LOGITS, TARGETS - 2, 2.0, 0.25), r"expected targets in -1..4 .* got -2 at row 0"),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_messages(arguments, message, reduction):
    with pytest.raises(RuntimeError, match="sigmoid_focal_loss: " + message):
        sigmoid_focal_loss(*arguments, reduction=reduction)


def test_messages_about_reduction():
    with pytest.raises(ValueError, match=r"expected reduction to be one of \['none', 'sum'\], got 'mean'; divide"):
        sigmoid_focal_loss(LOGITS, TARGETS, 2.0, 0.25, reduction="mean")
    load()
    for reduction in (1, 3, -1):
        with pytest.raises(RuntimeError, match=r"expected reduction 0 \(none\) or 2 \(sum\), got"):
            torch.ops.fcos_core.sigmoid_focal_loss(LOGITS, TARGETS, 2.0, 0.25, reduction)


def test_messages_of_the_backward():
    backward = torch.ops.fcos_core._sigmoid_focal_loss_backward
    load()
    with pytest.raises(RuntimeError, match=r"expected grad of shape \[R, C\], as logits, got \[3\]"):
        backward(torch.zeros(3), LOGITS, TARGETS, 2.0, 0.25, 0)
    with pytest.raises(RuntimeError, match=r"expected grad of shape \[\], one number, got \[3, 4\]"):
        backward(LOGITS, LOGITS, TARGETS, 2.0, 0.25, 2)
    with pytest.raises(RuntimeError, match=r"expected targets in -1..4 .* got 9 at row 0"):
        backward(LOGITS, LOGITS, TARGETS + 9, 2.0, 0.25, 0)
    with pytest.raises(ValueError, match=r"expected num_classes to be the number of columns of logits, got 80 for"):
        _C.sigmoid_focalloss_forward(LOGITS, TARGETS, 80, 2.0, 0.25)


tensors = st.builds(
    lambda shape, dtype: (torch.rand(shape) * 9 - 4).to(dtype),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(DTYPES + [torch.int64, torch.int32, torch.uint8, torch.bool]),
)
anything = st.one_of(tensors, st.none(), st.integers(-2, 2), st.floats(), st.just("0.5"), st.just([1.0, 2.0]))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["forward", "backward", "composite", "composite backward"]),
    st.lists(tensors, min_size=2, max_size=3),
    st.one_of(st.just([2.0, 0.25]), st.lists(anything, max_size=3)),
    st.one_of(st.just(0), st.just(2), anything),
)
def test_any_call_answers_or_raises(kind, some_tensors, numbers, reduction):
    """Nothing crosses into the kernel unchecked: a crash would end the test run."""
    load()
    function = {
        "forward": torch.ops.fcos_core.sigmoid_focal_loss,
        "backward": torch.ops.fcos_core._sigmoid_focal_loss_backward,
        "composite": torch.ops.fcos_core._sigmoid_focal_loss_composite,
        "composite backward": torch.ops.fcos_core._sigmoid_focal_loss_backward_composite,
    }[kind]
    try:
        result = function(*some_tensors, *numbers, reduction)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return
    logits = some_tensors[1 if "backward" in kind else 0]
    assert result.shape == (logits.shape if "backward" in kind or reduction == 0 else torch.Size([]))


def test_module_and_old_names():
    logits, targets = reference.random_inputs(20, 4)
    assert repr(SigmoidFocalLoss(2.0, 0.25)) == "SigmoidFocalLoss(gamma=2.0, alpha=0.25)"
    expected = sigmoid_focal_loss(logits, targets, 2.0, 0.25, reduction="none")
    assert sigmoid_focal_loss_cpu(logits, targets, 2.0, 0.25).equal(expected)
    assert sigmoid_focal_loss_cuda(logits, targets.int(), 2.0, 0.25).equal(expected)
    assert function_from_package is sigmoid_focal_loss


def test_build_facts():
    load()
    assert torch.__version__.startswith(torch.ops.fcos_core._built_with_torch().split("+")[0])
    assert isinstance(torch.ops.fcos_core._built_with_cuda(), bool)
