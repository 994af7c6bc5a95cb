"""Deformable position-sensitive RoI pooling: against a slow reference, by its properties, and against wrong calls."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_core import _C, layers
from fcos_core.layers import (
    DeformRoIPooling,
    DeformRoIPoolingPack,
    ModulatedDeformRoIPoolingPack,
    deform_psroi_pooling,
    deform_roi_pooling,
)
from fcos_core.layers._library import load
from fcos_core.layers.dcn import deform_pool_func, deform_pool_module
from tests.reference import deform_psroi_pooling as reference

# of the largest number of a result; half precision is computed in float32 and rounded once
TOLERANCES = {torch.float64: 1e-13, torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCES)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def op(*arguments):
    """Output and counts."""
    load()
    return torch.ops.fcos_core.deform_psroi_pooling(*arguments)


def differentiable(sample):
    return [t for t in (sample.input, sample.trans) if t is not None]


def assert_close(actual, expected, tolerance, what=""):
    assert actual.shape == expected.shape, what
    if actual.numel():
        actual, expected = actual.detach().double().cpu(), expected.detach().double().cpu()
        error = float((actual - expected).abs().max())
        # not error > bound would let NaN pass
        assert error <= tolerance * max(1e-3, float(expected.abs().max())), (what, error)


# ---- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype):
    for sample in reference.sample_inputs(device, dtype, requires_grad=True):
        exact = sample._replace(
            input=sample.input.detach().double().cpu().requires_grad_(),
            rois=sample.rois.cpu(),
            trans=None if sample.trans is None else sample.trans.detach().double().cpu().requires_grad_(),
        )
        expected, expected_counts = reference.deform_psroi_pooling(*exact.arguments)
        output, counts = op(*sample.arguments)
        assert output.dtype == dtype and output.device == sample.input.device
        assert counts.dtype == torch.int32 and not counts.requires_grad
        assert counts.cpu().equal(expected_counts.int()), sample.name
        assert_close(output, expected, TOLERANCES[dtype], sample.name)

        weights = (torch.rand(expected.shape, dtype=torch.float64) - 0.3).to(dtype)
        expected_grads = torch.autograd.grad((expected * weights.double()).sum(), differentiable(exact))
        grads = torch.autograd.grad(output, differentiable(sample), weights.to(device))
        for tensor, grad, expected_grad in zip(differentiable(sample), grads, expected_grads):
            assert grad.dtype == dtype and grad.device == tensor.device
            assert_close(grad, expected_grad, TOLERANCES[dtype], sample.name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_full_precision_rois_beside_half_features(device, dtype):
    """Coordinates in the thousands have steps of pixels in half precision; float32 rois keep theirs."""
    input, rois, trans = reference.random_inputs(size=(60, 70), num_rois=5, spatial_scale=1 / 32)
    input, trans = input.to(device, dtype), trans.to(device)
    numbers = (1 / 32, 6, 1, 3, 3, 2, 0.1)
    expected, _ = reference.deform_psroi_pooling(input.cpu(), rois, trans.cpu(), *numbers)
    for rois_dtype in (torch.float32, torch.float64):
        output, _ = op(input, rois.to(device, rois_dtype), trans, *numbers)
        assert output.dtype == dtype
        assert_close(output, expected, TOLERANCES[dtype])
    coarse, _ = op(input, rois.to(device, dtype), trans, *numbers)
    assert float((coarse.double().cpu() - expected).abs().max()) > 5 * TOLERANCES[dtype]

    # gradients have the dtypes of what they belong to
    input.requires_grad_()
    trans.requires_grad_()
    output, _ = op(input, rois.to(device), trans, *numbers)
    grads = torch.autograd.grad(output.float().sum(), (input, trans))
    assert grads[0].dtype == dtype and grads[1].dtype == torch.float32


@pytest.mark.parametrize("rois_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("trans_dtype", DTYPES, ids=str)
def test_any_mixture_of_dtypes(device, rois_dtype, trans_dtype):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        sample = reference.sample_inputs(device, dtype, rois_dtype=rois_dtype, trans_dtype=trans_dtype)[0]
        expected, _ = reference.deform_psroi_pooling(*(t.cpu() for t in sample.arguments[:3]), *sample.numbers)
        # float64 rois beside float32 features are rounded to float32
        assert_close(op(*sample.arguments)[0], expected, max(TOLERANCES[dtype], 1e-12))


def test_half_gradients_are_summed_in_float32(device):
    """5000 equal RoIs: a running float16 sum would stop at 2048 times its addend."""
    input = torch.ones(1, 1, 4, 4, dtype=torch.float16, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 3, 3]], device=device).repeat(5000, 1)
    output, _ = op(input, rois, None, 1.0, 1, 1, 1, 1, 4, 0.0)
    (grad,) = torch.autograd.grad(output.float().sum(), input)
    assert float(grad.float().sum()) == pytest.approx(5000, rel=1e-3)


@pytest.mark.parametrize("name", ["typical", "groups", "groups and parts that do not divide", "usual sizes", "border"])
def test_gradcheck(device, name):
    (sample,) = [s for s in reference.sample_inputs(device, torch.float64, requires_grad=True) if s.name == name]
    # fewer channels and RoIs: gradcheck runs the op twice per number
    sample = sample._replace(rois=sample.rois[:3], trans=sample.trans[:3].detach().requires_grad_())

    def function(input, trans):
        return op(input, sample.rois, trans, *sample.numbers)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old versions, about their own internals
        nondet_tol = 1e-12 if device.type == "cuda" else 0.0
        inputs = (sample.input, sample.trans)
        assert torch.autograd.gradcheck(function, inputs, eps=1e-7, atol=1e-6, nondet_tol=nondet_tol)


def test_slope_on_a_cell_is_zero(device):
    """Legacy: also in the middle of a slope, where both neighbours agree about it."""
    input = torch.arange(8.0, device=device).expand(1, 1, 8, 8).contiguous()
    # one bin of one sample at x = 3 and at x = 3.25, y = 3.5
    rois = torch.tensor([[0.0, 7, 8, 8, 9]], device=device)
    for shift, value, slope in ((0.0, 3.0, 0.0), (0.25, 3.25, 1.0)):
        trans = torch.tensor([shift, 0.0], device=device).reshape(1, 2, 1, 1).requires_grad_()
        output, count = op(input, rois, trans, 0.5, 1, 1, 1, 1, 1, 1.0)
        output.sum().backward()
        assert output.item() == value and count.item() == 1
        # the RoI is one cell wide
        assert trans.grad.flatten().tolist() == [slope, 0.0]


def test_second_derivative_is_refused():
    sample = reference.sample_inputs(requires_grad=True)[0]
    grads = torch.autograd.grad(op(*sample.arguments)[0].sum(), differentiable(sample), create_graph=True)
    with pytest.raises(RuntimeError, match="deform_psroi_pooling: expected one backward pass, got a second"):
        (grads[0].sum() + grads[1].sum()).backward()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["ps_roi_align", "roi_align"])
def test_agrees_with_torchvision(device, name):
    """Inside the input, RoI align is this with samples half a step later, as by one offset for all bins."""
    ops = pytest.importorskip("torchvision.ops")
    peer = getattr(ops, name, None)
    if peer is None:
        pytest.skip("torchvision without " + name)
    size, samples, scale = 7, 2, 0.23
    groups = size if name == "ps_roi_align" else 1
    input = torch.rand(2, 3 * groups * groups, 24, 27, dtype=torch.float64, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, 5, 6, 60, 73], [1, 33, 9, 40, 99], [1, 12, 44, 112, 96]], dtype=torch.float64)
    rois = rois.to(device)
    # half a step is width / (2 * size * samples)
    trans = torch.full((3, 2, size, size), 1.0 / (2 * size * samples), dtype=torch.float64, device=device)
    output, counts = op(input, rois, trans, scale, 3, groups, size, size, samples, 1.0)
    assert bool((counts == samples * samples).all())
    boxes = rois + torch.tensor([0.0, 0, 0, 1, 1], dtype=torch.float64, device=device)
    keywords = {"aligned": True} if name == "roi_align" else {}
    try:
        expected = peer(input, boxes, (size, size), spatial_scale=scale, sampling_ratio=samples, **keywords)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        pytest.skip("torchvision without this op: {}".format(error))
    # some versions of it compute positions in float32
    assert_close(output, expected, 1e-6)
    grad = torch.rand_like(output)
    grads = [torch.autograd.grad(result, input, grad)[0] for result in (output, expected)]
    assert_close(*grads, 1e-6)


# ---- layouts, threads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("output_dim, num_classes", [(64, 1), (160, 2), (6, 3), (5, 1)])
def test_channels_last_is_kept_and_changes_nothing(device, dtype, group_size, output_dim, num_classes):
    input, rois, trans = reference.random_inputs(
        output_dim=output_dim, group_size=group_size, num_classes=num_classes, seed=output_dim
    )
    input, rois, trans = input.to(device, dtype), rois.to(device), trans.to(device)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = input.contiguous(memory_format=memory_format).requires_grad_()
        t = trans.clone().requires_grad_()
        output, counts = op(x, rois, t, 0.117, output_dim, group_size, 4, 3, 3, 0.2)
        assert output.is_contiguous(memory_format=memory_format)
        # a gradient that is laid out differently
        grad = torch.arange(output.numel(), device=device).reshape(output.shape).remainder(7).to(dtype)
        grads = torch.autograd.grad(output, (x, t), grad)
        assert grads[0].is_contiguous(memory_format=memory_format)
        results.append((counts, output) + grads)
    assert results[0][0].equal(results[1][0])
    for a, b in zip(results[0][1:], results[1][1:]):
        assert_close(a, b, max(2e-6, TOLERANCES[dtype]) if dtype != torch.float64 else 1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_number_of_threads_does_not_matter(dtype):
    """Bit for bit, in both layouts."""
    input, rois, trans = reference.random_inputs(output_dim=32, size=(40, 50), num_rois=60, num_classes=2, part_size=5)
    before = torch.get_num_threads()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = input.to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        t = trans.clone().requires_grad_()
        results = []
        try:
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                output, counts = op(x, rois, t, 0.117, 32, 1, 7, 5, 4, 0.1)
                results.append((output, counts) + torch.autograd.grad(output, (x, t), torch.ones_like(output)))
        finally:
            torch.set_num_threads(before)
        for result in results[1:]:
            assert all(a.equal(b) for a, b in zip(result, results[0]))


# ---- properties

roi_numbers = st.integers(-60, 200)
roi_lists = st.lists(st.tuples(roi_numbers, roi_numbers, roi_numbers, roi_numbers), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(roi_lists, st.integers(1, 6), st.integers(1, 5), st.sampled_from([1.0, 0.25, 0.117]))
def test_mean_of_equal_numbers(boxes, pooled_size, samples, scale):
    rois = torch.tensor([(0.0,) + box for box in boxes])
    output, counts = op(torch.full((1, 2, 20, 30), 3.5), rois, None, scale, 2, 1, pooled_size, 1, samples, 0.0)
    assert bool((counts >= 0).all()) and int(counts.max()) <= samples * samples
    expected = torch.where(counts > 0, torch.tensor(3.5), torch.tensor(0.0)).expand_as(output)
    assert_close(output, expected, 1e-6)


@settings(max_examples=30, deadline=None)
@given(roi_lists, st.integers(-3, 3), st.integers(-3, 3))
def test_moving_the_input_moves_the_rois(boxes, down, right):
    """By whole cells, which are 4 pixels here."""
    rois = torch.tensor([(0.0,) + box for box in boxes])
    moved = rois + torch.tensor([0.0, 4 * right, 4 * down, 4 * right, 4 * down])
    image = torch.rand(1, 2, 12, 12)
    # room on all sides, so that no sample meets a border
    numbers = (0.25, 2, 1, 2, 2, 2, 0.1)
    padded = torch.nn.functional.pad(image, (60, 60, 60, 60))
    far = torch.tensor([0.0, 240, 240, 240, 240])
    trans = torch.rand(len(rois), 2, 2, 2) * 2 - 1
    output, _ = op(padded, rois + far, trans, *numbers)
    shifted = torch.roll(padded, (down, right), (2, 3))
    assert_close(op(shifted, moved + far, trans, *numbers)[0], output, 1e-4)


def test_classes_are_separate_calls():
    input, rois, trans = reference.random_inputs(output_dim=6, num_classes=3, group_size=2)
    output, counts = op(input, rois, trans, 0.117, 6, 2, 3, 3, 2, 0.1)
    for c in range(3):
        one, count = op(input[:, 8 * c : 8 * c + 8], rois, trans[:, 2 * c : 2 * c + 2], 0.117, 2, 2, 3, 3, 2, 0.1)
        assert output[:, 2 * c : 2 * c + 2].equal(one) and counts[:, c : c + 1].equal(count)


def test_rois_do_not_depend_on_each_other():
    input, rois, trans = reference.random_inputs(num_rois=9)
    output, _ = op(input, rois, trans, 0.117, 6, 1, 3, 3, 2, 0.1)
    shuffle = torch.randperm(9)
    assert op(input, rois[shuffle], trans[shuffle], 0.117, 6, 1, 3, 3, 2, 0.1)[0].equal(output[shuffle])


def test_bins_outside_are_zero_and_have_no_gradient(device):
    input = torch.rand(1, 2, 5, 5, device=device, requires_grad=True)
    trans = torch.zeros(1, 2, 2, 2, device=device, requires_grad=True)
    rois = torch.tensor([[0.0, 100, 100, 200, 200]], device=device)
    output, counts = op(input, rois, trans, 1.0, 2, 1, 2, 2, 2, 0.1)
    output.sum().backward()
    assert all(float(t.detach().abs().max()) == 0 for t in (output, counts, input.grad, trans.grad))


def test_any_number_of_images_without_cells(device):
    load()
    rois, grad = torch.zeros(3, 5, device=device), torch.zeros(3, 2, 7, 7, device=device)
    input = torch.zeros(2**40, 2, 0, 7, device=device)
    assert op(input, rois, None, 1.0, 2, 1, 7, 7, 2, 0.1)[0].abs().sum() == 0
    backward = torch.ops.fcos_core._deform_psroi_pooling_backward
    assert backward(grad, input, rois, None, 1.0, 2, 1, 7, 7, 2, 0.1)[0].shape == input.shape


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_positions_that_are_not_finite(device, value):
    """NaN rather than a number that looks right; nothing is read out of bounds, and other RoIs are not touched."""
    input = torch.rand(1, 2, 5, 5, device=device, requires_grad=True)
    for column in range(1, 5):
        rois = torch.tensor([[0.0, 1, 1, 4, 4], [0.0, 1, 1, 4, 4]], device=device)
        rois[0, column] = value
        output, counts = op(input, rois, None, 1.0, 2, 1, 2, 2, 2, 0.0)
        grad = torch.autograd.grad(output, input, torch.ones_like(output))[0]
        assert torch.isnan(output[0]).all() and int(counts[0].sum()) == 0
        assert torch.isfinite(output[1]).all() and torch.isfinite(grad).all()
    trans = torch.zeros(2, 2, 2, 2, device=device)
    trans[0, :, 0, 1] = value
    trans.requires_grad_()
    output, counts = op(input, rois[1:].repeat(2, 1), trans, 1.0, 2, 1, 2, 2, 2, 0.1)
    grads = torch.autograd.grad(output, (input, trans), torch.ones_like(output))
    assert counts[0, 0].tolist() == [[4, 0], [4, 4]]
    assert torch.isnan(output[0, 0]).tolist() == [[False, value != value], [False, False]]
    assert all(torch.isfinite(grad).all() for grad in grads)


def test_nan_features_stay_where_they_are(device):
    input = torch.zeros(1, 1, 8, 8, device=device)
    input[0, 0, 7, 7] = float("nan")
    output, _ = op(input, torch.tensor([[0.0, 0, 0, 7, 7]], device=device), None, 1.0, 1, 1, 4, 4, 2, 0.0)
    assert torch.isnan(output[0, 0]).nonzero().tolist() == [[3, 3]]


# ---- torch: autocast, tracing


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="CPU autocast came with torch 1.10")
def test_autocast_keeps_half_features_and_full_rois():
    input, rois, trans = reference.random_inputs()
    numbers = (0.117, 6, 1, 3, 3, 2, 0.1)
    expected, _ = op(input.bfloat16(), rois, trans, *numbers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = op(input.bfloat16(), rois, trans, *numbers)
        pack = DeformRoIPoolingPack(0.117, 3, 6, False, trans_std=0.1, deform_fc_channels=8)
        assert pack(input.bfloat16(), rois).dtype == torch.bfloat16
        assert pack(input, rois).dtype == torch.float32
    assert output.dtype == torch.bfloat16 and output.equal(expected)


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "opcheck"), reason="opcheck came with torch 2.4")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, dtype):
    load()
    wanted = ("typical", "regular grid", "channels last with groups", "no roi", "not contiguous")
    for sample in reference.sample_inputs(device, dtype, requires_grad=True):
        if sample.name not in wanted:
            continue
        torch.library.opcheck(torch.ops.fcos_core.deform_psroi_pooling, sample.arguments)
        grad = torch.ones_like(op(*sample.arguments)[0]).detach()
        detached = [t if t is None else t.detach() for t in sample.arguments[:3]]
        torch.library.opcheck(torch.ops.fcos_core._deform_psroi_pooling_backward, (grad, *detached, *sample.numbers))


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("no_trans", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_compiles_without_graph_breaks(device, dynamic, no_trans, memory_format):
    def loss(input, rois, trans):
        pooled = deform_roi_pooling(input * 2, rois, trans * 2, 0.117, 3, 6, no_trans, trans_std=0.1)
        return (pooled * 3).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for num_rois in (4, 7) if dynamic else (4,):
        input, rois, trans = (t.to(device) for t in reference.random_inputs(num_rois=num_rois))
        input = input.contiguous(memory_format=memory_format)
        grads = []
        for function in (loss, compiled):
            leaves = [input.clone().requires_grad_(), trans.clone().requires_grad_()]
            function(leaves[0], rois, leaves[1]).backward()
            grads.append([leaf.grad for leaf in leaves])
        for eager, traced in zip(*grads):
            if eager is None:
                assert no_trans and (traced is None or float(traced.abs().max()) == 0)
            else:
                assert_close(traced, eager, 1e-6)


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
def test_exports(device):
    load()
    input, rois, _ = (t.to(device) for t in reference.random_inputs())
    pack = ModulatedDeformRoIPoolingPack(0.117, 3, 6, False, trans_std=0.1, deform_fc_channels=8).to(device)
    program = torch.export.export(pack, (input, rois))
    assert any("deform_psroi_pooling" in str(node.target) for node in program.graph.nodes)
    assert_close(program.module()(input, rois), pack(input, rois), 1e-6)


# ---- wrong calls

INPUT, ROIS, TRANS = torch.zeros(2, 8, 5, 6), torch.zeros(3, 5), torch.zeros(3, 4, 7, 7)
NUMBERS = {
    "spatial_scale": 0.25,
    "output_dim": 2,
    "group_size": 2,
    "pooled_size": 7,
    "part_size": 7,
    "sample_per_part": 4,
    "trans_std": 0.1,
}
WRONG = [
    ((INPUT[0], ROIS, TRANS), {}, r"expected input of shape \[N, output_dim \* group_size\^2, H, W\] with output_dim"),
    ((INPUT[:, :7], ROIS, TRANS), {}, r"expected input of shape .* group_size = 2, got \[2, 7, 5, 6\]; see"),
    ((INPUT, ROIS, TRANS), {"output_dim": 3}, r"expected input of shape .* output_dim = 3 and group_size = 2, got"),
    ((INPUT.long(), ROIS, TRANS), {}, r"expected input of dtype float64, .* got torch.int64; convert"),
    ((INPUT, ROIS.long(), TRANS), {}, r"expected rois of dtype float64, .* got torch.int64; convert"),
    ((INPUT, ROIS, TRANS.long()), {}, r"expected trans of dtype float64, .* got torch.int64; convert"),
    ((INPUT, ROIS[:, :4], TRANS), {}, r"expected rois of shape \[K, 5\], image x1 y1 x2 y2, got \[3, 4\]; see"),
    ((INPUT, ROIS[0], TRANS), {}, r"expected rois of shape \[K, 5\], .* got \[5\]"),
    ((INPUT, ROIS, TRANS[:2]), {}, r"expected trans of shape \[K, 2 \* num_classes, part_size, part_size\] with K = 3"),
    ((INPUT, ROIS, TRANS[:, :3]), {}, r"expected trans of shape .* part_size = 7, got \[3, 3, 7, 7\]"),
    ((INPUT, ROIS, TRANS[:, :0]), {}, r"expected trans of shape .* got \[3, 0, 7, 7\]"),
    ((INPUT, ROIS, TRANS[0]), {}, r"expected trans of shape .* got \[4, 7, 7\]"),
    ((INPUT, ROIS, TRANS), {"part_size": 6}, r"expected trans of shape .* part_size = 6, got \[3, 4, 7, 7\]"),
    ((INPUT, ROIS, TRANS.repeat(1, 3, 1, 1)), {}, r"expected output_dim to be a multiple of num_classes \(6, .* got 2"),
    ((INPUT, ROIS + 2, TRANS), {}, r"expected rois to start with an image number in 0..1, got 2 at row 0; input"),
    ((INPUT, ROIS - 1, TRANS), {}, r"expected rois to start with an image number in 0..1, got -1 at row 0"),
    ((INPUT, ROIS + float("nan"), TRANS), {}, r"expected rois to start with an image number in 0..1, got -?nan at row"),
    ((INPUT, ROIS + 1e30, TRANS), {}, r"expected rois to start with an image number in 0..1, got 1e\+30 at row 0"),
    ((INPUT[:0], ROIS, TRANS), {}, r"expected rois to start with an image number in 0..-1, got 0 at row 0"),
    ((INPUT, ROIS, TRANS), {"spatial_scale": 0}, r"expected spatial_scale to be finite and above 0, got 0; it is 1"),
    ((INPUT, ROIS, TRANS), {"spatial_scale": float("inf")}, r"expected spatial_scale to be finite .* 0, got inf"),
    ((INPUT, ROIS, TRANS), {"output_dim": -2}, r"expected output_dim to be at least 0, got -2; it is the number"),
    ((INPUT, ROIS, TRANS), {"group_size": 0}, r"expected group_size in 1..1024, got 0; 1 pools without"),
    ((INPUT, ROIS, TRANS), {"group_size": 2**62}, r"expected group_size in 1..1024, got 4611686018427387904"),
    ((INPUT, ROIS, TRANS), {"pooled_size": 0}, r"expected pooled_size in 1..1024, got 0; 7 is usual"),
    ((INPUT, ROIS, TRANS), {"part_size": -1}, r"expected part_size in 1..1024, got -1; it is usually pooled_size"),
    ((INPUT, ROIS, TRANS), {"sample_per_part": 257}, r"expected sample_per_part in 1..256, got 257; 4 is usual"),
    ((INPUT, ROIS, TRANS), {"trans_std": 2}, r"expected trans_std in \[0, 1\], got 2; the paper uses 0.1"),
    ((INPUT, ROIS, TRANS), {"trans_std": float("nan")}, r"expected trans_std in \[0, 1\], got nan"),
    ((torch.zeros(0, 8, 2**31, 1), ROIS[:0], TRANS[:0]), {}, r"expected input to have H and W below 2\^31"),
    ((torch.zeros(0, 2**44, 2, 2), ROIS, None), {"output_dim": 2**44, "group_size": 1}, r"expected output to have be"),
]


@pytest.mark.parametrize("tensors, changed, message", WRONG)
def test_messages(tensors, changed, message):
    with pytest.raises(RuntimeError, match="deform_psroi_pooling: " + message):
        deform_psroi_pooling(*tensors, **dict(NUMBERS, **changed))
    # the backward refuses the same
    load()
    numbers = dict(NUMBERS, **changed)
    backward = torch.ops.fcos_core._deform_psroi_pooling_backward
    numbers.update(spatial_scale=float(numbers["spatial_scale"]), trans_std=float(numbers["trans_std"]))
    with pytest.raises(RuntimeError, match="deform_psroi_pooling: "):
        backward(torch.zeros(3, 2, 7, 7), *tensors, *numbers.values())


def test_messages_of_the_backward():
    load()
    backward = torch.ops.fcos_core._deform_psroi_pooling_backward
    with pytest.raises(RuntimeError, match=r"expected grad of shape .*, as the output, got \[3, 2, 7, 6\]"):
        backward(torch.zeros(3, 2, 7, 6), INPUT, ROIS, TRANS, *NUMBERS.values())
    with pytest.raises(RuntimeError, match=r"expected grad of dtype float64, .* got torch.int32"):
        backward(torch.zeros(3, 2, 7, 7).int(), INPUT, ROIS, TRANS, *NUMBERS.values())


def test_messages_of_old_names():
    with pytest.raises(ValueError, match=r"deform_roi_pooling: expected out_size to be one number or two equal ones"):
        deform_roi_pooling(INPUT, ROIS, TRANS, 0.25, (7, 5), 2, False)
    with pytest.raises(ValueError, match=r"expected out_size to be one number or two equal ones, got \[7\]"):
        DeformRoIPooling(0.25, [7], 2, False)
    numbers = (0.25, 2, 2, 7, 7, 4, 0.1)
    out = torch.zeros(3, 2, 7, 7)
    with pytest.raises(ValueError, match=r"expected out of shape \[3, 2, 7, 7\], got \[2, 2, 7, 7\]; it is written to"):
        _C.deform_psroi_pooling_forward(INPUT, ROIS, TRANS, out[:2], out, False, *numbers)
    with pytest.raises(ValueError, match=r"expected top_count of shape \[3, 2, 7, 7\], got \[0\]"):
        _C.deform_psroi_pooling_forward(INPUT, ROIS, TRANS, out, out.new_empty(0), False, *numbers)
    with pytest.raises(ValueError, match=r"expected input_grad of shape \[2, 8, 5, 6\], got \[8, 5, 6\]"):
        _C.deform_psroi_pooling_backward(out, INPUT, ROIS, TRANS, out, INPUT[0], TRANS, False, *numbers)
    with pytest.raises(ValueError, match=r"expected trans_grad of shape \[3, 4, 7, 7\], got \[4, 7, 7\]"):
        _C.deform_psroi_pooling_backward(out, INPUT, ROIS, TRANS, out, INPUT, TRANS[0], False, *numbers)


# ---- old names


@pytest.mark.parametrize("no_trans", [False, True])
def test_old_functions_write_into_buffers(device, no_trans):
    sample = [s for s in reference.sample_inputs(device, requires_grad=True) if s.name == "groups"][0]
    trans = None if no_trans else sample.trans
    expected, counts = op(sample.input, sample.rois, trans, *sample.numbers)
    out, top_count = torch.full_like(expected, 7).detach(), torch.full_like(expected, 7).detach()
    # what the old layer passed for no offsets
    old_trans = sample.input.new_empty(0) if no_trans else sample.trans.detach()
    detached = (sample.input.detach(), sample.rois, old_trans)
    _C.deform_psroi_pooling_forward(*detached, out, top_count, no_trans, *sample.numbers)
    assert out.equal(expected)
    assert top_count.equal(counts.repeat_interleave(2 // counts.shape[1], 1).float())

    grad = torch.rand_like(out)
    input_grad, trans_grad = torch.ones_like(sample.input).detach(), torch.ones_like(old_trans)
    _C.deform_psroi_pooling_backward(grad, *detached, top_count, input_grad, trans_grad, no_trans, *sample.numbers)
    wanted = [sample.input] if no_trans else [sample.input, sample.trans]
    expected = torch.autograd.grad(expected, wanted, grad)
    assert_close(input_grad - 1, expected[0], 1e-5)
    if not no_trans:
        assert_close(trans_grad - 1, expected[1], 1e-5)


def test_old_function_and_module(device):
    input, rois, trans = (t.to(device) for t in reference.random_inputs(part_size=2))
    expected = deform_psroi_pooling(input, rois, trans, 0.117, 6, 1, 4, 2, 3, 0.2)
    arguments = (0.117, 4, 6, False, 1, 2, 3, 0.2)
    assert deform_roi_pooling(input, rois, trans, *arguments).equal(expected)
    assert deform_roi_pooling(input, rois, trans, 0.117, (4, 4), *arguments[2:]).equal(expected)
    assert deform_pool_func.DeformRoIPoolingFunction.apply(input, rois, trans, *arguments).equal(expected)
    assert DeformRoIPooling(*arguments)(input, rois, trans).equal(expected)
    regular = deform_psroi_pooling(input, rois, None, 0.117, 6, 1, 4, 2, 3, 0.2)
    assert DeformRoIPooling(0.117, 4, 6, True, 1, 2, 3)(input, rois, input.new_empty(0)).equal(regular)
    # parts as many as bins unless given; trans_std is 0 unless given, so offsets move nothing
    trans = trans.repeat(1, 1, 2, 2)
    assert deform_roi_pooling(input, rois, trans, 0.117, 4, 6, False, sample_per_part=3).equal(regular)
    assert repr(DeformRoIPooling(0.25, 7, 256, False)) == (
        "DeformRoIPooling(spatial_scale=0.25, out_size=7, out_channels=256, no_trans=False, group_size=1, part_size=7, "
        "sample_per_part=4, trans_std=0.0)"
    )


@pytest.mark.parametrize("part_size", [None, 2])
def test_pack_starts_without_offsets_and_learns_them(device, part_size):
    input, rois, _ = (t.to(device) for t in reference.random_inputs())
    regular = deform_psroi_pooling(input, rois, None, 0.117, 6, 1, 3)
    pack = DeformRoIPoolingPack(0.117, 3, 6, False, part_size=part_size, trans_std=0.1, deform_fc_channels=16)
    pack = pack.to(device)
    shapes = {name: list(p.shape) for name, p in pack.named_parameters()}
    offsets = 18 if part_size is None else 8
    assert shapes == {
        "offset_fc.0.weight": [16, 54],
        "offset_fc.0.bias": [16],
        "offset_fc.2.weight": [16, 16],
        "offset_fc.2.bias": [16],
        "offset_fc.4.weight": [offsets, 16],
        "offset_fc.4.bias": [offsets],
    }
    output = pack(input, rois)
    assert_close(output, regular, 1e-6)
    output.sum().backward()
    assert pack.offset_fc[4].weight.grad.abs().sum() > 0
    assert pack(input, rois[:0]).shape == (0, 6, 3, 3)
    last = input.contiguous(memory_format=torch.channels_last)
    torch.nn.init.normal_(pack.offset_fc[4].weight)
    assert_close(pack(last, rois), pack(input, rois), 1e-5)


def test_modulated_pack_starts_at_one_half(device):
    input, rois, _ = (t.to(device) for t in reference.random_inputs())
    regular = deform_psroi_pooling(input, rois, None, 0.117, 6, 1, 3)
    pack = ModulatedDeformRoIPoolingPack(0.117, 3, 6, False, trans_std=0.1, deform_fc_channels=16).to(device)
    assert sorted(name for name, _ in pack.named_parameters() if name.startswith("mask_fc")) == [
        "mask_fc.0.bias",
        "mask_fc.0.weight",
        "mask_fc.2.bias",
        "mask_fc.2.weight",
    ]
    output = pack(input, rois)
    assert_close(output, regular / 2, 1e-6)
    output.sum().backward()
    assert pack.mask_fc[2].weight.grad.abs().sum() > 0 and pack.offset_fc[4].weight.grad.abs().sum() > 0
    assert pack(input, rois[:0]).shape == (0, 6, 3, 3)


@pytest.mark.parametrize("module", [DeformRoIPoolingPack, ModulatedDeformRoIPoolingPack])
def test_packs_without_offsets_have_no_parameters(module):
    input, rois, _ = reference.random_inputs()
    pack = module(0.117, 3, 6, True)
    assert not list(pack.parameters())
    assert pack(input, rois).equal(deform_psroi_pooling(input, rois, None, 0.117, 6, 1, 3))


def test_old_paths():
    assert deform_pool_func.deform_roi_pooling is layers.deform_roi_pooling
    for name in ("DeformRoIPooling", "DeformRoIPoolingPack", "ModulatedDeformRoIPoolingPack"):
        assert getattr(deform_pool_module, name) is getattr(layers, name)


# ---- CUDA


@CUDA
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("output_dim, num_classes, samples", [(256, 1, 4), (80, 5, 2), (7, 7, 3), (16, 1, 256)])
def test_cuda_equals_cpu(dtype, memory_format, output_dim, num_classes, samples):
    """Channels in one block and several, whole packs and not, and bins that fill the shared memory."""
    input, rois, trans = reference.random_inputs(
        output_dim=output_dim, size=(25, 31), num_rois=9, num_classes=num_classes, part_size=7
    )
    input = input.to(dtype).contiguous(memory_format=memory_format)
    results = []
    for device in ("cpu", "cuda"):
        x, t = input.to(device).requires_grad_(), trans.to(device).requires_grad_()
        output, counts = op(x, rois.to(device), t, 0.117, output_dim, 1, 7, 7, samples, 0.1)
        grads = torch.autograd.grad(output, (x, t), torch.ones_like(output))
        results.append((output, counts) + grads)
    assert results[0][1].equal(results[1][1].cpu())
    for expected, actual in zip(results[0], results[1]):
        assert_close(actual, expected, max(TOLERANCES[dtype], 1e-5 if dtype != torch.float64 else 1e-12))


@CUDA
@pytest.mark.cuda
def test_cuda_marks_rois_of_images_that_do_not_exist():
    input = torch.rand(2, 3, 8, 8, device="cuda", requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 7, 7], [2, 0, 0, 7, 7], [-1, 0, 0, 7, 7], [float("nan"), 0, 0, 7, 7]]).cuda()
    output, counts = op(input, rois, None, 1.0, 3, 1, 2, 2, 2, 0.0)
    assert torch.isnan(output).flatten(1).all(1).tolist() == [False, True, True, True]
    assert (counts != 0).flatten(1).any(1).tolist() == [True, False, False, False]
    (grad,) = torch.autograd.grad(output, input, torch.ones_like(output))
    assert float(grad.sum()) == pytest.approx(3 * 4, rel=1e-5)
    output, _ = op(input[:0], rois, None, 1.0, 3, 1, 2, 2, 2, 0.0)
    assert torch.isnan(output).all()


@CUDA
@pytest.mark.cuda
def test_cuda_runs_on_the_current_stream_without_waiting():
    sample = reference.sample_inputs("cuda", requires_grad=True)[0]
    expected, _ = op(*sample.arguments)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    modes = getattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    with torch.cuda.stream(stream):
        modes("error")
        try:
            torch.cuda._sleep(10**8)
            output, _ = op(*sample.arguments)
            torch.autograd.grad(output, differentiable(sample), torch.ones_like(output))
            assert not stream.query()
        finally:
            modes("default")
    stream.synchronize()
    assert output.equal(expected)


@CUDA
@pytest.mark.cuda
@pytest.mark.skipif(not hasattr(torch, "use_deterministic_algorithms"), reason="came with torch 1.8")
def test_cuda_refuses_a_deterministic_backward():
    sample = reference.sample_inputs("cuda", requires_grad=True)[0]
    torch.use_deterministic_algorithms(True)
    try:
        output, _ = op(*sample.arguments)
        assert output.equal(op(*sample.arguments)[0])
        with pytest.raises(RuntimeError, match="deform_psroi_pooling_backward_cuda does not have a deterministic"):
            output.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


@CUDA
@pytest.mark.cuda
@pytest.mark.multigpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_cuda_device_guard():
    sample = reference.sample_inputs("cuda:1", requires_grad=True)[0]
    expected, _ = op(*(t.cpu() for t in sample.arguments[:3]), *sample.numbers)
    output, _ = op(*sample.arguments)
    output.sum().backward()
    assert output.device.index == 1 and torch.cuda.current_device() == 0
    assert_close(output, expected, 1e-5)


@CUDA
@pytest.mark.cuda
@pytest.mark.parametrize("changed", [1, 2])
def test_cuda_messages_about_devices(changed):
    tensors = [t.cuda() for t in (INPUT, ROIS, TRANS)]
    tensors[changed] = tensors[changed].cpu()
    with pytest.raises(RuntimeError, match=r"expected (rois|trans) on the device of input \(cuda:0\), got cpu; move"):
        deform_psroi_pooling(*tensors, **NUMBERS)


@CUDA
@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_cuda_beyond_32_bits(memory_format):
    """Input and output of more than 2^31 elements; the last image and the last RoIs are looked at."""
    if torch.cuda.get_device_properties(0).total_memory < 30 * 2**30:
        pytest.skip("needs 30 GB")
    images, channels = 9, 256
    input = torch.zeros(images, channels, 1024, 1024, device="cuda", dtype=torch.float16)
    input = input.contiguous(memory_format=memory_format)
    input[-1, -1] = torch.arange(1024, device="cuda").half()
    rois = torch.tensor([[images - 1.0, 100, 100, 200, 200]], device="cuda").repeat(175000, 1)
    output, counts = op(input, rois, None, 1.0, channels, 1, 7, 7, 1, 0.0)
    expected, _ = op(input[-1:], torch.tensor([[0.0, 100, 100, 200, 200]]).cuda(), None, 1.0, channels, 1, 7, 7, 1, 0.0)
    assert output.numel() > 2**31 and input.numel() > 2**31
    assert output[-1].equal(expected[0]) and bool((expected[0, -1] != 0).any()) and bool((counts == 1).all())
