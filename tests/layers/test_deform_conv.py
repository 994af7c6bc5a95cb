"""Deformable convolution: against a slow reference, by its properties, and against wrong calls."""

import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fcos_core import _C, layers
from fcos_core.layers import (
    DeformConv,
    DFConv2d,
    ModulatedDeformConv,
    ModulatedDeformConvPack,
    deform_conv,
    modulated_deform_conv,
)
from fcos_core.layers._library import load
from tests.reference import deform_conv as reference

# Of the largest entry.  On the CPU half dtypes are computed in float32 and rounded once; on a GPU their columns are
# rounded too.
TOLERANCES = {
    "cpu": {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 7e-4, torch.bfloat16: 6e-3},
    "cuda": {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2},
}
DTYPES = list(TOLERANCES["cpu"])
PLAIN = ((1, 1), (1, 1), (1, 1), 1, 1)
GOLDEN = np.load(os.path.join(os.path.dirname(__file__), os.pardir, "golden", "deform_conv.npz"))

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
new_torch = pytest.mark.skipif(
    not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4"
)


def layout(tensor):
    """Strides that mean something: not those of sides of length one."""
    return [step for step, size in zip(tensor.stride(), tensor.shape) if size > 1 and tensor.numel()]


def call(sample):
    return modulated_deform_conv(sample.input, sample.offset, sample.mask, sample.weight, sample.bias, *sample.numbers)


def exact_copy(sample):
    return sample._replace(
        **{
            name: None if t is None else t.detach().double().requires_grad_()
            for name, t in zip(sample._fields[1:6], sample[1:6])
        }
    )


def tolerance_of(tensor, dtype=None):
    return TOLERANCES[tensor.device.type][dtype or tensor.dtype]


def assert_close(actual, expected, tolerance, what=""):
    actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
    assert actual.shape == expected.shape, what
    if expected.numel():
        error, largest = float((actual - expected).abs().max()), float(expected.abs().max())
        assert error <= tolerance * max(largest, 1e-3), (what, error, largest)


def gradients(sample, output, grad):
    return torch.autograd.grad(output, sample.tensors(), grad)


# ---- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype):
    for sample in reference.sample_inputs(device, dtype, requires_grad=True):
        exact = exact_copy(sample)
        expected = reference.deform_conv(*exact[1:6], *sample.numbers)
        output = call(sample)
        assert output.dtype == dtype and output.device == sample.input.device
        assert_close(output, expected, tolerance_of(output), sample.name)
        grad = torch.randn(output.shape, dtype=torch.float64).to(device, dtype)
        results = gradients(sample, output, grad)
        for i, (mine, theirs) in enumerate(zip(results, gradients(exact, expected, grad.double()))):
            assert mine.dtype == dtype
            # sums over all positions, or over all channels, of terms that cancel
            assert_close(mine, theirs, 3 * tolerance_of(output), (sample.name, i))


@pytest.mark.parametrize("features, sampling", [
    (torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.float64),
    (torch.float32, torch.float16), (torch.float64, torch.float32), (torch.float16, torch.bfloat16),
])  # fmt: skip
def test_offsets_of_another_dtype(device, features, sampling):
    for sample in reference.sample_inputs(device, features, requires_grad=True, sampling_dtype=sampling)[:12]:
        exact = exact_copy(sample)
        expected = reference.deform_conv(*exact[1:6], *sample.numbers)
        output = call(sample)
        assert output.dtype == features
        assert_close(output, expected, tolerance_of(output), sample.name)
        grad = torch.randn(output.shape, dtype=torch.float64).to(device, features)
        for t, mine, theirs in zip(
            sample.tensors(), gradients(sample, output, grad), gradients(exact, expected, grad.double())
        ):
            assert mine.dtype == t.dtype
            tolerance = max(tolerance_of(output), tolerance_of(output, mine.dtype))
            assert_close(mine, theirs, 3 * tolerance, sample.name)


@pytest.mark.parametrize("of_offset, of_mask", [
    (torch.float16, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.float16),
])  # fmt: skip
def test_offset_and_mask_of_two_dtypes(device, of_offset, of_mask):
    """Widening is exact, so nothing but the values counts."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 16, 6, 7, generator=generator).to(device, torch.float16)
    weight = torch.randn(8, 16, 3, 3, generator=generator).to(device, torch.float16)
    offset = (2 * torch.randn(2, 18, 6, 7, generator=generator)).to(device, of_offset)
    mask = torch.rand(2, 9, 6, 7, generator=generator).to(device, of_mask)
    expected = modulated_deform_conv(x, offset.float(), mask.float(), weight, None, 1, 1)
    assert torch.equal(modulated_deform_conv(x, offset, mask, weight, None, 1, 1), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_points_are_not_rounded_to_half(device, dtype):
    """At x = 300 a bfloat16 is a multiple of 2."""
    input, weight, offset, mask, bias, numbers = reference.random_inputs(1, 8, (3, 400), 4, reach=60.0)
    offset[:, 0::2] = 0.25
    input, weight, mask, bias = (t.to(device, dtype) for t in (input, weight, mask, bias))
    results = []
    for o in (offset.to(device, torch.float32), offset.to(device, dtype)):
        output = modulated_deform_conv(input, o, mask, weight, bias, *numbers)
        # whatever dtype an offset has, its value is taken as it is
        expected = reference.deform_conv(input, weight, o, mask, bias, *numbers)
        assert_close(output, expected, tolerance_of(output))
        results.append(output.double().cpu())
    exact = reference.deform_conv(
        input.cpu(), weight.cpu(), offset.to(torch.float32), mask.cpu(), bias.cpu(), *numbers
    )  # fmt: skip
    error = [float((r - exact).abs().mean()) for r in results]
    assert error[0] * 8 < error[1]


def golden_inputs(device, dtype=torch.float64):
    def draw(seed, *shape, method="standard_normal"):
        state = np.random.RandomState(seed)
        return torch.from_numpy(getattr(state, method)(size=shape)).to(device, dtype).requires_grad_()

    offset = (1.5 * draw(172, 2, 36, 5, 6)).detach().requires_grad_()
    mask = draw(173, 2, 18, 5, 6, method="uniform")
    return draw(171, 2, 8, 9, 11), draw(174, 6, 4, 3, 3), offset, mask, draw(175, 6)


def test_golden(device):
    tensors = golden_inputs(device)
    input, weight, offset, mask, bias = tensors
    output = modulated_deform_conv(input, offset, mask, weight, bias, 2, 1, 1, 2, 2)
    prefix = "dcn/modulated_s2_p1_g2_dg2/"
    assert_close(output, torch.from_numpy(GOLDEN[prefix + "out"]), 1e-12)
    grad = torch.from_numpy(np.random.RandomState(176).standard_normal(tuple(output.shape))).to(device)
    results = torch.autograd.grad(output, tensors, grad)
    for name, result in zip(("input", "weight", "offset", "mask", "bias"), results):
        assert_close(result, torch.from_numpy(GOLDEN[prefix + "grad_" + name]), 1e-12, name)
    output = deform_conv(input, offset, weight, 2, 1, 1, 2, 2)
    assert_close(output, torch.from_numpy(GOLDEN["dcn/v1_s2_p1_g2_dg2/out"]), 1e-12)


def test_agrees_with_torchvision(device):
    peer = getattr(pytest.importorskip("torchvision").ops, "deform_conv2d", None)
    if peer is None:
        pytest.skip("torchvision without deform_conv2d")
    has_mask = "mask" in peer.__code__.co_varnames
    compared = 0
    for sample in reference.sample_inputs(device, torch.float64, requires_grad=True):
        # its backward does not take empty tensors, nor do old versions a mask
        if sample.mask is not None and not has_mask or any(t.numel() == 0 for t in sample.tensors()):
            continue
        more = {"mask": sample.mask} if has_mask else {}
        expected = peer(
            sample.input.contiguous(),
            sample.offset.contiguous(),
            sample.weight.contiguous(),
            sample.bias,
            *sample.numbers[:3],
            **more,
        )
        output = call(sample)
        assert_close(output, expected, 1e-12, sample.name)
        grad = torch.randn_like(output)
        for mine, theirs in zip(gradients(sample, output, grad), gradients(sample, expected, grad)):
            assert_close(mine, theirs, 1e-11, sample.name)
        compared += 1
    assert compared >= (16 if has_mask else 1)


# ---- properties


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_without_offsets_it_is_a_convolution(device, dtype):
    for sample in reference.sample_inputs(device, dtype, requires_grad=True):
        if any(t.numel() == 0 for t in sample.tensors()):
            continue
        offset, mask = torch.zeros_like(sample.offset), None if sample.mask is None else torch.ones_like(sample.mask)
        plain = sample._replace(offset=offset, mask=mask)
        expected = F.conv2d(sample.input, sample.weight, sample.bias, *sample.numbers[:4])
        output = call(plain)
        tolerance = 1e-12 if dtype == torch.float64 else 5e-5  # of cudnn
        assert_close(output, expected, tolerance, sample.name)
        leaves = [t for t in (sample.input, sample.weight, sample.bias) if t is not None]
        grad = torch.randn_like(output)
        for mine, theirs in zip(
            torch.autograd.grad(output, leaves, grad), torch.autograd.grad(expected, leaves, grad)
        ):
            assert_close(mine, theirs, tolerance, sample.name)


def test_whole_offsets_shift(device):
    """An offset of (1, -2) everywhere reads the map that is moved the other way."""
    input, weight, offset, _, _, numbers = reference.random_inputs(1, 4, (7, 8), 3, modulated=False)
    offset = torch.tensor([1.0, -2.0]).double().repeat(9).reshape(1, 18, 1, 1).expand_as(offset)
    moved = torch.zeros_like(input)
    moved[:, :, :-1, 2:] = input[:, :, 1:, :-2]
    expected = deform_conv(moved.to(device), torch.zeros_like(offset).to(device), weight.to(device), 1, 1)
    output = deform_conv(input.to(device), offset.to(device), weight.to(device), 1, 1)
    # but the padding of the moved map is not what lies there
    assert_close(output[:, :, 1:-2, 3:-1], expected[:, :, 1:-2, 3:-1], 1e-12)


def test_border(device):
    """Cells outside count as 0; at -1 and at the size a point reads nothing and has no gradient."""
    input = torch.full((1, 1, 2, 3), 4.0, device=device)
    places = [-1.5, -1.0, -0.75, -0.5, 0.0, 0.5, 1.0, 1.25, 1.75, 2.0, 2.5]
    expected = [0.0, 0.0, 1.0, 2.0, 4.0, 4.0, 4.0, 3.0, 1.0, 0.0, 0.0]
    slopes = [0.0, 0.0, 4.0, 4.0, 0.0, 0.0, -4.0, -4.0, -4.0, 0.0, 0.0]
    for y, value, slope in zip(places, expected, slopes):
        offset = torch.tensor([y, 1.0], device=device).reshape(1, 2, 1, 1).expand(1, 2, 2, 3).clone().requires_grad_()
        output = deform_conv(input, offset, torch.ones(1, 1, 1, 1, device=device))
        assert output[0, 0, 0, 0].item() == value, y
        output[0, 0, 0, 0].backward()
        assert offset.grad[0, 0, 0, 0].item() == slope, y
        assert offset.grad[0, 1, 0, 0].item() == 0, y


def test_far_and_broken_offsets(device):
    """Huge and infinite points read nothing, NaN shows; nothing else is touched."""
    input, weight, offset, mask, bias, numbers = (
        t.float().to(device) if isinstance(t, torch.Tensor) else t
        for t in reference.random_inputs(1, 4, (6, 5), 3, reach=0.0)
    )
    clean = modulated_deform_conv(input, offset, mask, weight, bias, *numbers)
    for value in (1e9, -1e9, 3e38, -3e38, float("inf"), float("-inf"), float("nan")):
        for channel in (0, 1, 17):
            broken = offset.clone()
            broken[0, channel, 2, 3] = value
            broken.requires_grad_()
            leaf = input.clone().requires_grad_()
            output = modulated_deform_conv(leaf, broken, mask, weight, bias, *numbers)
            different = (output != clean).any(1)[0].nonzero(as_tuple=False).tolist()
            assert different == [[2, 3]]
            assert torch.isnan(output).any() == (value != value)
            if value == value:
                without = mask.clone()
                without[0, channel // 2, 2, 3] = 0
                assert_close(output, modulated_deform_conv(input, offset, without, weight, bias, *numbers), 1e-6)
            grad_input, grad_offset = torch.autograd.grad(output[torch.isfinite(output)].sum(), (leaf, broken))
            assert torch.isfinite(grad_input).all()
            if value == value:
                assert torch.isfinite(grad_offset).all()
                tap = channel // 2 * 2
                assert (grad_offset[0, tap : tap + 2, 2, 3] == 0).all()


def test_cells_outside_do_not_count_even_if_infinite(device):
    """A point in the middle of the map does not read the cells at its border, nor one outside some cell inside."""
    input = torch.full((1, 1, 4, 4), float("inf"), device=device)
    input[0, 0, 1:3, 1:3] = 1
    input[0, 0, 0, 0] = 1
    offset = torch.zeros(1, 2, 4, 4, device=device)
    offset[0, :, 1, 1] = 0.5
    offset[0, :, 0, 0] = -0.5
    output = deform_conv(input, offset, torch.ones(1, 1, 1, 1, device=device))
    assert output[0, 0, 1, 1].item() == 1 and output[0, 0, 0, 0].item() == 0.25


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_formats(device, dtype):
    """Results have the format of what they belong to, and the same values."""
    for sample in reference.sample_inputs(device, dtype, requires_grad=True)[:16]:
        if sample.input.shape[1] == 1:
            continue  # both formats at once
        last = sample._replace(
            **{
                name: t.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
                for name, t in zip(sample._fields[1:5], sample[1:5])
                if t is not None
            }
        )
        results = []
        for s in (sample, last):
            output = call(s)
            assert output.is_contiguous(memory_format=torch.channels_last) == (s is last)
            assert output.is_contiguous() == (s is sample)
            results.append([output] + list(gradients(s, output, torch.ones_like(output) / 4)))
            for t, grad in zip(s.tensors()[:-1], results[-1][1:]):
                if t.dim() == 4 and min(t.shape[1:]) > 1:
                    assert grad.is_contiguous(memory_format=torch.channels_last) == (s is last), sample.name
        for one, other in zip(*results):
            assert_close(one, other, tolerance_of(one), sample.name)


def test_gradient_of_any_strides(device):
    sample = exact_copy(reference.sample_inputs(device, torch.float64)[0])
    output = call(sample)
    grad = torch.randn(output.shape).double().to(device)
    expected = gradients(sample, call(sample), grad)
    strided = grad.transpose(1, 3).contiguous().transpose(1, 3)
    for other in (grad.contiguous(memory_format=torch.channels_last), strided):
        for mine, theirs in zip(gradients(sample, call(sample), other), expected):
            assert_close(mine, theirs, 1e-12)
    for mine, theirs in zip(
        torch.autograd.grad(call(sample).sum(), sample.tensors()),
        gradients(sample, output, torch.ones_like(output)),
    ):
        assert_close(mine, theirs, 1e-12)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups, deformable_groups", [(1, 1), (2, 4), (4, 2)])
def test_gradcheck(device, modulated, groups, deformable_groups):
    numbers = ((2, 1), (1, 2), (1, 2), groups, deformable_groups)
    *tensors, _ = reference.random_inputs(2, 4, (4, 5), 4, (3, 2), numbers, modulated)
    leaves = [t.to(device).requires_grad_() for t in tensors if t is not None]

    def function(input, weight, offset, mask=None, bias=None):
        return modulated_deform_conv(input, offset, mask, weight, bias, *numbers)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, about their own internals
        assert torch.autograd.gradcheck(function, leaves, nondet_tol=1e-9)


def test_second_derivative_is_refused(device):
    sample = reference.sample_inputs(device, torch.float32, requires_grad=True)[0]
    grads = torch.autograd.grad(call(sample).sum(), sample.tensors(), create_graph=True)
    with pytest.raises(RuntimeError, match="deform_conv: expected one backward pass, got a second"):
        grads[0].sum().backward()


def test_only_some_gradients(device):
    sample = reference.sample_inputs(device, torch.float32)[0]
    for name in ("input", "weight", "offset", "mask", "bias"):
        leaf = getattr(sample, name).clone().requires_grad_()
        full = sample._replace(**{n: getattr(sample, n).clone().requires_grad_() for n in sample._fields[1:6]})
        (alone,) = torch.autograd.grad(call(sample._replace(**{name: leaf})).sum(), leaf)
        (together,) = torch.autograd.grad(call(full).sum(), getattr(full, name))
        assert_close(alone, together, 1e-6)


def with_threads(function):
    """Results of function() with several numbers of threads."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(function())
    finally:
        torch.set_num_threads(before)
    return results


# (images, channels, size, outputs, numbers): one block, some blocks, more blocks than sums side by side
SHAPES = [
    (1, 48, (7, 8), 40, PLAIN),
    (2, 64, (30, 33), 72, ((1, 1), (1, 1), (1, 1), 4, 2)),
    (1, 128, (128, 132), 8, PLAIN),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_number_of_threads_does_not_matter(shape, dtype, memory_format):
    num_images, channels, size, outputs, numbers = shape
    if size[0] > 100 and (dtype != torch.float32 or memory_format == torch.channels_last):
        pytest.skip("large")
    *tensors, _ = reference.random_inputs(num_images, channels, size, outputs, numbers=numbers)
    leaves = [t.to(dtype).detach() for t in tensors]
    leaves = [
        (t.contiguous(memory_format=memory_format) if t.dim() == 4 else t).requires_grad_() for t in leaves
    ]
    input, weight, offset, mask, bias = leaves
    grad = torch.randn(call(reference.Sample("", *leaves, numbers)).shape).to(dtype)

    def run():
        output = modulated_deform_conv(input, offset, mask, weight, bias, *numbers)
        return [output] + list(torch.autograd.grad(output, leaves, grad))

    results = with_threads(run)
    for other in results[1:]:
        different = [i for i, (a, b) in enumerate(zip(results[0], other)) if not a.equal(b)]
        assert not different, "output and gradients of input, weight, offset, mask, bias: {}".format(different)


def test_many_blocks_against_few():
    """float64 cuts the positions at other places than float32."""
    *tensors, numbers = reference.random_inputs(*SHAPES[2][:4])
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [t.float().to(dtype).requires_grad_() for t in tensors]
        output = call(reference.Sample("", *leaves, numbers))
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        results.append([output] + list(torch.autograd.grad(output, leaves, grad)))
    for one, other in zip(*results):
        assert_close(one, other, 1e-5)


def test_images_are_independent(device):
    sample = reference.sample_inputs(device, torch.float32)[0]
    whole = call(sample)
    for i in range(2):
        alone = sample._replace(
            input=sample.input[i : i + 1], offset=sample.offset[i : i + 1], mask=sample.mask[i : i + 1]
        )
        assert_close(call(alone)[0], whole[i], 1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_shape_matches_reference(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    pair = lambda low, high: (draw(low, high), draw(low, high))  # noqa: E731
    groups, deformable_groups = draw(1, 3), draw(1, 3)
    channels = groups * deformable_groups * draw(1, 3)
    kernel, stride, padding, dilation = pair(1, 3), pair(1, 3), pair(0, 2), pair(1, 2)
    least = [max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) for i in range(2)]
    size = tuple(least[i] + draw(0, 6) for i in range(2))
    numbers = (stride, padding, dilation, groups, deformable_groups)
    *tensors, _ = reference.random_inputs(
        draw(1, 2), channels, size, groups * draw(1, 3), kernel, numbers, draw(0, 1), draw(0, 40) / 8, draw(0, 99)
    )
    leaves = [t if t is None else t.requires_grad_() for t in tensors]
    sample = reference.Sample("", *leaves, numbers)
    expected, output = reference.deform_conv(*leaves, *numbers), call(sample)
    assert_close(output, expected, 1e-12)
    grad = torch.randn_like(output)
    for mine, theirs in zip(gradients(sample, output, grad), gradients(sample, expected, grad)):
        assert_close(mine, theirs, 1e-11)


# ---- torch: autocast, tracing


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="CPU autocast came with torch 1.10")
def test_autocast(device):
    """Features and weights like a convolution's; offset and mask stay float32."""
    sample = reference.sample_inputs(device, torch.float32, requires_grad=True)[0]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = call(sample)
        assert output.dtype == torch.bfloat16 == F.conv2d(sample.input, sample.weight).dtype
        output.float().sum().backward()  # also inside
    halves = {n: getattr(sample, n).detach().bfloat16().requires_grad_() for n in ("input", "weight", "bias")}
    expected = call(sample._replace(**halves))
    assert output.equal(expected)
    for name in sample._fields[1:6]:
        grad = getattr(sample, name).grad
        assert grad.dtype == torch.float32
        if name in halves:
            (other,) = torch.autograd.grad(expected.float().sum(), halves[name], retain_graph=True)
            assert_close(grad, other, 1e-6 if device.type == "cpu" else 1e-2)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert call(exact_copy(sample)).dtype == torch.float64  # as torch leaves it


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "opcheck"), reason="opcheck came with torch 2.4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, dtype):
    load()
    names = ["version 2", "version 1", "channels last", "groups cut deformable ones", "no image", "not contiguous"]
    for sample in reference.sample_inputs(device, dtype, requires_grad=True):
        if sample.name not in names:
            continue
        arguments = (*sample[1:6], *sample.numbers)
        torch.library.opcheck(torch.ops.fcos_core.deform_conv, arguments)
        grad = torch.ones_like(torch.ops.fcos_core.deform_conv(*arguments)).detach()
        detached = [t if t is None else t.detach() for t in sample[1:5]]
        torch.library.opcheck(
            torch.ops.fcos_core._deform_conv_backward, (grad, *detached, sample.bias is not None, *sample.numbers)
        )


@new_torch
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(device, dynamic):
    def loss(input, weight, offset, mask, bias):
        output = modulated_deform_conv(input * 2, offset, mask, weight, bias, 1, 1)
        return (output * output).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in ((9, 11), (8, 13)) if dynamic else ((9, 11),):
        *tensors, _ = reference.random_inputs(2, 16, size, 8)
        eager = [t.float().to(device).requires_grad_() for t in tensors]
        traced = [t.detach().clone().requires_grad_() for t in eager]
        expected, result = loss(*eager), compiled(*traced)
        expected.backward()
        result.backward()
        assert_close(result, expected, 1e-6)
        for one, other in zip(traced, eager):
            assert_close(one.grad, other.grad, 1e-5)


@pytest.mark.skipif(not hasattr(torch, "export") or not hasattr(torch.library, "register_fake"), reason="torch 2.4")
@pytest.mark.parametrize("modulated", [True, False])
def test_exports(device, modulated):
    load()
    module = DFConv2d(8, 4, with_modulated_dcn=modulated, bias=modulated).to(device).eval()
    x = torch.randn(2, 8, 7, 6, device=device)
    program = torch.export.export(module, (x,))
    assert "fcos_core.deform_conv" in str(program.graph)
    assert_close(program.module()(x), module(x), 1e-6)


# ---- wrong calls

INPUT, WEIGHT = torch.zeros(2, 4, 5, 6), torch.zeros(3, 4, 3, 3)
OFFSET, MASK = torch.zeros(2, 18, 5, 6), torch.zeros(2, 9, 5, 6)


@pytest.mark.parametrize("changed, message", [
    ({"input": INPUT[0]}, r"expected input of shape \[N, C, H, W\], got \[4, 5, 6\]; see"),
    ({"input": INPUT.long()}, r"expected input of dtype float64, .* got torch.int64; convert"),
    ({"weight": WEIGHT[0]}, r"expected weight of shape \[O, C / groups, kernel height, width\], got \[4, 3, 3\]"),
    ({"weight": WEIGHT.double()}, r"expected weight of the dtype of input \(torch.float32\), got torch.float64"),
    ({"weight": WEIGHT[:, :2]}, r"expected weight with 4 channels in dimension 1, 4 of input / 1 groups, got \[3, 2,"),
    ({"offset": OFFSET[:, :17]}, r"expected offset of shape \[2, 18, 5, 6\], got \[2, 17, 5, 6\]"),
    ({"offset": OFFSET[:1]}, r"expected offset of shape \[2, 18, 5, 6\], got \[1, 18, 5, 6\]"),
    ({"offset": OFFSET[:, :, 1:]}, r"expected offset of shape \[2, 18, 5, 6\], got \[2, 18, 4, 6\]"),
    ({"offset": OFFSET.long()}, r"expected offset of dtype float64, .* got torch.int64; convert"),
    ({"mask": MASK[:, 1:]}, r"expected mask of shape \[2, 9, 5, 6\], got \[2, 8, 5, 6\]"),
    ({"mask": MASK.bool()}, r"expected mask of dtype float64, .* got torch.bool; convert"),
    ({"bias": torch.zeros(4)}, r"expected bias of shape \[O\], one per channel of output, got \[4\]"),
    ({"bias": torch.zeros(3).half()}, r"expected bias of the dtype of input \(torch.float32\), got torch.float16"),
    ({"stride": 0}, r"expected stride to be two numbers in 1..1048576, got \[0, 0\]; the first is for y"),
    ({"padding": (1, -1)}, r"expected padding to be two numbers in 0..1048576, got \[1, -1\]"),
    ({"dilation": (2**21, 1)}, r"expected dilation to be two numbers in 1..1048576, got \[2097152, 1\]"),
    ({"groups": 3}, r"expected groups to divide the channels of input \(4\), got 3; 1 is no grouping"),
    ({"groups": 2}, r"expected groups to divide the channels of output \(3\), got 2"),
    ({"groups": 0}, r"expected groups to divide the channels of input \(4\), got 0"),
    ({"deformable_groups": 3}, r"expected deformable_groups to divide the channels of input \(4\), got 3"),
    ({"dilation": 4}, r"expected padded input height to be at least the extent of the kernel \(9\), got 7; use more"),
    ({"weight": WEIGHT[:, :, :, :0]}, r"expected padded input width to be at least"),
])  # fmt: skip
def test_messages(changed, message):
    arguments = dict(input=INPUT, offset=OFFSET, mask=MASK, weight=WEIGHT, bias=torch.zeros(3), stride=1, padding=1,
                     dilation=1, groups=1, deformable_groups=1)  # fmt: skip
    arguments.update(changed)
    with pytest.raises(RuntimeError, match="deform_conv: " + message):
        modulated_deform_conv(**arguments)


def test_messages_of_the_backward():
    load()
    backward = torch.ops.fcos_core._deform_conv_backward
    with pytest.raises(RuntimeError, match=r"expected grad of shape \[2, 3, 5, 6\], got \[2, 4, 5, 6\]"):
        backward(INPUT, INPUT, WEIGHT, OFFSET, MASK, True, *PLAIN)
    with pytest.raises(RuntimeError, match=r"expected grad of dtype float64, .* got torch.int64"):
        backward(torch.zeros(2, 3, 5, 6).long(), INPUT, WEIGHT, OFFSET, MASK, True, *PLAIN)
    with pytest.raises(RuntimeError, match=r"expected mask of shape"):
        backward(torch.zeros(2, 3, 5, 6), INPUT, WEIGHT, OFFSET, MASK[:1], True, *PLAIN)


small_tensors = st.builds(
    lambda shape, dtype: (torch.rand(shape) * 9 - 4).to(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64]),
)
some_numbers = st.one_of(st.integers(-1, 3), st.integers(-(2**62), 2**62))
some_pairs = st.one_of(st.just([1, 1]), st.lists(some_numbers, max_size=3))


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(small_tensors, min_size=3, max_size=3),
    st.lists(st.one_of(st.none(), small_tensors), min_size=2, max_size=2),
    st.lists(some_pairs, min_size=3, max_size=3),
    st.lists(some_numbers, min_size=2, max_size=2),
)
def test_any_call_answers_or_raises(is_backward, tensors, optional, pairs, groups):
    """Nothing crosses into the kernel unchecked: a crash would end the test run."""
    load()
    try:
        if is_backward:
            grad = torch.zeros(tensors[0].shape)
            torch.ops.fcos_core._deform_conv_backward(grad, *tensors, optional[0], True, *pairs, *groups)
        else:
            torch.ops.fcos_core.deform_conv(*tensors, *optional, *pairs, *groups)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        pass


# ---- modules and old names


def test_modules(device):
    sample = reference.sample_inputs(device, torch.float32)[0]
    module = ModulatedDeformConv(16, 8, 3, padding=1).to(device)
    expected = call(sample._replace(weight=module.weight, bias=module.bias))
    assert module(sample.input, sample.offset, sample.mask).equal(expected)
    assert list(module.state_dict()) == ["weight", "bias"] and (module.bias == 0).all()
    module = DeformConv(16, 8, 3, padding=1).to(device)
    expected = call(sample._replace(weight=module.weight, bias=None, mask=None))
    assert module(sample.input, sample.offset).equal(expected)
    assert list(module.state_dict()) == ["weight"] and module.bias is None
    assert repr(module) == (
        "DeformConv(in_channels=16, out_channels=8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), "
        "dilation=(1, 1), groups=1, deformable_groups=1, bias=False)"
    )
    bound = 144**-0.5
    assert 0.9 * bound < module.weight.abs().max() <= bound
    with pytest.raises(ValueError, match="DeformConv: expected bias False, got True"):
        DeformConv(16, 8, 3, bias=True)
    with pytest.raises(ValueError, match="ModulatedDeformConv: expected in_channels to be a multiple .* got 6 and 4"):
        ModulatedDeformConv(6, 8, 3, deformable_groups=4)


def test_pack_starts_as_half_a_convolution(device):
    module = ModulatedDeformConvPack(8, 6, 3, stride=2, padding=2, dilation=2, deformable_groups=2).to(device)
    assert sorted(module.state_dict()) == ["bias", "conv_offset_mask.bias", "conv_offset_mask.weight", "weight"]
    assert module.conv_offset_mask.out_channels == 54
    x = torch.randn(2, 8, 9, 7, device=device)
    assert_close(module(x), F.conv2d(x, module.weight, module.bias, 2, 2, 2) / 2, 1e-5)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups, deformable_groups", [(1, 1), (2, 4)])
def test_dfconv2d(device, modulated, groups, deformable_groups):
    module = DFConv2d(
        8, 6, modulated, kernel_size=(3, 5), groups=groups, padding=(1, 2), deformable_groups=deformable_groups,
        bias=modulated,
    ).to(device)  # fmt: skip
    names = ["offset.weight", "offset.bias", "conv.weight"] + ["conv.bias"] * modulated
    assert sorted(module.state_dict()) == sorted(names)
    assert module.offset.groups == 1 and module.offset.out_channels == (3 if modulated else 2) * 15 * deformable_groups
    bound = (3.0 / 120) ** 0.5
    assert 0.9 * bound < module.offset.weight.abs().max() <= bound and (module.offset.bias == 0).all()
    x = torch.randn(2, 8, 9, 7, device=device)
    predicted = module.offset(x)
    split = 30 * deformable_groups
    mask = predicted[:, split:].sigmoid() if modulated else None
    expected = reference.deform_conv(
        x, module.conv.weight, predicted[:, :split], mask, module.conv.bias, (1, 1), (1, 2), (1, 1), groups,
        deformable_groups,
    )  # fmt: skip
    assert_close(module(x), expected, 1e-4)
    assert module(x[:0]).shape == (0, 6, 9, 7)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_dfconv2d_keeps_the_size(modulated, stride, dilation):
    """Legacy: the default padding once was 1 with any dilation."""
    module = DFConv2d(4, 4, modulated, stride=stride, dilation=dilation)
    assert module.conv.padding == module.offset.padding == (dilation, dilation)
    assert module(torch.randn(1, 4, 9, 10)).shape == (1, 4, -(-9 // stride), -(-10 // stride))


def test_old_paths():
    from fcos_core.layers import misc
    from fcos_core.layers.dcn import deform_conv_func, deform_conv_module

    assert misc.DFConv2d is DFConv2d is layers.DFConv2d
    assert deform_conv_module.DeformConv is DeformConv
    assert deform_conv_module.ModulatedDeformConv is ModulatedDeformConv
    assert deform_conv_module.ModulatedDeformConvPack is ModulatedDeformConvPack
    assert deform_conv_func.deform_conv is deform_conv is layers.deform_conv
    assert deform_conv_func.modulated_deform_conv is modulated_deform_conv
    input, weight, offset, mask, bias, numbers = reference.random_inputs(2, 8, (5, 6), 4)
    output = deform_conv_func.DeformConvFunction.apply(input, offset, weight, 1, 1, 1, 1, 1, 64)
    assert output.equal(deform_conv(input, offset, weight, 1, 1))
    output = deform_conv_func.ModulatedDeformConvFunction.apply(input, offset, mask, weight, bias, 1, 1)
    assert output.equal(modulated_deform_conv(input, offset, mask, weight, bias, 1, 1))


UNEVEN = ((2, 1), (0, 2), (1, 3), 2, 4)  # stride, padding, dilation (y, x), groups, deformable groups
WIDTH_FIRST = (2, 3, 1, 2, 2, 0, 3, 1, 2, 4)  # kernel, stride, padding, dilation of version 1, kernel 3 x 2
HEIGHT_FIRST = (3, 2, 2, 1, 0, 2, 1, 3, 2, 4)


def test_old_functions_of_version_1(device):
    *tensors, _ = reference.random_inputs(2, 8, (9, 8), 4, (3, 2), UNEVEN, modulated=False)
    input, weight, offset = (t.to(device).requires_grad_() for t in tensors[:3])
    scratch = torch.empty(0, device=device)
    expected = deform_conv(input, offset, weight, *UNEVEN)
    output = torch.full_like(expected, 7.0).detach()
    assert _C.deform_conv_forward(input, weight, offset, output, scratch, scratch, *WIDTH_FIRST, 64) == 1
    assert output.equal(expected)

    grad = torch.randn_like(expected)
    expected = torch.autograd.grad(expected, (input, offset, weight), grad)
    start = [torch.randn_like(t) for t in (input, offset, weight)]
    results = [t.detach().clone() for t in start]
    args = (input, offset, grad, results[0], results[1], weight, scratch, *WIDTH_FIRST, 64)
    assert _C.deform_conv_backward_input(*args) == 1
    args = (input, offset, grad, results[2], scratch, scratch, *WIDTH_FIRST, 0.5, 64)
    assert _C.deform_conv_backward_parameters(*args) == 1
    assert_close(results[0], start[0] + expected[0], 1e-12)
    assert_close(results[1], expected[1], 1e-12)
    assert_close(results[2], start[2] + 0.5 * expected[2], 1e-12)

    with pytest.raises(ValueError, match=r"expected the kernel's height and width .* got 2 and 3 .* the width first"):
        _C.deform_conv_forward(input, weight, offset, output, scratch, scratch, *HEIGHT_FIRST, 64)
    with pytest.raises(ValueError, match=r"expected a buffer of shape \[2, 4, 4, 9\], got \[4\]"):
        _C.deform_conv_forward(input, weight, offset, output[0, :, 0, 0], scratch, scratch, *WIDTH_FIRST, 64)


@pytest.mark.parametrize("with_bias", [True, False])
def test_old_functions_of_version_2(device, with_bias):
    *tensors, _ = reference.random_inputs(2, 8, (9, 8), 4, (3, 2), UNEVEN)
    input, weight, offset, mask, bias = (t.to(device).requires_grad_() for t in tensors)
    scratch = torch.empty(0, device=device)
    expected = modulated_deform_conv(input, offset, mask, weight, bias if with_bias else None, *UNEVEN)
    output = torch.full_like(expected, 7.0).detach()
    _C.modulated_deform_conv_forward(
        input, weight, bias, scratch, offset, mask, output, scratch, *HEIGHT_FIRST, with_bias
    )
    assert output.equal(expected)

    grad = torch.randn_like(expected)
    leaves = [input, weight, offset, mask] + [bias] * with_bias
    expected = torch.autograd.grad(expected, leaves, grad)
    start = [torch.randn_like(t) for t in (input, weight, offset, mask, bias)]
    results = [t.detach().clone() for t in start]
    grad_input, grad_weight, grad_offset, grad_mask, grad_bias = results
    _C.modulated_deform_conv_backward(
        input, weight, bias, scratch, offset, mask, scratch, grad_input, grad_weight, grad_bias, grad_offset, grad_mask,
        grad, *HEIGHT_FIRST, with_bias,
    )  # fmt: skip
    assert_close(grad_input, start[0] + expected[0], 1e-12)
    assert_close(grad_weight, start[1] + expected[1], 1e-12)
    assert_close(grad_offset, expected[2], 1e-12)
    assert_close(grad_mask, expected[3], 1e-12)
    assert_close(grad_bias, start[4] + expected[4] if with_bias else start[4], 1e-12)


# ---- CUDA


@needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_equals_cpu(dtype):
    for on_cpu, on_gpu in zip(
        reference.sample_inputs("cpu", dtype, True), reference.sample_inputs("cuda", dtype, True)
    ):
        expected, output = call(on_cpu), call(on_gpu)
        assert_close(output, expected, tolerance_of(output), on_cpu.name)
        assert layout(output) == layout(expected)
        grad = torch.randn(expected.shape).to(dtype)
        for mine, theirs in zip(gradients(on_gpu, output, grad.cuda()), gradients(on_cpu, expected, grad)):
            assert_close(mine, theirs, 3 * tolerance_of(output), on_cpu.name)
            assert layout(mine) == layout(theirs)


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("images,channels,size", [(9, 128, (150, 90)), (1, 1280, (120, 110))])
def test_cuda_several_parts(dtype, groups, images, channels, size):
    """More columns than scratch memory holds: parts of whole images, and an image in parts."""
    numbers = ((1, 1), (1, 1), (1, 1), groups, 2)
    *tensors, _ = reference.random_inputs(images, channels, size, 16, numbers=numbers)
    sample = reference.Sample("", *[t.to(dtype) for t in tensors], numbers)
    expected = call(exact_copy(sample))
    on_gpu = sample._replace(**{n: getattr(sample, n).cuda().requires_grad_() for n in sample._fields[1:6]})
    output = call(on_gpu)
    assert_close(output, expected, tolerance_of(output))
    exact = exact_copy(sample)
    grad = torch.randn(output.shape).to(dtype)
    for mine, theirs in zip(
        gradients(on_gpu, output, grad.cuda()), gradients(exact, call(exact), grad.double())
    ):
        assert_close(mine, theirs, 3 * tolerance_of(output))


@needs_cuda
def test_cuda_streams_and_syncs():
    sample = reference.sample_inputs("cuda", torch.float32, requires_grad=True)[0]
    expected = call(sample)
    grad = torch.randn_like(expected)
    expected_grads = gradients(sample, expected, grad)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    has_mode = hasattr(torch.cuda, "set_sync_debug_mode")
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**7)  # work on the default stream would be done before
        late = sample._replace(input=(sample.input.detach() * 1).requires_grad_())
        if has_mode:
            torch.cuda.set_sync_debug_mode("error")
        try:
            output = call(late)
            results = gradients(late, output, grad)
        finally:
            if has_mode:
                torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert_close(output, expected, 1e-6)
    for mine, theirs in zip(results, expected_grads):
        assert_close(mine, theirs, 1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_cuda_other_device():
    for sample in reference.sample_inputs("cuda:1", torch.float32, requires_grad=True)[:3]:
        output = call(sample)
        assert output.device.index == 1 and torch.cuda.current_device() == 0
        assert_close(output, reference.deform_conv(*exact_copy(sample)[1:6], *sample.numbers), 1e-5)
        for grad in gradients(sample, output, torch.ones_like(output)):
            assert grad.device.index == 1
    with pytest.raises(RuntimeError, match="expected offset on the device of input"):
        call(sample._replace(offset=sample.offset.detach().to("cuda:0")))


@needs_cuda
@pytest.mark.skipif(not hasattr(torch, "use_deterministic_algorithms"), reason="torch 1.8")
def test_cuda_deterministic_mode():
    sample = reference.sample_inputs("cuda", torch.float32, requires_grad=True)[0]
    output = call(sample)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match="deform_conv_backward_cuda does not have a deterministic"):
            output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@needs_cuda
@pytest.mark.slow
def test_cuda_more_than_2_31_elements():
    """The last corner of a map of 2^31 and more numbers."""
    if torch.cuda.mem_get_info()[1] < 30 * 2**30 if hasattr(torch.cuda, "mem_get_info") else True:
        pytest.skip("needs 30 GB")
    size = 8200
    input = torch.zeros(1, 32, size, size, dtype=torch.float16, device="cuda")
    input = input.contiguous(memory_format=torch.channels_last)
    corner = torch.randn(1, 32, 64, 64, device="cuda").half()
    input[:, :, -64:, -64:] = corner
    input.requires_grad_()
    weight = torch.randn(4, 32, 3, 3, device="cuda").half() / 16
    numbers = ((8, 8), (0, 0), (1, 1), 1, 1)
    out = reference.out_size(size, 3, 8, 0, 1)
    assert 8 * (out - 8) == size - 64  # the corner starts at a position of the output
    offset = torch.full((1, 18, out, out), 0.25, device="cuda")
    output = modulated_deform_conv(input, offset, None, weight, None, *numbers)
    expected = reference.deform_conv(corner, weight, offset[:, :, -8:, -8:], None, None, *numbers)
    assert_close(output[:, :, -8:, -8:], expected, 5e-3)
    output[:, :, -1, -1].float().sum().backward()
    assert (input.grad[:, :, -8:-4, -8:-4] != 0).any() and (input.grad[:, :, :-64] == 0).all()
