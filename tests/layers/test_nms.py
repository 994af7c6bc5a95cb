"""NMS family: against a slow reference, by its properties, and against wrong calls."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_core import _C, layers
from fcos_core.layers import batched_nms, ml_nms, nms
from fcos_core.layers._library import load
from tests.layers import on_cuda
from tests.layers.on_cuda import needs_cuda
from tests.reference import nms as reference

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
THRESHOLDS = [0.3, 0.5, 0.6, 0.7, 0.9]
GOLDEN = np.load(os.path.join(os.path.dirname(__file__), os.pardir, "golden", "ops.npz"))


def composite(boxes, scores, labels, iou_threshold):
    load()
    return torch.ops.fcos_core._batched_nms_composite(boxes, scores, labels, iou_threshold)


# ---- values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_reference(device, dtype):
    for name, boxes, scores, labels in reference.sample_inputs(device, dtype):
        for threshold in (0.3, 0.6):
            kept = nms(boxes, scores, threshold)
            assert kept.dtype == torch.int64 and kept.device.type == device.type
            assert kept.tolist() == reference.ml_nms(boxes, scores, None, threshold), name
            expected = reference.ml_nms(boxes, scores, labels, threshold)
            assert ml_nms(boxes, scores, labels, threshold).tolist() == expected, name
            assert ml_nms(boxes, scores, labels.float(), threshold).tolist() == expected, name
            assert ml_nms(boxes, scores, labels.int(), threshold).tolist() == expected, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batched_matches_reference(device, dtype):
    for name, boxes, scores, labels in reference.batched_inputs(device, dtype):
        keep = batched_nms(boxes, scores, labels, 0.6)
        assert keep.dtype == torch.bool and keep.shape == scores.shape and keep.device.type == device.type
        assert keep.tolist() == reference.batched_nms(boxes, scores, labels, 0.6), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_composite_is_the_kernel(device, dtype):
    """What serves GPUs in a build without CUDA gives the same boxes."""
    for name, boxes, scores, labels in reference.batched_inputs(device, dtype):
        assert composite(boxes, scores, labels, 0.6).tolist() == batched_nms(boxes, scores, labels, 0.6).tolist(), name
    for name, boxes, scores, labels in reference.sample_inputs(device, dtype):
        labels = labels - labels.min() if len(labels) else labels
        arguments = boxes[None], scores[None], labels[None], 0.5
        assert composite(*arguments).tolist() == batched_nms(*arguments).tolist(), name


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_golden(device, threshold):
    boxes, scores, labels = (torch.from_numpy(GOLDEN["nms/" + key]).to(device) for key in ("boxes", "scores", "labels"))
    expected = GOLDEN["nms/keep_{}".format(threshold)].tolist()
    assert nms(boxes, scores, threshold).tolist() == expected
    assert nms(boxes.double(), scores.double(), threshold).tolist() == expected
    assert _C.nms(boxes, scores, threshold).tolist() == expected
    expected = GOLDEN["ml_nms/keep_{}".format(threshold)].tolist()
    assert ml_nms(boxes, scores, labels, threshold).tolist() == expected
    assert _C.ml_nms(boxes, scores, labels.float(), threshold).tolist() == expected


def test_sides_count_pixels_from_first_to_last(device):
    """Legacy: [0, 9] is 10 pixels long; without the +1 this IoU is 81 / 171."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 19]], device=device)
    scores = torch.tensor([1.0, 0.5], device=device)
    assert nms(boxes, scores, 0.49).tolist() == [0]
    assert nms(boxes, scores, 0.51).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_iou_equal_to_the_threshold_does_not_suppress(device, dtype):
    """Legacy: as the old CUDA code; the old CPU code suppressed (GOLDEN nms/tie_keep_cpu_0.5)."""
    boxes = torch.from_numpy(GOLDEN["nms/tie_boxes"]).to(device, dtype)  # IoU is 50 / 100
    scores = torch.tensor([1.0, 0.5], device=device, dtype=dtype)
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, 0.4999).tolist() == [0]
    assert GOLDEN["nms/tie_keep_cpu_0.5"].tolist() == [0]
    # 3 / 5 rounds to the threshold in float32 as in float64
    boxes = torch.tensor([[0.0, 0, 4, 0], [0, 0, 2, 0]], device=device, dtype=dtype)
    assert nms(boxes, scores, 0.6).tolist() == [0, 1]


def test_thresholds_at_the_ends(device):
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [9, 9, 20, 20], [40, 40, 41, 41]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device)
    assert nms(boxes, scores, 0.0).tolist() == [0, 3]  # one common pixel suffices
    assert nms(boxes, scores, 1.0).tolist() == [0, 1, 2, 3]
    assert nms(boxes, scores, 5).tolist() == [0, 1, 2, 3]


def test_order_of_equal_and_nan_scores(device):
    inf, nan = float("inf"), float("nan")
    boxes = torch.tensor([[0.0, 0, 9, 9]], device=device)

    def winner(scores):
        kept = nms(boxes.repeat(len(scores), 1), torch.tensor(scores, device=device), 0.5).tolist()
        assert len(kept) == 1
        return kept[0]

    assert winner([0.5, 0.5, 0.5]) == 0
    assert winner([0.1, 0.5, 0.5]) == 1
    assert winner([0.0, -0.0]) == 0 and winner([-0.0, 0.0]) == 0
    assert winner([nan, -inf]) == 1
    assert winner([nan, nan]) == 0
    assert winner([nan, 1e-30, inf, -1.0]) == 2


def test_boxes_without_extent_touch_nothing(device):
    nan = float("nan")
    whole = [0.0, 0, 99, 99]
    for empty in ([50.0, 50, 49, 60], [50, 50, 20, 60], [60, 60, 50, 50], [nan, 0, 99, 99], [0, 0, 99, nan]):
        boxes = torch.tensor([empty, whole, empty], device=device)
        assert nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.0).tolist() == [0, 1, 2], empty
    # a single pixel is a box
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5]], device=device)
    assert nms(boxes, torch.tensor([0.1, 0.2], device=device), 0.5).tolist() == [1]


def test_float64_boxes_are_compared_in_float64(device):
    """A difference that float32 cannot hold decides."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4 + 1e-9]], device=device, dtype=torch.float64)
    scores = torch.tensor([1.0, 0.5], device=device, dtype=torch.float64)
    assert nms(boxes, scores, 0.5).tolist() == [0]
    assert nms(boxes.float(), scores, 0.5).tolist() == [0, 1]
    # so do scores
    same = torch.zeros(2, 4, device=device)
    close = torch.tensor([1.0, 1.0 + 1e-12], device=device, dtype=torch.float64)
    assert nms(same, close, 0.5).tolist() == [1]
    assert nms(same, close.float(), 0.5).tolist() == [0]


def test_dtypes_of_boxes_and_scores_may_differ(device):
    boxes, scores, labels = (t.to(device) for t in reference.random_boxes(100))
    for dtype in DTYPES:
        expected = reference.ml_nms(boxes, scores.to(dtype), labels, 0.6)
        assert ml_nms(boxes, scores.to(dtype), labels, 0.6).tolist() == expected


def test_empty_inputs(device):
    boxes, scores = torch.zeros(0, 4, device=device), torch.zeros(0, device=device)
    results = nms(boxes, scores, 0.5), ml_nms(boxes, scores, scores, 0.5), ml_nms(boxes, scores, scores.long(), 0.5)
    for kept in results:
        assert kept.shape == (0,) and kept.dtype == torch.int64 and kept.device == boxes.device


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_agrees_with_torchvision(device):
    ops = pytest.importorskip("torchvision.ops")
    boxes, scores, labels = (t.to(device) for t in reference.random_boxes(500))
    exclusive = boxes + torch.tensor([0.0, 0, 1, 1], device=device)
    for threshold in THRESHOLDS:
        try:
            expected = ops.nms(exclusive, scores, threshold).sort()[0].tolist()
        except RuntimeError as error:
            pytest.skip("torchvision without this op: {}".format(error))
        assert nms(boxes, scores, threshold).tolist() == expected
        # on a grid of quarter pixels, its shift of coordinates by label is exact
        expected = ops.boxes.batched_nms(exclusive, scores, labels, threshold).sort()[0].tolist()
        assert ml_nms(boxes, scores, labels, threshold).tolist() == expected


# ---- properties


def test_kept_are_disjoint_and_others_overlap_a_better_one():
    boxes, scores, labels = reference.random_boxes(400, seed=3)
    kept = ml_nms(boxes, scores, labels, 0.5).tolist()
    matrix = np.stack([reference.iou(box, boxes.double().numpy()) for box in boxes.double().numpy()])
    matrix[labels.numpy()[:, None] != labels.numpy()[None]] = 0
    np.fill_diagonal(matrix, 0)
    assert 0 < len(kept) < 400
    assert not (matrix[np.ix_(kept, kept)] > 0.5).any()
    for i in set(range(400)) - set(kept):
        assert any(matrix[i, k] > 0.5 and scores[k] > scores[i] for k in kept)


def test_order_of_the_input_does_not_matter():
    boxes, scores, labels = reference.random_boxes(300, seed=4)
    shuffle = torch.from_numpy(np.random.permutation(300))
    kept = ml_nms(boxes, scores, labels, 0.5)
    assert sorted(shuffle[ml_nms(boxes[shuffle], scores[shuffle], labels[shuffle], 0.5)].tolist()) == kept.tolist()


def test_growing_transform_of_scores_does_not_matter():
    boxes, scores, _ = reference.random_boxes(300, seed=5)
    kept = nms(boxes, scores, 0.5).tolist()
    assert nms(boxes, scores * 5 - 2, 0.5).tolist() == kept
    assert nms(boxes, (scores - 1) * 1e30, 0.5).tolist() == kept


def test_one_label_is_plain_nms_and_own_labels_keep_all():
    boxes, scores, _ = reference.random_boxes(300, seed=6)
    assert ml_nms(boxes, scores, torch.full((300,), 7), 0.5).tolist() == nms(boxes, scores, 0.5).tolist()
    assert ml_nms(boxes, scores, torch.arange(300), 0.0).tolist() == list(range(300))


def test_batched_is_ml_nms_of_each_image(device):
    lists = [[t.to(device) for t in reference.random_boxes(250, seed=i)] for i in range(4)]
    keep = batched_nms(*(torch.stack(parts) for parts in zip(*lists)), 0.6)
    for mask, (boxes, scores, labels) in zip(keep, lists):
        assert mask.nonzero(as_tuple=True)[0].tolist() == ml_nms(boxes, scores, labels, 0.6).tolist()


def test_padding_changes_nothing(device):
    boxes, scores, labels = (t.to(device) for t in reference.random_boxes(100))
    wide = torch.cat([boxes, torch.full((30, 4), float("nan"), device=device)])[None]
    wide[0, 110:] = boxes[:20]
    wide_scores = torch.cat([scores, torch.full((30,), 9.0, device=device)])[None]
    wide_labels = torch.cat([labels, torch.full((30,), -1, device=device, dtype=torch.int64)])[None]
    keep = batched_nms(wide, wide_scores, wide_labels, 0.5)[0]
    assert not keep[100:].any()
    assert keep[:100].tolist() == batched_nms(boxes[None], scores[None], labels[None], 0.5)[0].tolist()


def test_number_of_threads_does_not_matter():
    one = reference.random_boxes(6000, num_labels=1, clusters=3000, seed=7)
    two = reference.random_boxes(3000, num_labels=20, seed=8)
    batch = [torch.stack([t, t.flip(0)]) for t in reference.random_boxes(3000, num_labels=1, clusters=2000, seed=9)]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append((nms(*one[:2], 0.6).tolist(), ml_nms(*two, 0.6).tolist(), batched_nms(*batch, 0.6).tolist()))
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]
    assert results[0][0] == reference.ml_nms(one[0], one[1], None, 0.6)


def test_memory_grows_with_the_boxes_not_with_their_pairs():
    """100 000 boxes: a bit per pair would be 1.25 GB."""
    resource = pytest.importorskip("resource")
    boxes, scores, labels = reference.random_boxes(100000, num_labels=2, clusters=100)
    nms(boxes[:100], scores[:100], 0.5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = nms(boxes, scores, 0.5)
    assert 0 < len(kept) < 50000
    assert 0 < len(ml_nms(boxes, scores, labels, 0.5)) < 50000
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kilobytes < 100 * 1024


def test_composite_in_blocks_is_the_kernel(device):
    """More boxes than one block of the composite holds, with chains of suppression across blocks."""
    boxes, scores, labels = (t.to(device)[None] for t in reference.random_boxes(2500, 2, clusters=60, seed=10))
    assert composite(boxes, scores, labels, 0.4).equal(batched_nms(boxes, scores, labels, 0.4))
    chain = torch.arange(1500, device=device).float()[:, None] + torch.tensor([0.0, 0, 9, 9], device=device)
    falling = torch.arange(1500, 0, -1, device=device).float()
    arguments = chain[None], falling[None], torch.zeros(1, 1500, dtype=torch.int64, device=device), 0.3
    assert composite(*arguments).equal(batched_nms(*arguments))


# ---- sizes and ties: where kernels cut lists, and what decides between equals


@pytest.mark.parametrize("num_boxes", [2, 63, 64, 65, 127, 1023, 1024, 1025, 1152, 2047, 2048, 2049, 3072, 3073])
def test_sizes_around_those_of_blocks(device, num_boxes):
    """Tiles of 64 and 1024 boxes, runs of 2048 sorted keys; labels whose boxes lie across tiles."""
    for num_labels in (1, 3, 200):
        boxes, scores, labels = (t.to(device) for t in reference.random_boxes(num_boxes, num_labels, seed=num_boxes))
        kept = ml_nms(boxes, scores, labels, 0.5).tolist()
        assert kept == reference.ml_nms(boxes, scores, labels, 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_ties_of_everything(device, seed, dtype):
    """Two implementations, the same bits: equal scores, IoUs at the threshold, boxes without area, NaN and inf."""
    num_boxes = [40, 300, 1024, 1100, 2049, 2600][seed]
    lists = [reference.tied_boxes(num_boxes, seed=10 * seed + i) for i in range(2)]
    boxes, scores, labels = (torch.stack(parts).to(device) for parts in zip(*lists))
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    for threshold in (0.0, 1 / 3, 0.5, 0.6, 2 / 3, 1.0, 0.30000001192092896):
        keep = batched_nms(boxes, scores, labels, threshold)
        assert keep.equal(composite(boxes, scores, labels, threshold)), threshold
        assert keep.equal(batched_nms(boxes, scores, labels, threshold))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_thresholds_that_are_the_iou_of_a_pair(device, dtype):
    """An IoU that is exactly the threshold stays, one unit in the last place above it goes."""
    boxes = reference.random_boxes(200, clusters=1, seed=11)[0].to(dtype) / 3
    first, second = boxes[:100], boxes[100:]
    scores = torch.tensor([1.0, 0.5], device=device)

    def area(box):
        sides = (box[:, 2:] - box[:, :2] + 1).clamp(min=0)
        return sides[:, 0] * sides[:, 1]

    common = area(torch.cat([torch.max(first[:, :2], second[:, :2]), torch.min(first[:, 2:], second[:, 2:])], 1))
    iou = common / (area(first) + area(second) - common)
    assert (iou > 0).sum() > 50
    for i in (iou > 0).nonzero(as_tuple=True)[0].tolist():
        pair = torch.stack([first[i], second[i]]).to(device)
        at, below = iou[i].numpy(), np.nextafter(iou[i].numpy(), np.zeros_like(iou[i].numpy()))
        assert nms(pair, scores, float(at)).tolist() == [0, 1]
        assert nms(pair, scores, float(below)).tolist() == [0]


@pytest.mark.parametrize("num_lists, num_boxes", [(1, 1), (300, 5), (70000, 2), (40, 70), (3, 1025), (0, 4), (4, 0)])
def test_many_lists(device, num_lists, num_boxes):
    rng = np.random.RandomState(0)
    corner = torch.from_numpy(rng.randint(0, 5, (num_lists, num_boxes, 2))).float()
    boxes = torch.cat([corner, corner + 6], -1).to(device)
    scores = torch.from_numpy(rng.rand(num_lists, num_boxes)).to(device)
    labels = torch.from_numpy(rng.randint(-1, 2, (num_lists, num_boxes))).to(device)
    keep = batched_nms(boxes, scores, labels, 0.4)
    assert keep.equal(composite(boxes, scores, labels, 0.4))


def test_labels_at_the_ends_of_int64(device):
    """The largest label is no padding, and negative ones are labels like others to ml_nms."""
    box = torch.tensor([[0.0, 0, 9, 9]], device=device)
    lowest, highest = -(2**63), 2**63 - 1
    labels = torch.tensor([highest, highest, lowest, lowest, -1, -1, 0, 0], device=device)
    scores = torch.tensor([float("nan"), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], device=device)
    assert ml_nms(box.repeat(8, 1), scores, labels, 0.5).tolist() == [1, 3, 5, 7]
    keep = batched_nms(box.repeat(1, 8, 1), scores[None], labels[None], 0.5)[0]
    assert keep.tolist() == [False, True, False, False, False, False, False, True]


def test_boxes_at_any_address(device):
    """Contiguous views whose memory begins in the middle of a vector."""
    boxes, scores, labels = (t.to(device) for t in reference.random_boxes(90))
    expected = ml_nms(boxes, scores, labels, 0.5).tolist()
    for offset in (1, 2, 3):
        shifted = torch.cat([torch.zeros(offset, device=device), boxes.flatten()])[offset:].view(-1, 4)
        moved = torch.cat([torch.zeros(offset, device=device), scores])[offset:]
        assert shifted.is_contiguous() and shifted.storage_offset() == offset
        assert ml_nms(shifted, moved, labels, 0.5).tolist() == expected


# ---- CUDA only


@needs_cuda
@pytest.mark.parametrize("boxes_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scores_dtype", DTYPES, ids=str)
def test_cuda_is_the_cpu(boxes_dtype, scores_dtype):
    for seed, num_boxes in enumerate((1, 30, 500, 1500, 5000)):
        for make in (reference.random_boxes, reference.tied_boxes):
            boxes, scores, labels = make(num_boxes, num_labels=1 + 3 * seed, seed=seed)
            boxes, scores = boxes.to(boxes_dtype), scores.to(scores_dtype)
            for threshold in (0.0, 0.5, 0.6):
                expected = nms(boxes, scores, threshold)
                assert nms(boxes.cuda(), scores.cuda(), threshold).cpu().equal(expected)
                expected = ml_nms(boxes, scores, labels, threshold)
                assert ml_nms(boxes.cuda(), scores.cuda(), labels.cuda(), threshold).cpu().equal(expected)
                batch = [torch.stack([t, t.flip(0)]) for t in (boxes, scores, labels)]
                expected = batched_nms(*batch, threshold)
                assert batched_nms(*(t.cuda() for t in batch), threshold).cpu().equal(expected)


@needs_cuda
@pytest.mark.parametrize("num_boxes", [16384, 16385, 20000, 100000])
def test_long_lists_on_cuda(num_boxes):
    """Several rounds of merging, and many tiles: the CPU's boxes in a few dozen megabytes."""
    for num_labels, clusters in ((1, num_boxes // 12), (1, num_boxes), (30, num_boxes // 12)):
        boxes, scores, labels = reference.random_boxes(num_boxes, num_labels, clusters, seed=num_labels)
        scores = (scores * 5000).floor()
        expected = ml_nms(boxes, scores, labels, 0.5)
        boxes, scores, labels = boxes.cuda(), scores.cuda(), labels.cuda()
        assert ml_nms(boxes, scores, labels, 0.5).cpu().equal(expected)
        # a bit per pair of 100 000 boxes would be 1250 MB
        assert on_cuda.peak_bytes(lambda b=boxes, s=scores, t=labels: ml_nms(b, s, t, 0.5)) < 400 * num_boxes + 2**20
    assert 0 < len(nms(boxes, scores, 0.5)) < num_boxes


@needs_cuda
def test_long_chain_on_cuda():
    """Every box decides about the next one: the slowest case for finding out what stays."""
    chain = torch.arange(5000).float()[:, None] * torch.tensor([5.0, 0, 5, 0]) + torch.tensor([0.0, 0, 9, 9])
    falling = torch.arange(5000, 0, -1).float()
    expected = list(range(0, 5000, 2))
    assert nms(chain, falling, 0.3).tolist() == expected
    assert nms(chain.cuda(), falling.cuda(), 0.3).tolist() == expected


@needs_cuda
def test_batched_nms_does_not_synchronise():
    parts = [torch.stack(t).cuda() for t in zip(*(reference.random_boxes(1500, seed=i) for i in range(3)))]
    expected = batched_nms(*parts, 0.5)
    with on_cuda.no_sync():
        keep = batched_nms(*parts, 0.5)
        narrow = batched_nms(parts[0].transpose(0, 1), parts[1].t(), parts[2].int().t(), 0.5)
    assert keep.equal(expected) and narrow.shape == (1500, 3)


@needs_cuda
def test_streams_and_graphs():
    one, two = ([torch.stack(t).cuda() for t in zip(*(reference.random_boxes(1200, 4, seed=s) for s in seeds))]
                for seeds in ((0, 1), (2, 3)))  # fmt: skip
    expected = batched_nms(*two, 0.5)
    assert on_cuda.on_side_stream(lambda *t: batched_nms(*t, 0.5), *two).equal(expected)
    assert on_cuda.on_side_stream(lambda *t: nms(*t, 0.5), two[0][0], two[1][0]).equal(nms(two[0][0], two[1][0], 0.5))
    assert on_cuda.replayed(lambda *t: batched_nms(*t, 0.5), one, two).equal(expected)


@needs_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_second_device():
    boxes, scores, labels = (t.to("cuda:1") for t in reference.random_boxes(300))
    kept = ml_nms(boxes, scores, labels, 0.5)
    assert kept.device == boxes.device and torch.cuda.current_device() == 0
    assert kept.tolist() == ml_nms(boxes.cpu(), scores.cpu(), labels.cpu(), 0.5).tolist()


# ---- torch: autograd, autocast, tracing


def test_inputs_that_require_grad():
    boxes, scores, labels = reference.random_boxes(50)
    boxes.requires_grad_()
    scores.requires_grad_()
    assert not nms(boxes, scores, 0.5).requires_grad
    assert not batched_nms(boxes[None], scores[None], labels[None], 0.5).requires_grad
    assert not composite(boxes[None], scores[None], labels[None], 0.5).requires_grad
    boxes[nms(boxes, scores, 0.5)].sum().backward()
    assert boxes.grad.sum() > 0


@pytest.mark.skipif(not hasattr(torch, "autocast"), reason="CPU autocast came with torch 1.10")
def test_autocast_changes_nothing():
    boxes, scores, labels = reference.random_boxes(200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = ml_nms(boxes, scores, labels, 0.5)
    assert kept.equal(ml_nms(boxes, scores, labels, 0.5))


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "opcheck"), reason="opcheck came with torch 2.4")
def test_opcheck(device):
    load()
    boxes, scores, labels = (t.to(device) for t in reference.random_boxes(60))
    torch.library.opcheck(torch.ops.fcos_core.nms, (boxes, scores, 0.5))
    torch.library.opcheck(torch.ops.fcos_core.ml_nms, (boxes, scores, labels, 0.5))
    torch.library.opcheck(torch.ops.fcos_core.batched_nms, (boxes[None], scores[None], labels[None], 0.5))


@pytest.mark.skipif(not hasattr(getattr(torch, "library", None), "register_fake"), reason="fake kernels: torch 2.4")
def test_compiles_without_graph_breaks(device):
    boxes, scores, labels = (t.to(device) for t in reference.random_boxes(60))

    def keep(boxes, scores, labels):
        mask = batched_nms(boxes[None], scores[None], labels[None], 0.5)[0]
        return mask, boxes[nms(boxes, scores, 0.5)] * 2, boxes[ml_nms(boxes, scores, labels, 0.5)] * 2

    compiled = torch.compile(keep, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        results = compiled(boxes, scores, labels)
    for result, expected in zip(results, keep(boxes, scores, labels)):
        assert result.equal(expected)


# ---- wrong calls

BOXES, SCORES, LABELS = torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((BOXES[:, :3], SCORES, 0.5), r"nms: expected boxes of shape \[M, 4\], got \[3, 3\]; see"),
        ((BOXES[None], SCORES, 0.5), r"nms: expected boxes of shape \[M, 4\], got \[1, 3, 4\]"),
        ((BOXES, SCORES[None], 0.5), r"nms: expected scores of shape \[M\], got \[1, 3\]"),
        ((BOXES, SCORES[:2], 0.5), r"nms: expected scores to have one entry per box \(3\), got 2; pass"),
        ((BOXES.long(), SCORES, 0.5), r"nms: expected boxes of dtype float64, .* got torch.int64; convert"),
        ((BOXES, LABELS, 0.5), r"nms: expected scores of dtype float64, .* got torch.int64; convert"),
        ((BOXES, SCORES, -0.1), r"nms: expected iou_threshold to be at least 0, got -0.1; a threshold"),
        ((BOXES, SCORES, float("nan")), r"nms: expected iou_threshold to be at least 0, got nan"),
    ],
)
def test_messages_of_nms(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        nms(*arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((BOXES, SCORES, LABELS[:2], 0.5), r"ml_nms: expected labels of shape \[M\], one per box, got \[2\]"),
        ((BOXES, SCORES, SCORES + 0.5, 0.5), r"ml_nms: expected labels to hold class ids, got fractions"),
        ((BOXES, SCORES, SCORES + float("nan"), 0.5), r"ml_nms: expected labels to hold class ids, got fractions"),
        ((BOXES, SCORES, SCORES > 0, 0.5), r"ml_nms: expected labels of dtype float64, .* got torch.bool"),
    ],
)
def test_messages_of_ml_nms(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        ml_nms(*arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((BOXES, SCORES, LABELS, 0.5), r"batched_nms: expected boxes of shape \[N, K, 4\], got \[3, 4\]"),
        ((BOXES[None], SCORES, LABELS[None], 0.5), r"batched_nms: expected scores of shape \[N, K\], one per box"),
        ((BOXES[None], SCORES[None], LABELS, 0.5), r"batched_nms: expected labels of shape \[N, K\], one per box"),
        ((BOXES[None], SCORES[None], SCORES[None], 0.5), r"expected labels of an integer dtype, got torch.float32"),
        ((BOXES[None], SCORES[None], LABELS[None], -1), r"batched_nms: expected iou_threshold to be at least 0"),
    ],
)
def test_messages_of_batched_nms(arguments, message):
    for function in (batched_nms, composite):
        with pytest.raises(RuntimeError, match=message):
            function(*arguments)


@needs_cuda
def test_two_devices_are_refused():
    with pytest.raises(RuntimeError, match=r"nms: expected scores on the device of boxes \(cuda:0\), got cpu; move"):
        nms(BOXES.cuda(), SCORES, 0.5)


tensors = st.builds(
    lambda shape, dtype: (torch.rand(shape) * 3).to(dtype),
    st.lists(st.integers(0, 5), max_size=3),
    st.sampled_from(DTYPES + [torch.int64, torch.int32, torch.uint8, torch.bool]),
)
anything = st.one_of(tensors, st.none(), st.integers(-2, 2), st.floats(), st.just("0.5"), st.just([1.0, 2.0]))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([nms, ml_nms, batched_nms]), st.lists(anything, min_size=2, max_size=5))
def test_any_call_answers_or_raises(function, arguments):
    """Nothing crosses into the kernel unchecked: a crash would end the test run."""
    try:
        result = function(*arguments)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return
    assert isinstance(result, torch.Tensor)
    if function is batched_nms:
        assert result.shape == arguments[1].shape
    else:
        assert result.dim() == 1 and len(result) <= len(arguments[0])


def test_old_module_names():
    assert layers.nms is nms and layers.ml_nms is ml_nms
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _C.no_such_name  # noqa: B018
