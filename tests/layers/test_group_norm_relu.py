"""Group normalisation with ReLU: against a slow reference, torch's own operators, and wrong calls."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcos_core.layers import GroupNormReLU, group_norm_relu
from fcos_core.layers._library import load
from tests.layers import on_cuda
from tests.layers.on_cuda import needs_cuda
from tests.reference import group_norm_relu as reference

# of outputs of size 1; half precision is computed in float32 and rounded once
TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCES)
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype):
    for name, input, weight, bias, num_groups in reference.sample_inputs(device, dtype, requires_grad=True):
        leaves = [t.detach().double().cpu().requires_grad_() for t in (input, weight, bias)]
        exact = reference.group_norm_relu(*leaves, num_groups)
        output = group_norm_relu(input, num_groups, weight, bias)
        assert output.dtype == dtype and output.device == input.device and output.shape == input.shape
        assert output.stride() == torch.empty_like(input).stride(), name
        # values far from 0 have lost digits before they come here
        scale = 1 + (float(input.detach().double().abs().max()) if input.numel() else 0.0) * 0.1
        error = (output.detach().double().cpu() - exact.detach()).abs()
        bound = TOLERANCES[dtype] * (exact.detach().abs() + scale)
        if device.type == "cpu" and input.numel() > 0:
            # composed of torch's operators, which once lost the digits of variances far from 0
            full = input.detach().to(torch.promote_types(dtype, torch.float32))
            theirs = F.relu(F.group_norm(full, num_groups, weight.detach().to(full), bias.detach().to(full)))
            if not bool(((theirs.double() - exact.detach()).abs() <= bound).all()):
                assert "far from 0" in name
                continue
        assert bool((error <= bound).all()), (name, float(error.max()))
        if exact.numel() == 0:
            continue
        factors = torch.linspace(-1, 2, exact.numel(), dtype=torch.float64).reshape(exact.shape).to(dtype)
        # where rounding decides which side of 0 a value is on, the gradient is of one side or the other
        factors = factors.masked_fill((exact.detach() < 1e-2) & (output.detach().double().cpu() < 1e-2), 0)
        expected = torch.autograd.grad((exact * factors.double()).sum(), leaves)
        grads = torch.autograd.grad(output, (input, weight, bias), factors.to(device))
        for grad, wanted, leaf in zip(grads, expected, (input, weight, bias)):
            assert grad.dtype == leaf.dtype and grad.shape == leaf.shape
            largest = float(wanted.abs().max())
            error = float((grad.double().cpu() - wanted).abs().max())
            tolerance = 4 * max(TOLERANCES[dtype], TOLERANCES[leaf.dtype]) * scale
            assert error <= tolerance * (largest + 1), (name, error, largest)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradcheck(device, layout):
    input, weight, bias = (t.double().to(device) for t in reference.random_inputs((2, 8, 3, 3)))
    input = input.contiguous(memory_format=layout)
    leaves = [t.requires_grad_() for t in (input, weight, bias)]
    assert float(group_norm_relu(input, 2, weight, bias).detach().min()) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, about their own internals
        assert torch.autograd.gradcheck(lambda x, w, b: group_norm_relu(x, 2, w, b), leaves)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_module_is_the_pair_of_torch(device, layout):
    """Same parameters, same state, same numbers."""
    pair = nn.Sequential(nn.GroupNorm(32, 64), nn.ReLU()).to(device)
    module = GroupNormReLU(32, 64).to(device)
    nn.init.normal_(pair[0].weight)
    nn.init.normal_(pair[0].bias)
    module.load_state_dict(pair[0].state_dict())
    input = reference.random_inputs((2, 64, 12, 9))[0].to(device).contiguous(memory_format=layout)
    results = []
    for function in (pair, module):
        leaf = input.clone(memory_format=torch.preserve_format).requires_grad_()
        output = function(leaf)
        results.append((output.detach(), torch.autograd.grad(output.pow(2).sum(), leaf)[0]))
    for theirs, ours in zip(*results):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert isinstance(module, nn.GroupNorm)
    if device.type == "cuda":
        assert all(result.is_contiguous(memory_format=layout) for result in results[1])


def test_nan_shows_and_passes_no_gradient(device):
    input, weight, bias = (t.to(device) for t in reference.random_inputs((2, 8, 4, 4)))
    input = input.contiguous(memory_format=torch.channels_last)
    input[1, 2, 3, 3] = float("nan")
    output = group_norm_relu(input.requires_grad_(), 2, weight, bias)
    assert torch.isnan(output[1, :4]).all() and torch.isfinite(output[0]).all() and torch.isfinite(output[1, 4:]).all()
    (grad,) = torch.autograd.grad(output.sum(), input)
    assert torch.isfinite(grad[0]).all()


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cuda_is_reproducible_and_does_not_wait(dtype):
    one, two = ([t.cuda() for t in reference.random_inputs((4, 64, 50, 61), seed=seed)] for seed in (0, 1))
    for tensors in (one, two):
        tensors[0] = tensors[0].to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()

    def gradient(input, weight, bias):
        output = group_norm_relu(input, 16, weight, bias)
        return torch.autograd.grad(output, input, output.detach())[0]

    expected = gradient(*two)
    with on_cuda.no_sync():
        again = gradient(*two)
    assert again.equal(expected)
    assert on_cuda.replayed(gradient, one, two).equal(expected)


@needs_cuda
def test_cuda_keeps_the_dtype_under_autocast():
    module = GroupNormReLU(32, 64).cuda()
    input = torch.randn(2, 64, 20, 20, device="cuda").bfloat16().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = module(input)
        expected = F.relu(F.group_norm(input, 32, module.weight, module.bias))
    assert output.dtype == torch.bfloat16 and expected.dtype == torch.float32
    assert torch.allclose(output.float(), expected, rtol=8e-3, atol=1e-3)


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "opcheck"), reason="opcheck came with torch 2.4")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_opcheck(device, layout):
    load()
    input, weight, bias = (t.to(device) for t in reference.random_inputs((2, 8, 5, 3)))
    input = input.contiguous(memory_format=layout)
    leaves = [t.clone().requires_grad_() for t in (input, weight, bias)]
    torch.library.opcheck(torch.ops.fcos_core.group_norm_relu, (*leaves, 2, 1e-5))
    output, mean, rstd = torch.ops.fcos_core.group_norm_relu(input, weight, bias, 2, 1e-5)
    torch.library.opcheck(
        torch.ops.fcos_core._group_norm_relu_backward, (torch.ones_like(output), input, weight, bias, mean, rstd, 2)
    )


MAP, ONES = torch.zeros(2, 8, 3, 3), torch.ones(8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((MAP[0], ONES, ONES, 2, 1e-5), r"expected input of shape \[N, C, H, W\], got \[8, 3, 3\]"),
        ((MAP, ONES[:7], ONES, 2, 1e-5), r"expected weight of shape \[C\], one per channel of input, got \[7\]"),
        ((MAP, ONES, ONES.long(), 2, 1e-5), r"expected bias of dtype float64, .* got torch.int64"),
        ((MAP, ONES, ONES, 3, 1e-5), r"expected num_groups to divide the channels of input \(8\), got 3; 32 is usual"),
        ((MAP, ONES, ONES, 0, 1e-5), r"expected num_groups to divide the channels of input \(8\), got 0"),
        ((MAP, ONES, ONES, 2, -1.0), r"expected eps to be finite and at least 0, got -1"),
    ],
)
def test_messages(arguments, message):
    load()
    with pytest.raises(RuntimeError, match="group_norm_relu: " + message):
        torch.ops.fcos_core.group_norm_relu(*arguments)


def test_second_derivative_is_refused():
    leaf = torch.randn(1, 8, 3, 3).requires_grad_()
    output = group_norm_relu(leaf, 2, ONES, ONES)
    (grad,) = torch.autograd.grad(output.pow(2).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="group_norm_relu: expected one backward pass, got a second"):
        grad.sum().backward()
