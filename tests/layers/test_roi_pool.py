"""RoI max pooling: against a slow reference, by its properties, and against wrong calls."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_core import _C
from fcos_core.layers import ROIPool, roi_pool
from fcos_core.layers._library import load
from fcos_core.layers.roi_pool import _ROIPool
from tests.reference import roi_pool as reference

# of a gradient, relative to it; the output is exact
ROUNDING = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(ROUNDING)
LAYOUTS = [torch.contiguous_format, torch.channels_last]
INF, NAN = float("inf"), float("nan")

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def with_places(input, rois, output_size, spatial_scale):
    """Output and argmax."""
    load()
    return torch.ops.fcos_core.roi_pool(input, rois, spatial_scale, output_size[0], output_size[1])


def both_ways(input, rois, *arguments, weights=None):
    """Output and gradient for some weights."""
    leaf = input.detach().clone().requires_grad_()
    output = roi_pool(leaf, rois, *arguments)
    if weights is None:
        weights = torch.linspace(-1, 1, max(output.numel(), 1), dtype=torch.float64)[: output.numel()]
        weights = weights.reshape(output.shape)
    (grad,) = torch.autograd.grad(output, leaf, weights.to(output.device, output.dtype))
    return output.detach(), grad


def inputs(num_channels=8, size=(12, 17), num_rois=12, num_images=2, device="cpu", dtype=torch.float32, seed=5):
    features = reference.random_map((num_images, num_channels) + size, seed=seed)
    rois = reference.random_rois(num_rois, num_images, (8 * size[0], 8 * size[1]), (8, 90), seed=seed)
    return features.to(device, dtype), rois.to(device)


# ---- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype):
    for sample in reference.sample_inputs(device, dtype, requires_grad=True):
        exact_input = sample.input.detach().double().requires_grad_()
        number = np.float64 if dtype == torch.float64 else np.float32
        exact, places = reference.roi_pool(exact_input, *sample[2:], number)
        output = roi_pool(*sample[1:])
        assert output.dtype == dtype and output.device == sample.input.device and output.shape == exact.shape
        assert output.double().equal(exact), sample.name
        _, argmax = with_places(*sample[1:])
        assert argmax.dtype == torch.int32 and argmax.long().equal(places), sample.name
        assert argmax.stride() == output.stride()

        weights = torch.rand(exact.shape).to(device, dtype)
        (grad,) = torch.autograd.grad(output, sample.input, weights)
        assert grad.dtype == dtype and grad.shape == sample.input.shape
        if exact.numel() == 0 or not exact.requires_grad:
            assert (grad == 0).all(), sample.name
            continue
        (expected,) = torch.autograd.grad((exact * weights.double()).sum(), exact_input)
        error = (grad.double() - expected).abs()
        assert bool((error <= ROUNDING[dtype] * expected.abs()).all()), (sample.name, float(error.max()))


def test_agrees_with_torchvision(device):
    torchvision = pytest.importorskip("torchvision")
    for sample in reference.sample_inputs(device, torch.float64, requires_grad=True):
        if 0 in sample.input.shape:
            continue  # crashes, or is refused, there
        output = roi_pool(*sample[1:])
        expected = torchvision.ops.roi_pool(sample.input, sample.rois.double(), *sample[3:])
        assert output.equal(expected), sample.name
        weights = torch.rand(output.shape, dtype=torch.float64).to(device)
        (grad,) = torch.autograd.grad(output, sample.input, weights)
        (expected,) = torch.autograd.grad(expected, sample.input, weights)
        assert torch.allclose(grad, expected, rtol=1e-12, atol=0), sample.name


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradcheck(device, layout):
    features, rois = inputs(3, (6, 7), 5, device=device, dtype=torch.float64)
    features = features.contiguous(memory_format=layout).requires_grad_()

    def function(x):
        return roi_pool(x, rois, (2, 3), 0.125)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, about their own internals
        assert torch.autograd.gradcheck(function, (features,), nondet_tol=1e-12)


def test_second_derivative_is_refused(device):
    features, rois = inputs(2, (6, 7), 3, device=device)
    features.requires_grad_()
    (grad,) = torch.autograd.grad(roi_pool(features, rois, 2, 0.125).pow(2).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="roi_pool: expected one backward pass, got a second"):
        grad.sum().backward()



@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_rois_are_pooled_as_many(dtype):
    """The CPU copies a contiguous map to channels_last for many rois, and takes its rows as they are for few."""
    features, rois = inputs(5, (60, 70), 60)
    features = (4 * features).round().to(dtype)  # with many equal values, of which the first place counts
    many, places = with_places(features, rois, (7, 6), 0.125)
    assert many.is_contiguous() and places.is_contiguous()
    few = [with_places(features, rois[i : i + 4], (7, 6), 0.125) for i in range(0, 60, 4)]
    assert torch.equal(many, torch.cat([values for values, _ in few]))
    assert torch.equal(places, torch.cat([place for _, place in few]))


# ---- properties


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinite_features(device, dtype, layout):
    """NaN is the largest, the first NaN stays; a bin of -inf has a place too."""
    for num_channels in (1, 2, 9, 32):
        features, _ = inputs(num_channels, (7, 6), device=device, dtype=dtype)
        features = features.contiguous(memory_format=layout)
        features[0, :, 1, 4] = NAN
        features[0, :, 2, 1] = NAN
        features[1] = -INF
        rois = torch.tensor([[0.0, 0, 0, 5, 6], [1, 1, 2, 5, 6], [0, 0, 3, 5, 6]], device=device)
        output, argmax = with_places(features, rois, (1, 1), 1.0)
        assert torch.isnan(output[0]).all() and (argmax[0] == 1 * 6 + 4).all()
        assert (output[1] == -INF).all() and (argmax[1] == 2 * 6 + 1).all()
        assert torch.isfinite(output[2].float()).all()


def test_gradient_goes_to_the_first_of_equal_maxima(device):
    features = torch.ones(1, 3, 6, 8, device=device)
    rois = torch.tensor([[0.0, 1, 2, 6, 5]], device=device)
    _, grad = both_ways(features, rois, (2, 2), 1.0, weights=torch.ones(1, 3, 2, 2))
    assert [tuple(i) for i in grad[0, 1].nonzero(as_tuple=False).tolist()] == [(2, 1), (2, 4), (4, 1), (4, 4)]


def test_rois_are_independent(device):
    features, rois = inputs(device=device)
    output = roi_pool(features, rois, 7, 0.125)
    assert roi_pool(features, rois.flip(0), 7, 0.125).equal(output.flip(0))
    assert roi_pool(features, rois[3:4], 7, 0.125).equal(output[3:4])


@pytest.mark.parametrize("num_channels", [1, 3, 8, 37, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_agree(device, dtype, num_channels):
    features, rois = inputs(num_channels, device=device, dtype=dtype)
    features = (features.float() * 2).round().to(dtype)  # ties
    for output_size in ((7, 7), (2, 5), (1, 1)):
        expected, places = with_places(features, rois, output_size, 0.125)
        last = features.contiguous(memory_format=torch.channels_last)
        output, argmax = with_places(last, rois, output_size, 0.125)
        assert output.equal(expected) and argmax.equal(places)
        assert output.is_contiguous(memory_format=torch.channels_last)
        _, expected_grad = both_ways(features, rois, output_size, 0.125)
        _, grad = both_ways(last, rois, output_size, 0.125)
        assert grad.is_contiguous(memory_format=torch.channels_last)
        bound = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 2 * ROUNDING[dtype])
        assert torch.allclose(grad.double(), expected_grad.double(), rtol=bound, atol=bound)


def test_layout_of_the_gradient_is_that_of_the_input(device):
    """Also where the gradient of the output comes from a flattened copy of it."""
    for output_size in (7, 1):
        features, rois = inputs(device=device)
        for layout in LAYOUTS:
            leaf = features.contiguous(memory_format=layout).requires_grad_()
            output = roi_pool(leaf, rois, output_size, 0.125)
            (grad,) = torch.autograd.grad(output.flatten(1).contiguous().pow(2).sum(), leaf)
            assert grad.stride() == leaf.stride()
            (expected,) = torch.autograd.grad(roi_pool(leaf, rois, output_size, 0.125).pow(2).sum(), leaf)
            assert torch.allclose(grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_float32_rois_beside_half_features(device, dtype):
    features, rois = inputs(size=(100, 120), device=device)
    exact, _ = reference.roi_pool(features.to(dtype), rois, (2, 2), 0.125, np.float32)
    assert roi_pool(features.to(dtype), rois, 2, 0.125).double().equal(exact)
    assert roi_pool(features.to(dtype), rois.double(), 2, 0.125).double().equal(exact)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_small_gradients_add_up(device, dtype, layout):
    """A sum in half precision would stop growing at 2048, or 256."""
    features = torch.zeros(1, 8, 4, 4, device=device, dtype=dtype).contiguous(memory_format=layout)
    rois = torch.tensor([[0.0, 1, 1, 1, 1]], device=device).repeat(5000, 1)
    _, grad = both_ways(features, rois, 1, 1.0, weights=torch.ones(5000, 8, 1, 1))
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
                    results.append(both_ways(features, rois, 7, 0.125))
                for output, grad in results[1:]:
                    assert output.equal(results[0][0]) and grad.equal(results[0][1])
    finally:
        torch.set_num_threads(before)


# ---- strange rois


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
    output, argmax = with_places(features, mixed, (3, 3), 0.125)
    assert torch.isnan(output[4:9]).all() and (argmax[4:9] == -1).all()
    _, grad = both_ways(features, mixed, 3, 0.125, weights=torch.ones(17, 4, 3, 3))
    expected, expected_grad = both_ways(features, rois, 3, 0.125, weights=torch.ones(12, 4, 3, 3))
    assert torch.cat([output[:4], output[9:]]).equal(expected) and grad.equal(expected_grad)


def test_images_that_do_not_exist(device):
    features, rois = inputs(device=device)
    places = torch.zeros(12, 8, 3, 3, dtype=torch.int32)
    for image in (-1.0, 2.0, 1e9, NAN, -0.5, INF):
        wrong = rois.clone()
        wrong[3, 0] = image
        if device.type == "cpu":
            for dtype in (torch.float32, torch.float64):
                with pytest.raises(RuntimeError, match=r"first column of rois in 0..1, .* got .* at row 3"):
                    roi_pool(features.to(dtype), wrong, 3, 0.125)
            with pytest.raises(RuntimeError, match=r"first column of rois in 0..1"):
                torch.ops.fcos_core._roi_pool_backward(torch.zeros(12, 8, 3, 3), wrong, places, 2, 8, 12, 17)
        else:
            output, grad = both_ways(features, wrong, 3, 0.125, weights=torch.ones(12, 8, 3, 3))
            assert torch.isnan(output).flatten(1).all(1).tolist() == [i == 3 for i in range(12)]
            assert torch.isfinite(grad).all()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=32), min_size=4, max_size=4), min_size=1, max_size=4),
    st.sampled_from(LAYOUTS),
    st.sampled_from([(1, 1), (1, 5), (4, 1), (3, 4)]),
    st.sampled_from([1.0, 1e-3, 1e30]),
)
def test_any_coordinates(boxes, layout, map_size, scale):
    """Nothing crashes; results are values of the map, 0 for empty bins, NaN only where coordinates are not finite."""
    rois = torch.tensor([[0.0] + box for box in boxes])
    features = reference.random_map((1, 3) + map_size).contiguous(memory_format=layout)
    output, argmax = with_places(features, rois, (2, 3), scale)
    scaled = rois[:, 1:] * scale
    finite = torch.isfinite(scaled).all(1) & torch.isfinite(scaled[:, 2:] - scaled[:, :2]).all(1)
    assert torch.isnan(output).flatten(1).all(1).tolist() == (~finite).tolist()
    assert torch.isnan(output).flatten(1).any(1).tolist() == (~finite).tolist()
    planes = features.flatten(2)
    for k in range(len(rois)):
        chosen = planes[0].gather(1, argmax[k].flatten(1).long().clamp(min=0))
        chosen = chosen.masked_fill(argmax[k].flatten(1) < 0, 0.0)
        assert not finite[k] or output[k].flatten(1).equal(chosen)
    _, grad = both_ways(features, rois, (2, 3), scale)
    assert torch.isfinite(grad).all()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-30, 50), min_size=4, max_size=4), min_size=1, max_size=3),
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([1.0, 0.5, 0.25]),
)
def test_any_small_problem_matches_reference(boxes, output_size, map_size, scale):
    rois = torch.tensor([[0.0] + box for box in boxes], dtype=torch.float64)
    for layout in LAYOUTS:
        # few different values: many ties
        features = reference.random_map((1, 2) + map_size).round().double().contiguous(memory_format=layout)
        exact = features.clone().requires_grad_()
        expected, places = reference.roi_pool(exact, rois, output_size, scale)
        output, argmax = with_places(features, rois, output_size, scale)
        assert output.equal(expected) and argmax.long().equal(places)
        weights = torch.rand(expected.shape, dtype=torch.float64)
        _, grad = both_ways(features, rois, output_size, scale, weights=weights)
        if expected.requires_grad:
            (expected,) = torch.autograd.grad(expected, exact, weights)
            assert torch.allclose(grad, expected, rtol=1e-12, atol=0)


# ---- torch: autocast, tracing


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="CPU autocast came with torch 1.10")
def test_autocast_keeps_dtypes():
    features, rois = inputs(dtype=torch.bfloat16)
    for dtype in (torch.bfloat16, torch.float32):
        leaf = features.detach().to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = roi_pool(leaf, rois, 7, 0.125)
        assert output.dtype == dtype and output.equal(roi_pool(leaf, rois, 7, 0.125))
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
        torch.library.opcheck(torch.ops.fcos_core.roi_pool, (features, rois, 0.125, size, size + 1))
        output, argmax = with_places(features, rois, (size, size + 1), 0.125)
        assert output.requires_grad and not argmax.requires_grad
        arguments = (torch.ones_like(output).detach(), rois, argmax, 2, 3, 6, 7)
        torch.library.opcheck(torch.ops.fcos_core._roi_pool_backward, arguments)


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(device, dynamic, layout):
    layer = ROIPool((3, 4), 0.125)
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


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
def test_compiling_leaves_the_globals_of_the_function_alone():
    """torch 2.4 and 2.5 made `load` None in a module that imports it, once a function there had been compiled."""
    features, rois = inputs(3, (6, 7), 4)

    def pooled(x):
        return roi_pool(x * 2, rois, (3, 4), 0.125)

    assert pooled.__globals__["load"] is load
    compiled = torch.compile(pooled, fullgraph=True, backend="eager")
    assert compiled(features).equal(pooled(features))
    assert pooled.__globals__["load"] is load and callable(load)


@pytest.mark.skipif(not hasattr(torch, "export"), reason="torch.export came with torch 2.1")
def test_exports(device):
    if not hasattr(torch.library, "register_fake"):
        pytest.skip("fake kernels: torch 2.4")
    features, rois = inputs(3, (6, 7), 5, device=device)
    layer = ROIPool((3, 4), 0.125)
    rois_dim = torch.export.Dim("num_rois", min=2)
    program = torch.export.export(layer, (features, rois), dynamic_shapes=({}, {0: rois_dim}))
    more = torch.cat([rois, rois])
    assert program.module()(features, more).equal(layer(features, more))


# ---- wrong calls

MAP, ROIS = torch.zeros(1, 2, 4, 5), torch.zeros(3, 5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((MAP[0], ROIS, 7, 1.0), r"expected input of shape \[N, C, H, W\], got \[2, 4, 5\]; see"),
        ((MAP, ROIS[:, :4], 7, 1.0), r"expected rois of shape \[K, 5\] \(image, x1, y1, x2, y2\), got \[3, 4\]"),
        ((MAP.long(), ROIS, 7, 1.0), r"expected input of dtype float64, .* got torch.int64; convert"),
        ((MAP, ROIS.long(), 7, 1.0), r"expected rois of dtype float64, .* got torch.int64; convert"),
        ((MAP, ROIS, 0, 1.0), r"expected both sides of output_size in 1..4096, got 0; 7 is usual"),
        ((MAP, ROIS, (7, 5000), 1.0), r"expected both sides of output_size in 1..4096, got 5000"),
        ((MAP, ROIS, 7, -1.0), r"expected spatial_scale to be finite and above 0, got -1; .* 1 / stride"),
        ((MAP[:0], ROIS, 7, 1.0), r"expected the first column of rois in 0..-1, .* got 0 at row 0"),
        (
            (torch.zeros(1).expand(1, 1, 50000, 50000), ROIS, 7, 1.0),
            r"expected the map with sides of at most 16777216 and less than 2\^31 pixels, got \[1, 1, 50000, 50000\]",
        ),
    ],
)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_messages(arguments, message, requires_grad):
    if requires_grad and arguments[0].is_floating_point():
        arguments = (arguments[0].detach().requires_grad_(),) + arguments[1:]
    with pytest.raises(RuntimeError, match="roi_pool: " + message):
        roi_pool(*arguments)


def test_messages_of_the_backward():
    load()
    backward = torch.ops.fcos_core._roi_pool_backward
    grad, argmax = torch.zeros(3, 2, 7, 7), torch.zeros(3, 2, 7, 7, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"expected grad of shape \[K, C, pooled_height, .* got \[3, 2, 7, 7\]"):
        backward(grad, ROIS, argmax, 1, 3, 4, 5)
    with pytest.raises(RuntimeError, match=r"expected argmax of dtype torch.int32, got torch.int64; pass the one"):
        backward(grad, ROIS, argmax.long(), 1, 2, 4, 5)
    with pytest.raises(RuntimeError, match=r"expected argmax of shape as grad, got \[2, 2, 7, 7\]"):
        backward(grad, ROIS, argmax[:2], 1, 2, 4, 5)
    for wrong in (-2, 20):
        with pytest.raises(RuntimeError, match=r"expected argmax in -1..19, got"):
            backward(grad, ROIS, argmax.masked_fill(torch.rand(argmax.shape) < 0.1, wrong), 1, 2, 4, 5)
    with pytest.raises(RuntimeError, match=r"expected the map with sides of at most .* got \[1, 2, -4, 5\]"):
        backward(grad, ROIS, argmax, 1, 2, -4, 5)


tensors = st.builds(
    lambda shape, dtype: (torch.rand(shape) * 9 - 4).to(dtype),
    st.one_of(
        st.lists(st.integers(0, 5), max_size=5), st.just([2, 3, 4, 5]), st.builds(lambda k: [k, 5], st.integers(0, 3))
    ),
    st.sampled_from(DTYPES + [torch.int64, torch.int32, torch.bool]),
)
anything = st.one_of(tensors, st.none(), st.integers(-2, 2), st.floats(), st.just("0.5"), st.just([1.0, 2.0]))


@settings(max_examples=150, deadline=None)
@given(
    st.booleans(),
    st.lists(tensors, min_size=3, max_size=3),
    st.one_of(st.tuples(st.just(0.5), st.integers(-1, 4), st.integers(1, 4)), st.lists(anything, max_size=4)),
    st.one_of(st.just([2, 3, 4, 5]), st.lists(st.integers(-2, 6), min_size=3, max_size=5)),
)
def test_any_call_answers_or_raises(forward, some_tensors, numbers, sizes):
    """Nothing crosses into the kernel unchecked: a crash would end the test run."""
    load()
    try:
        if forward:
            output, argmax = torch.ops.fcos_core.roi_pool(*some_tensors[:2], *numbers)
            assert output.shape == argmax.shape
        else:
            assert list(torch.ops.fcos_core._roi_pool_backward(*some_tensors, *sizes).shape) == sizes
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        pass


def test_module_and_old_names(device):
    features, rois = inputs(device=device)
    layer = ROIPool((7, 5), 0.125)
    assert repr(layer) == "ROIPool(output_size=(7, 5), spatial_scale=0.125)"
    expected = roi_pool(features, rois, (7, 5), 0.125)
    assert layer(features, rois).equal(expected) and copy.deepcopy(layer)(features, rois).equal(expected)
    assert _ROIPool.apply(features, rois, (7, 5), 0.125).equal(expected)
    output, argmax = _C.roi_pool_forward(features, rois, 0.125, 7, 5)
    assert output.equal(expected)
    weights = torch.rand(expected.shape).to(device)
    _, grad = both_ways(features, rois, (7, 5), 0.125, weights=weights)
    old = _C.roi_pool_backward(weights, features, rois, argmax, 0.125, 7, 5, 2, 8, 12, 17)
    assert torch.allclose(old, grad, rtol=1e-5, atol=1e-6)


# ---- GPU


@cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_is_cpu(dtype):
    for sample in reference.sample_inputs("cpu", dtype):
        weights = torch.rand((len(sample.rois), sample.input.shape[1]) + tuple(sample.output_size))
        expected, expected_grad = both_ways(*sample[1:], weights=weights)
        output, grad = both_ways(sample.input.cuda(), sample.rois.cuda(), *sample[3:], weights=weights)
        assert output.cpu().equal(expected) and output.stride() == expected.stride(), sample.name
        bound = {torch.float64: 1e-13, torch.float32: 5e-6}.get(dtype, 2 * ROUNDING[dtype])
        assert grad.stride() == expected_grad.stride()
        assert torch.allclose(grad.cpu().double(), expected_grad.double(), rtol=bound, atol=bound), sample.name


@cuda
def test_cuda_other_stream():
    features, rois = inputs(64, (50, 60), 300, device="cuda")
    expected, expected_grad = both_ways(features, rois, 7, 0.125)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        slow = torch.full((1 << 26,), 1.0, device="cuda").cumsum(0)[-1] * 0  # keeps the stream busy
        output, grad = both_ways(features + slow, rois, 7, 0.125)
    stream.synchronize()
    assert output.equal(expected) and torch.allclose(grad, expected_grad, rtol=1e-5, atol=1e-5)


@cuda
@pytest.mark.skipif(not hasattr(torch.cuda, "set_sync_debug_mode"), reason="came with torch 1.10")
def test_cuda_does_not_wait():
    features, rois = inputs(device="cuda")
    features.requires_grad_()
    weights = torch.ones(12, 8, 7, 7, device="cuda")
    torch.autograd.grad(roi_pool(features, rois, 7, 0.125), features, weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(roi_pool(features, rois, 7, 0.125), features, weights)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_cuda_second_device():
    features, rois = inputs(device="cuda:1")
    expected, expected_grad = both_ways(features.cpu(), rois.cpu(), 7, 0.125)
    output, grad = both_ways(features, rois, 7, 0.125)
    assert output.device == features.device and torch.cuda.current_device() == 0
    assert output.cpu().equal(expected) and torch.allclose(grad.cpu(), expected_grad, atol=1e-5)


@cuda
def test_cuda_wrong_arguments():
    with pytest.raises(RuntimeError, match=r"expected rois on the device of input \(cuda:0\), got cpu; move"):
        roi_pool(MAP.cuda(), ROIS, 7, 1.0)
    with pytest.raises(RuntimeError, match=r"expected rois on the device of input \(cpu\), got cuda:0; move"):
        roi_pool(MAP, ROIS.cuda(), 7, 1.0)
    # places beyond the map are left out, since reading them would wait for the GPU
    grad, rois = torch.ones(3, 2, 2, 2, device="cuda"), ROIS.cuda()
    argmax = torch.tensor([20, -2, 3, 2**31 - 1], dtype=torch.int32, device="cuda").repeat(6).reshape(3, 2, 2, 2)
    result = torch.ops.fcos_core._roi_pool_backward(grad, rois, argmax, 1, 2, 4, 5)
    assert result.flatten(2)[0, :, 3].tolist() == [3.0, 3.0] and float(result.sum()) == 6.0


@cuda
@pytest.mark.skipif(not hasattr(torch, "use_deterministic_algorithms"), reason="came with torch 1.8")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_deterministic(dtype, layout):
    features, rois = inputs(40, (50, 60), 700, device="cuda", dtype=dtype)
    features = features.contiguous(memory_format=layout)
    _, plain = both_ways(features, rois, 7, 0.125)
    torch.use_deterministic_algorithms(True)
    try:
        grads = [both_ways(features, rois, 7, 0.125)[1] for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(grad.equal(grads[0]) for grad in grads[1:])
    bound = {torch.float64: 1e-11, torch.float32: 1e-4}.get(dtype, 8 * ROUNDING[dtype])
    assert torch.allclose(grads[0].double(), plain.double(), rtol=bound, atol=bound)


@cuda
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "channels, size, bins, num_rois",
    [
        (40, (50, 60), (7, 7), 5000),  # more rois than a block looks at in one go, of mixed images
        (20, (90, 300), (7, 7), 40),  # channels last of so many columns that fewer channels fit
        (9, (30, 40), (3, 40), 30),  # more bins in a row than a warp has lanes
        (5, (30, 40), (24, 25), 30),  # more bins than a warp takes at a time
        (70, (3, 40), (2, 3), 30),  # fewer rows than a band needs
        (6, (5, 9000), (3, 3), 60),  # no band fits: added in memory
    ],
)
def test_cuda_backward_in_bands(dtype, layout, channels, size, bins, num_rois):
    features, rois = inputs(channels, size, num_rois, device="cuda", dtype=dtype)
    rois[::7, 0] = -1
    rois[::11, 1] = NAN
    features = features.contiguous(memory_format=layout)
    output, argmax = with_places(features, rois, bins, 0.125)
    weights = torch.rand(output.shape).to("cuda", dtype).contiguous(memory_format=layout)
    shape = (2, channels) + size
    grad = torch.ops.fcos_core._roi_pool_backward(weights, rois, argmax, *shape)
    assert grad.stride() == features.stride() and grad.dtype == dtype

    exact = torch.zeros(2 * channels, size[0] * size[1], dtype=torch.float64, device="cuda")
    planes = rois[:, :1].clamp(min=0).long() * channels + torch.arange(channels, device="cuda")
    planes = planes[:, :, None, None].expand_as(argmax)
    there = argmax >= 0
    assert there.any() and not there[::7].any() and not there[::11].any()
    exact.index_put_((planes[there], argmax[there].long()), weights[there].double(), accumulate=True)
    error = (grad.double() - exact.reshape(shape)).abs()
    # float32 sums of up to some hundred numbers, rounded once
    assert bool((error <= (ROUNDING[dtype] + 1e-5 * (dtype != torch.float64)) * exact.reshape(shape).abs()).all())


@cuda
@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_cuda_beyond_2_to_the_31_elements(layout):
    """Float16, 4.4 GB: the last image, and then the last of many rois, compared with small problems."""
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    features, rois = inputs(64, (100, 120), 6, 1, device="cuda", dtype=torch.float16)
    features = features.contiguous(memory_format=layout)
    big = torch.zeros(2900, 64, 100, 120, device="cuda", dtype=torch.float16).contiguous(memory_format=layout)
    big[-1] = features[0]
    assert big.numel() > 2**31
    last = rois.clone()
    last[:, 0] = len(big) - 1
    expected, expected_grad = both_ways(features, rois, 7, 0.125)
    output, argmax = with_places(big, last, (7, 7), 0.125)
    assert output.equal(expected)
    del big
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape).cuda().half()
    weights = weights.contiguous(memory_format=layout)
    grad = torch.ops.fcos_core._roi_pool_backward(weights, last, argmax, 2900, 64, 100, 120)
    assert torch.allclose(grad[-1].float(), expected_grad[0].float(), atol=1e-2) and (grad[:-1] == 0).all()
    del grad
    many = rois.repeat(120000, 1)  # 720000 rois x 64 x 7 x 7 = 2.3e9
    output = roi_pool(features, many, 7, 0.125)
    assert output.numel() > 2**31 and output[-6:].equal(expected) and output[:6].equal(expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels, bins", [(40, (7, 7)), (100, (3, 5)), (33, (14, 14))])
def test_layouts_agree_on_many_rois(device, dtype, channels, bins):
    """So many that a GPU copies contiguous maps, in slices of channels the last of which is not full."""
    features, rois = inputs(channels, (12, 17), 60, device=device, dtype=dtype)
    rois[7, 2] = NAN
    packs = features.contiguous(memory_format=torch.channels_last)
    for one, other in zip(with_places(features, rois, bins, 0.125), with_places(packs, rois, bins, 0.125)):
        assert one.is_contiguous() and other.is_contiguous(memory_format=torch.channels_last)
        assert bool(((one == other) | ((one != one) & (other != other))).all())
    one, other = (both_ways(t, rois, bins, 0.125)[1].double() for t in (features, packs))
    assert float((one - other).abs().max()) <= 4 * ROUNDING[dtype] * float(other.abs().max())
