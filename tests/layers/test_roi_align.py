"""RoIAlign: against a slow reference, by its properties, and against wrong calls."""

import copy
import os
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_core import _C
from fcos_core.layers import ROIAlign, roi_align
from fcos_core.layers._library import load
from fcos_core.layers.roi_align import _ROIAlign
from tests.reference import roi_align as reference

# relative to the value; half precision is computed in float32 and rounded once
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
# absolute, for features of size 1: float32 positions err by 2^-24 of the coordinate, which are pixels of the map
POSITIONS = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-6, torch.bfloat16: 1e-6}
DTYPES = list(ROUNDING)
LAYOUTS = [torch.contiguous_format, torch.channels_last]
GOLDEN = np.load(os.path.join(os.path.dirname(__file__), os.pardir, "golden", "roi_align.npz"))

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tolerance(sample, dtype, expected):
    """Of each element: rounding of the result, and float32 positions on a map of this size."""
    largest = max([1.0] + [float(sample.rois[:, 1:].abs().clamp(max=1e4).max())] if len(sample.rois) else [1.0])
    positions = POSITIONS[dtype] * max(5.0, largest * sample.spatial_scale)
    return ROUNDING[dtype] * expected.abs() + positions


def both_ways(input, rois, *arguments, weights=None):
    """Output and gradient for some weights."""
    leaf = input.detach().clone().requires_grad_()
    output = roi_align(leaf, rois, *arguments)
    if weights is None:
        weights = torch.linspace(-1, 1, max(output.numel(), 1), dtype=torch.float64)[: output.numel()]
        weights = weights.reshape(output.shape)
    (grad,) = torch.autograd.grad(output, leaf, weights.to(output.device, output.dtype))
    return output.detach(), grad


def inputs(num_channels=8, size=(20, 27), num_rois=12, num_images=2, device="cpu", dtype=torch.float32, seed=5):
    features = reference.random_map((num_images, num_channels) + size, seed=seed)
    rois = reference.random_rois(num_rois, num_images, (8 * size[0], 8 * size[1]), seed=seed)
    return features.to(device, dtype), rois.to(device)


# ---- values


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype, aligned):
    for sample in reference.sample_inputs(device, dtype, requires_grad=True):
        exact_input = sample.input.detach().double().requires_grad_()
        exact = reference.roi_align(exact_input, *sample[2:], aligned)
        output = roi_align(*sample[1:], aligned)
        assert output.dtype == dtype and output.device == sample.input.device and output.shape == exact.shape
        error = (output.detach().double() - exact.detach()).abs()
        assert bool((error <= tolerance(sample, dtype, exact.detach())).all()), (sample.name, float(error.max()))

        weights = torch.rand(exact.shape).to(device, dtype)
        (grad,) = torch.autograd.grad(output, sample.input, weights)
        assert grad.dtype == dtype and grad.shape == sample.input.shape
        if exact.numel() == 0:
            assert (grad == 0).all(), sample.name
            continue
        (expected,) = torch.autograd.grad((exact * weights.double()).sum(), exact_input)
        error = (grad.double() - expected).abs()
        assert bool((error <= tolerance(sample, dtype, expected)).all()), (sample.name, float(error.max()))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("size", [(7, 7), (3, 5)])
def test_golden(device, ratio, size, layout):
    """What the ancestors' detectors computed, at stride 16."""
    features = torch.from_numpy(GOLDEN["input"]).to(device).contiguous(memory_format=layout)
    rois = torch.from_numpy(GOLDEN["rois"]).to(device)
    expected = GOLDEN["out_s{}_{}x{}".format(ratio, *size)]
    pooled = ROIAlign(size, 1 / 16, ratio)(features, rois)
    np.testing.assert_allclose(pooled.cpu().numpy(), expected, rtol=0, atol=2e-5)
    old = _C.roi_align_forward(features, rois, 1 / 16, size[0], size[1], ratio)
    assert old.equal(pooled)


@pytest.mark.parametrize("aligned", [False, True])
def test_agrees_with_torchvision(device, aligned):
    torchvision = pytest.importorskip("torchvision")
    if aligned and "aligned" not in torchvision.ops.roi_align.__code__.co_varnames:
        pytest.skip("torchvision without aligned")
    for sample in reference.sample_inputs(device, torch.float64, requires_grad=True):
        reversed_rois = bool((sample.rois[:, 3:] < sample.rois[:, 1:3]).any())
        if 0 in sample.input.shape or (aligned and sample.sampling_ratio <= 0 and reversed_rois):
            continue  # crashes, or is refused, there
        rois = sample.rois.double()
        output = roi_align(sample.input, rois, *sample[3:], aligned)
        expected = torchvision.ops.roi_align(sample.input, rois, *sample[3:], aligned)
        assert torch.allclose(output, expected, rtol=0, atol=1e-12), sample.name
        weights = torch.rand(output.shape, dtype=torch.float64).to(device)
        (grad,) = torch.autograd.grad(output, sample.input, weights)
        (expected,) = torch.autograd.grad(expected, sample.input, weights)
        assert torch.allclose(grad, expected, rtol=1e-12, atol=1e-12), sample.name


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradcheck(device, ratio, layout, aligned):
    features, rois = inputs(3, (6, 7), 5, device=device, dtype=torch.float64)
    features = features.contiguous(memory_format=layout).requires_grad_()

    def function(x):
        return roi_align(x, rois, (2, 3), 0.125, ratio, aligned)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, about their own internals
        assert torch.autograd.gradcheck(function, (features,), nondet_tol=1e-12)


def test_second_derivative_is_refused(device):
    features, rois = inputs(2, (6, 7), 3, device=device)
    features.requires_grad_()
    (grad,) = torch.autograd.grad(roi_align(features, rois, 2, 0.125, 2).pow(2).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_align: expected one backward pass, got a second"):
        grad.sum().backward()


def test_sizes_whose_product_overflows_are_refused(device):
    """The backward is told the sizes of the map; torch need not have seen such a tensor."""
    load()
    grad = torch.zeros(0, 6, 7, 7, device=device)
    rois = torch.zeros(0, 5, device=device)
    for sizes in ((2**62, 6, 3, 4), (2**62, 6, 0, 4)):
        with pytest.raises(RuntimeError, match="roi_align: expected the map to have below 10\\^15 elements"):
            torch.ops.fcos_core._roi_align_backward(grad, rois, 0.25, 7, 7, *sizes, 2, False)


# ---- properties


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("ratio", [0, 1, 3])
def test_a_plane_is_sampled_exactly(device, ratio, layout, aligned):
    """Bilinear samples of a linear function average to its value at the middle of the bin."""
    y, x = torch.arange(30.0)[:, None].expand(30, 40), torch.arange(40.0).expand(30, 40)
    features = torch.stack([y, x, 3 * y - 2 * x])[None].double().to(device).contiguous(memory_format=layout)
    rois = torch.tensor([[0, 20.0, 30, 170, 150], [0, 8, 8, 24, 30]], dtype=torch.float64, device=device)
    shift = 0.5 if aligned else 0.0
    output = roi_align(features, rois, (4, 5), 0.125, ratio, aligned)
    for roi, (_, x1, y1, x2, y2) in zip(output.cpu(), rois.tolist()):
        rows = y1 / 8 - shift + (np.arange(4) + 0.5) * (y2 - y1) / 8 / 4
        columns = x1 / 8 - shift + (np.arange(5) + 0.5) * (x2 - x1) / 8 / 5
        np.testing.assert_allclose(roi[0].numpy(), np.repeat(rows[:, None], 5, 1), atol=1e-12)
        np.testing.assert_allclose(roi[1].numpy(), np.repeat(columns[None], 4, 0), atol=1e-12)
        np.testing.assert_allclose(roi[2].numpy(), 3 * rows[:, None] - 2 * columns, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradient_of_a_roi_inside_sums_to_that_of_the_output(device, layout):
    features = torch.zeros(1, 4, 32, 32, device=device).contiguous(memory_format=layout)
    for ratio in (0, 1, 2, 5):
        for box in ([40.0, 40, 200, 210], [64, 64, 66, 65], [100, 8, 110, 240]):
            rois = torch.tensor([[0.0] + box], device=device)
            _, grad = both_ways(features, rois, (7, 6), 0.125, ratio, weights=torch.ones(1, 4, 7, 6))
            assert torch.allclose(grad.sum((2, 3)).cpu(), torch.full((1, 4), 42.0), rtol=1e-5)
            assert (grad >= 0).all()


def test_rois_are_independent(device):
    features, rois = inputs(device=device)
    shuffle = torch.from_numpy(np.random.permutation(len(rois)))
    output = roi_align(features, rois, 7, 0.125, 2)
    assert roi_align(features, rois[shuffle], 7, 0.125, 2).equal(output[shuffle])
    assert roi_align(features, rois[3:4], 7, 0.125, 2).equal(output[3:4])


@pytest.mark.parametrize("num_channels", [1, 3, 8, 37, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_agree(device, dtype, num_channels):
    features, rois = inputs(num_channels, device=device, dtype=dtype)
    for output_size in (7, (2, 5), 1):
        expected, expected_grad = both_ways(features, rois, output_size, 0.125, 2)
        last = features.contiguous(memory_format=torch.channels_last)
        output, grad = both_ways(last, rois, output_size, 0.125, 2)
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert grad.is_contiguous(memory_format=torch.channels_last)
        bound = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, ROUNDING[dtype] * 8)
        assert torch.allclose(output.double(), expected.double(), rtol=bound, atol=bound)
        assert torch.allclose(grad.double(), expected_grad.double(), rtol=bound, atol=bound)


def test_layout_of_the_gradient_is_that_of_the_input(device):
    """Also where the gradient of the output comes from a flattened copy of it, and where layouts look alike."""
    for num_channels, output_size in ((8, 7), (8, 1), (1, 3)):
        features, rois = inputs(num_channels, device=device)
        for layout in LAYOUTS:
            leaf = features.contiguous(memory_format=layout).requires_grad_()
            output = roi_align(leaf, rois, output_size, 0.125, 2)
            (grad,) = torch.autograd.grad(output.flatten(1).contiguous().pow(2).sum(), leaf)
            if num_channels > 1:
                assert grad.stride() == leaf.stride()
            (expected,) = torch.autograd.grad(roi_align(leaf, rois, output_size, 0.125, 2).pow(2).sum(), leaf)
            assert torch.allclose(grad, expected, rtol=1e-5, atol=1e-6)


def test_strides_of_the_gradient_do_not_matter(device):
    features, rois = inputs(device=device)
    features.requires_grad_()
    output = roi_align(features, rois, 3, 0.125, 2)
    wide = torch.rand(output.shape + (2,), device=device)
    for grad in (wide[..., 0], wide[:1, :, :, :, 1].expand_as(output), wide[..., 1].transpose(2, 3)):
        (result,) = torch.autograd.grad(output, features, grad, retain_graph=True)
        (expected,) = torch.autograd.grad(output, features, grad.contiguous(), retain_graph=True)
        assert torch.allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_rois_beside_half_features(device, dtype):
    features, rois = inputs(size=(100, 120), device=device)
    features = features.to(dtype)
    exact = reference.roi_align(features, rois, (7, 7), 0.125, 2)
    error = (roi_align(features, rois, 7, 0.125, 2).double() - exact).abs().max()
    coarse = (roi_align(features, rois.to(dtype), 7, 0.125, 2).double() - exact).abs().max()
    assert error <= ROUNDING[dtype] * 5 and coarse > 20 * error


def test_dtypes_of_rois(device):
    features, rois = inputs(device=device)
    rois = (rois * 4).round() / 4  # exact in float32
    expected, grad = both_ways(features, rois, 7, 0.125, 2)
    result, result_grad = both_ways(features, rois.double(), 7, 0.125, 2)
    assert result.equal(expected) and torch.allclose(result_grad, grad, rtol=1e-5, atol=1e-6)
    result, _ = both_ways(features.double(), rois, 7, 0.125, 2)
    assert torch.allclose(result, reference.roi_align(features, rois, (7, 7), 0.125, 2), rtol=0, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_small_gradients_add_up(device, dtype, layout):
    """A sum in half precision would stop growing at 2048, or 256."""
    features = torch.zeros(1, 8, 4, 4, device=device, dtype=dtype).contiguous(memory_format=layout)
    rois = torch.tensor([[0.0, 1, 1, 1, 1]], device=device).repeat(5000, 1)
    _, grad = both_ways(features, rois, 1, 1.0, 1, True, weights=torch.ones(5000, 8, 1, 1))
    assert (grad.double().sum((2, 3)) == torch.tensor(5000.0).to(dtype).double().to(device)).all()


def test_result_does_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        for layout in LAYOUTS:
            for dtype in (torch.float32, torch.bfloat16):
                features, rois = inputs(33, num_rois=70, dtype=dtype)
                features = features.contiguous(memory_format=layout)
                results = []
                for threads in (1, 2, 3, 7):
                    torch.set_num_threads(threads)
                    results.append(both_ways(features, rois, 7, 0.125, 2))
                for output, grad in results[1:]:
                    assert output.equal(results[0][0]) and grad.equal(results[0][1])
    finally:
        torch.set_num_threads(before)


def test_more_rois_than_a_chunk():
    """The CPU kernel makes taps of some hundred rois at a time, here of a few."""
    features = reference.random_map((2, 3, 4, 3000))
    rois = reference.random_rois(60, 2, (4, 3000), sides=(2, 900))
    for layout in LAYOUTS:
        for ratio in (0, 40):
            leaf = features.double().contiguous(memory_format=layout).requires_grad_()
            exact = features.double().requires_grad_()
            output = roi_align(leaf, rois, (2, 9), 1.0, ratio)
            expected = reference.roi_align(exact, rois, (2, 9), 1.0, ratio)
            assert torch.allclose(output, expected, rtol=0, atol=1e-12)
            (grad,) = torch.autograd.grad(output.sum(), leaf)
            (expected,) = torch.autograd.grad(expected.sum(), exact)
            assert torch.allclose(grad, expected, rtol=0, atol=1e-12)


# ---- strange rois

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_coordinates_that_are_not_finite_give_nan(device, dtype, layout):
    features, rois = inputs(4, device=device, dtype=dtype)
    features = features.contiguous(memory_format=layout)
    bad = torch.tensor(
        [[0, NAN, 0, 9, 9], [1, 0, 0, INF, 9], [0, -INF, 0, 9, 9], [1, 0, -INF, 9, INF], [0, 0, 0, 9, NAN]],
        device=device,
    )
    mixed = torch.cat([rois[:4], bad, rois[4:]])
    for ratio in (0, 2):
        for aligned in (False, True):
            output, grad = both_ways(features, mixed, 3, 0.125, ratio, aligned, weights=torch.ones(17, 4, 3, 3))
            weights = torch.ones(12, 4, 3, 3)
            expected, expected_grad = both_ways(features, rois, 3, 0.125, ratio, aligned, weights=weights)
            assert torch.isnan(output[4:9]).all()
            assert torch.cat([output[:4], output[9:]]).equal(expected)
            assert torch.allclose(grad.double(), expected_grad.double(), rtol=1e-5, atol=1e-6)


def test_images_that_do_not_exist(device):
    features, rois = inputs(device=device)
    for image in (-1.0, 2.0, 1e9, NAN, -0.5, INF):
        wrong = rois.clone()
        wrong[3, 0] = image
        if device.type == "cpu":
            for dtype in (torch.float32, torch.float64):
                with pytest.raises(RuntimeError, match=r"first column of rois in 0..1, .* got .* at row 3"):
                    roi_align(features.to(dtype), wrong, 3, 0.125, 2)
            with pytest.raises(RuntimeError, match=r"first column of rois in 0..1"):
                _C.roi_align_backward(torch.zeros(12, 8, 3, 3), wrong, 0.125, 3, 3, 2, 8, 20, 27, 2)
        else:
            output, grad = both_ways(features, wrong, 3, 0.125, 2, weights=torch.ones(12, 8, 3, 3))
            assert torch.isnan(output).flatten(1).all(1).tolist() == [i == 3 for i in range(12)]
            assert torch.isfinite(grad).all()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("aligned", [False, True])
def test_huge_rois_are_bounded_work(device, layout, aligned):
    """Adaptive sampling of a roi of 2^40 pixels: the few samples on the map are found, none else is visited."""
    features = torch.ones(1, 2, 9, 11, device=device).contiguous(memory_format=layout)
    for size in (1e3, 1e5, 1e7, 1e12, 1e30):
        rois = torch.tensor([[0, -size, -size, size, size], [0, 0, 0, size, size]], device=device)
        output, grad = both_ways(features, rois, 1, 1.0, 0, aligned)
        assert torch.isfinite(output).all() and torch.isfinite(grad).all()
        # samples lie one pixel apart, from -1 to the size of the map
        if size <= 1e5:
            assert torch.allclose(output[1].cpu(), torch.full((2, 1, 1), 99 / size**2), rtol=0.3)
        else:
            assert (output >= 0).all() and float(output.max()) < 1e-6


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32), min_size=4, max_size=4), min_size=1, max_size=4),
    st.sampled_from([0, 1, 2, 7]),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.sampled_from([(1, 1), (1, 5), (4, 1), (3, 4)]),
    st.sampled_from([1.0, 1e-3, 1e30]),
)
def test_any_coordinates(boxes, ratio, aligned, layout, map_size, scale):
    """Nothing crashes, results are NaN or between the extremes of the map and 0, and only NaN if not finite."""
    rois = torch.tensor([[0.0] + box for box in boxes])
    features = reference.random_map((1, 3) + map_size).contiguous(memory_format=layout)
    output, grad = both_ways(features, rois, (2, 3), scale, ratio, aligned)
    scaled = rois[:, 1:] * scale
    finite = torch.isfinite(scaled).all(1) & torch.isfinite(scaled[:, 2:] - scaled[:, :2]).all(1)
    assert torch.isnan(output).flatten(1).all(1).tolist() == (~finite).tolist()
    assert torch.isnan(output).flatten(1).any(1).tolist() == (~finite).tolist()
    seen = output[finite]
    assert (seen >= min(0, float(features.min())) - 1e-4).all() and (seen <= max(0, float(features.max())) + 1e-4).all()
    assert torch.isfinite(grad).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-30, 50), min_size=4, max_size=4), min_size=1, max_size=3),
    st.integers(0, 5),
    st.booleans(),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([1.0, 0.5, 0.3]),
)
def test_any_small_problem_matches_reference(boxes, ratio, aligned, output_size, map_size, scale):
    rois = torch.tensor([[0.0] + box for box in boxes], dtype=torch.float64)
    if ratio == 0:
        # the number of samples jumps where a size is a multiple of the number of bins: keep away from there
        sizes = (rois[:, 3:] - rois[:, 1:3]) * scale / torch.tensor(output_size[::-1], dtype=torch.float64)
        rois = rois[((sizes - sizes.round()).abs() > 1e-9).all(1)]
    for axis in (0, 1):
        for roi in rois.tolist():
            low, high = roi[2 - axis], roi[4 - axis]
            points, _ = reference.positions(low, high, output_size[axis], scale, ratio, aligned)
            if any(abs(point + 1) < 1e-9 or abs(point - map_size[axis]) < 1e-9 for point in points):
                return  # on the border of what counts
    for layout in LAYOUTS:
        features = reference.random_map((1, 2) + map_size).double().contiguous(memory_format=layout)
        exact = features.clone().requires_grad_()
        expected = reference.roi_align(exact, rois, output_size, scale, ratio, aligned)
        weights = torch.rand(expected.shape, dtype=torch.float64)
        output, grad = both_ways(features, rois, output_size, scale, ratio, aligned, weights=weights)
        assert torch.allclose(output, expected, rtol=0, atol=1e-11)
        if len(rois):
            (expected,) = torch.autograd.grad(expected, exact, weights)
            assert torch.allclose(grad, expected, rtol=0, atol=1e-11)


# ---- torch: autocast, tracing


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="CPU autocast came with torch 1.10")
def test_autocast_keeps_dtypes():
    features, rois = inputs(dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        leaf = features.detach().to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = roi_align(leaf, rois, 7, 0.125, 2)
        assert output.dtype == dtype and output.equal(roi_align(leaf, rois, 7, 0.125, 2))
        output.float().sum().backward()
        assert leaf.grad.dtype == dtype


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "opcheck"), reason="opcheck came with torch 2.4")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, dtype, layout):
    load()
    features, rois = inputs(3, (6, 7), 4, device=device, dtype=dtype)
    features = features.contiguous(memory_format=layout).requires_grad_()
    for size in (2, 1):
        arguments = (features, rois, 0.125, size, size + 1, 2, False)
        torch.library.opcheck(torch.ops.fcos_core.roi_align, arguments)
        grad = torch.ones_like(torch.ops.fcos_core.roi_align(*arguments)).detach()
        torch.library.opcheck(
            torch.ops.fcos_core._roi_align_backward, (grad, rois, 0.125, size, size + 1, 2, 3, 6, 7, 2, False)
        )


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(device, dynamic, layout):
    layer = ROIAlign((3, 4), 0.125, 2)
    compiled = torch.compile(
        lambda x, r: (layer(x * 2, r).flatten(1) * 3).sum(), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for num_rois, size in ((5, (6, 7)), (3, (9, 12))):
        features, rois = inputs(3, size, num_rois, device=device)
        eager = features.contiguous(memory_format=layout).requires_grad_()
        traced = eager.detach().clone().requires_grad_()
        expected, result = (layer(eager * 2, rois).flatten(1) * 3).sum(), compiled(traced, rois)
        expected.backward()
        result.backward()
        assert torch.allclose(result, expected) and torch.allclose(traced.grad, eager.grad, rtol=1e-5, atol=1e-6)
        assert traced.grad.stride() == eager.grad.stride()


@pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export came with torch 2.1")
def test_exports(device):
    if not hasattr(torch.library, "register_fake"):
        pytest.skip("fake kernels: torch 2.4")
    features, rois = inputs(3, (6, 7), 5, device=device)
    layer = ROIAlign((3, 4), 0.125, 2)
    rois_dim = torch.export.Dim("num_rois", min=2)
    program = torch.export.export(layer, (features, rois), dynamic_shapes=({}, {0: rois_dim}))
    more = torch.cat([rois, rois])
    assert program.module()(features, more).equal(layer(features, more))


# ---- wrong calls

MAP, ROIS = torch.zeros(1, 2, 4, 5), torch.zeros(3, 5)
LONG = torch.zeros(1).expand(1, 2, 4, 2**24 + 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((MAP[0], ROIS, 7, 1.0, 2), r"expected input of shape \[N, C, H, W\], got \[2, 4, 5\]; see"),
        ((MAP, ROIS[:, :4], 7, 1.0, 2), r"expected rois of shape \[K, 5\] \(image, x1, y1, x2, y2\), got \[3, 4\]"),
        ((MAP, ROIS[0], 7, 1.0, 2), r"expected rois of shape \[K, 5\] .* got \[5\]"),
        ((MAP.long(), ROIS, 7, 1.0, 2), r"expected input of dtype float64, .* got torch.int64; convert"),
        ((MAP, ROIS.long(), 7, 1.0, 2), r"expected rois of dtype float64, .* got torch.int64; convert"),
        ((MAP, ROIS, 0, 1.0, 2), r"expected both sides of output_size in 1..4096, got 0; 7 is usual"),
        ((MAP, ROIS, (7, 5000), 1.0, 2), r"expected both sides of output_size in 1..4096, got 5000"),
        ((MAP, ROIS, 7, 0.0, 2), r"expected spatial_scale to be finite and above 0, got 0; .* 1 / stride"),
        ((MAP, ROIS, 7, float("nan"), 2), r"expected spatial_scale to be finite and above 0, got nan"),
        ((MAP, ROIS, 7, 1.0, 2000), r"expected sampling_ratio at most 1024, got 2000; 2 is usual"),
        ((MAP[:0], ROIS, 7, 1.0, 2), r"expected the first column of rois in 0..-1, .* got 0 at row 0"),
        ((LONG, ROIS, 7, 1.0, 2), r"expected the map with sides of"),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_messages(arguments, message, requires_grad):
    if requires_grad and arguments[0].is_floating_point():
        arguments = (arguments[0].detach().requires_grad_(),) + arguments[1:]
    with pytest.raises(RuntimeError, match="roi_align: " + message):
        roi_align(*arguments)


def test_messages_of_the_backward():
    load()
    backward = torch.ops.fcos_core._roi_align_backward
    grad = torch.zeros(3, 2, 7, 7)
    with pytest.raises(RuntimeError, match=r"expected grad of shape \[K, C, pooled_height, .* got \[3, 2, 7, 7\]"):
        backward(grad, ROIS, 1.0, 7, 6, 1, 2, 4, 5, 2, False)
    with pytest.raises(RuntimeError, match=r"expected grad of dtype float64, .* got torch.int64"):
        backward(grad.long(), ROIS, 1.0, 7, 7, 1, 2, 4, 5, 2, False)
    with pytest.raises(RuntimeError, match=r"expected the map with sides of at most .* got \[1, 2, -4, 5\]"):
        backward(grad, ROIS, 1.0, 7, 7, 1, 2, -4, 5, 2, False)
    with pytest.raises(RuntimeError, match=r"expected rois of shape \[K, 5\]"):
        backward(grad, ROIS[:, 1:], 1.0, 7, 7, 1, 2, 4, 5, 2, False)


tensors = st.builds(
    lambda shape, dtype: (torch.rand(shape) * 9 - 4).to(dtype),
    st.one_of(
        st.lists(st.integers(0, 5), max_size=5), st.just([2, 3, 4, 5]), st.builds(lambda k: [k, 5], st.integers(0, 3))
    ),
    st.sampled_from(DTYPES + [torch.int64, torch.bool]),
)
anything = st.one_of(tensors, st.none(), st.integers(-2, 2), st.floats(), st.just("0.5"), st.just([1.0, 2.0]))


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(tensors, min_size=2, max_size=2),
    st.one_of(st.tuples(st.just(0.5), st.integers(-1, 4), st.integers(1, 4)), st.lists(anything, max_size=4)),
    st.one_of(st.just([2, 3, 4, 5]), st.lists(st.integers(-2, 6), min_size=3, max_size=5)),
    st.lists(st.one_of(st.integers(-2, 3), anything), min_size=1, max_size=2),
)
def test_any_call_answers_or_raises(forward, some_tensors, numbers, sizes, rest):
    """Nothing crosses into the kernel unchecked: a crash would end the test run."""
    load()
    try:
        if forward:
            result = torch.ops.fcos_core.roi_align(*some_tensors, *numbers, *rest)
            assert result.shape[:2] == (len(some_tensors[1]), some_tensors[0].shape[1])
        else:
            result = torch.ops.fcos_core._roi_align_backward(*some_tensors, *numbers, *sizes, *rest)
            assert list(result.shape) == sizes
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        pass


def test_module_and_old_names(device):
    features, rois = inputs(device=device)
    layer = ROIAlign((7, 5), 0.125, 2)
    assert repr(layer) == "ROIAlign(output_size=(7, 5), spatial_scale=0.125, sampling_ratio=2)"
    assert repr(ROIAlign(7, 0.5, 0, True)).endswith("=7, spatial_scale=0.5, sampling_ratio=0, aligned=True)")
    expected = roi_align(features, rois, (7, 5), 0.125, 2)
    assert layer(features, rois).equal(expected) and copy.deepcopy(layer)(features, rois).equal(expected)
    assert _ROIAlign.apply(features, rois, (7, 5), 0.125, 2).equal(expected)
    assert _C.roi_align_forward(features, rois, 0.125, 7, 5, 2).equal(expected)
    weights = torch.rand(expected.shape).to(device)
    _, grad = both_ways(features, rois, (7, 5), 0.125, 2, weights=weights)
    old = _C.roi_align_backward(weights, rois, 0.125, 7, 5, 2, 8, 20, 27, 2)
    assert torch.allclose(old, grad, rtol=1e-5, atol=1e-6)


# ---- GPU


@cuda
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_is_cpu(dtype, aligned):
    for sample in reference.sample_inputs("cpu", dtype):
        weights = torch.rand((len(sample.rois), sample.input.shape[1]) + tuple(sample.output_size))
        expected, expected_grad = both_ways(*sample[1:], aligned, weights=weights)
        output, grad = both_ways(sample.input.cuda(), sample.rois.cuda(), *sample[3:], aligned, weights=weights)
        bound = {torch.float64: 1e-13, torch.float32: 5e-6}.get(dtype, 2 * ROUNDING[dtype])
        for result, wanted in ((output, expected), (grad, expected_grad)):
            assert result.stride() == wanted.stride() and result.dtype == wanted.dtype
            assert torch.allclose(result.cpu().double(), wanted.double(), rtol=bound, atol=bound), sample.name


@cuda
def test_cuda_other_stream():
    features, rois = inputs(64, (50, 60), 300, device="cuda")
    expected, expected_grad = both_ways(features, rois, 7, 0.125, 2)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        slow = torch.full((1 << 26,), 1.0, device="cuda").cumsum(0)[-1] * 0  # keeps the stream busy
        output, grad = both_ways(features + slow, rois, 7, 0.125, 2)
    stream.synchronize()
    assert output.equal(expected) and torch.allclose(grad, expected_grad, rtol=1e-5, atol=1e-5)


@cuda
@pytest.mark.skipif(not hasattr(torch.cuda, "set_sync_debug_mode"), reason="came with torch 1.10")
def test_cuda_does_not_wait():
    features, rois = inputs(device="cuda")
    features.requires_grad_()
    weights = torch.ones(12, 8, 7, 7, device="cuda")
    torch.autograd.grad(roi_align(features, rois, 7, 0.125, 2), features, weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for ratio in (0, 2):
            torch.autograd.grad(roi_align(features, rois, 7, 0.125, ratio), features, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_cuda_second_device():
    features, rois = inputs(device="cuda:1")
    expected, expected_grad = both_ways(features.cpu(), rois.cpu(), 7, 0.125, 2)
    output, grad = both_ways(features, rois, 7, 0.125, 2)
    assert output.device == features.device and torch.cuda.current_device() == 0
    assert torch.allclose(output.cpu(), expected, atol=1e-5) and torch.allclose(grad.cpu(), expected_grad, atol=1e-5)


@cuda
def test_cuda_devices_must_agree():
    with pytest.raises(RuntimeError, match=r"expected rois on the device of input \(cuda:0\), got cpu; move"):
        roi_align(MAP.cuda(), ROIS, 7, 1.0, 2)
    with pytest.raises(RuntimeError, match=r"expected rois on the device of input \(cpu\), got cuda:0; move"):
        roi_align(MAP, ROIS.cuda(), 7, 1.0, 2)


@cuda
@pytest.mark.skipif(not hasattr(torch, "use_deterministic_algorithms"), reason="came with torch 1.8")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_deterministic(dtype, layout):
    features, rois = inputs(40, (50, 60), 700, device="cuda", dtype=dtype)
    features = features.contiguous(memory_format=layout)
    for ratio in (0, 2):
        _, plain = both_ways(features, rois, 7, 0.125, ratio)
        torch.use_deterministic_algorithms(True)
        try:
            grads = [both_ways(features, rois, 7, 0.125, ratio)[1] for _ in range(4)]
        finally:
            torch.use_deterministic_algorithms(False)
        assert all(grad.equal(grads[0]) for grad in grads[1:])
        bound = {torch.float64: 1e-11, torch.float32: 1e-4}.get(dtype, 8 * ROUNDING[dtype])
        assert torch.allclose(grads[0].double(), plain.double(), rtol=bound, atol=bound)
    for sample in reference.sample_inputs("cuda", dtype):
        _, plain = both_ways(*sample[1:])
        torch.use_deterministic_algorithms(True)
        try:
            _, grad = both_ways(*sample[1:])
        finally:
            torch.use_deterministic_algorithms(False)
        assert torch.allclose(grad.double(), plain.double(), rtol=bound, atol=bound), sample.name


@cuda
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_cuda_beyond_2_to_the_31_elements(layout):
    """Float16, 4.4 GB: the last image, and then the last of many rois, compared with small problems."""
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    features, rois = inputs(64, (100, 120), 6, 1, device="cuda", dtype=torch.float16)
    big = torch.zeros(2900, 64, 100, 120, device="cuda", dtype=torch.float16).contiguous(memory_format=layout)
    big[-1] = features[0]
    assert big.numel() > 2**31
    last = rois.clone()
    last[:, 0] = len(big) - 1
    expected, expected_grad = both_ways(features.contiguous(memory_format=layout), rois, 7, 0.125, 2)
    output = roi_align(big, last, 7, 0.125, 2)
    assert output.equal(expected)
    del big
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape).cuda().half()
    load()
    arguments = (0.125, 7, 7, 2900, 64, 100, 120, 2, False)
    grad = torch.ops.fcos_core._roi_align_backward(weights.contiguous(memory_format=layout), last, *arguments)
    assert torch.allclose(grad[-1].float(), expected_grad[0].float(), atol=1e-2) and (grad[:-1] == 0).all()
    del grad
    many = rois.repeat(120000, 1)  # 720000 rois x 64 x 7 x 7 = 2.3e9
    output = roi_align(features.contiguous(memory_format=layout), many, 7, 0.125, 2)
    assert output.numel() > 2**31 and output[-6:].equal(expected) and output[:6].equal(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, bins", [(40, 7), (100, (3, 5)), (33, 14)])
def test_layouts_agree_on_many_rois(device, dtype, channels, bins):
    """So many that a GPU copies contiguous maps, in slices of channels the last of which is not full."""
    features, rois = inputs(channels, (21, 19), 60, device=device, dtype=dtype)
    rois[7, 2] = float("nan")
    for ratio in (2, 0):
        planes = both_ways(features, rois, bins, 0.125, ratio)
        packs = both_ways(features.contiguous(memory_format=torch.channels_last), rois, bins, 0.125, ratio)
        for one, other, name in zip(planes, packs, ("output", "gradient")):
            assert one.dtype == other.dtype == dtype and other.is_contiguous(memory_format=torch.channels_last)
            assert one.is_contiguous() and bool((torch.isnan(one) == torch.isnan(other)).all()), name
            one, other = (t.double().masked_fill(torch.isnan(t), 0) for t in (one, other))
            largest = float(other.abs().max())
            assert float((one - other).abs().max()) <= 4 * ROUNDING[dtype] * largest, (name, ratio)
