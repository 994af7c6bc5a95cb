"""TOOD by itself: alignment, assignment and losses against slow, obvious versions."""
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcos_core.config import load_config
from fcos_core.modeling.rpn import levels
from fcos_core.modeling.rpn.levels import level_locations
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.modeling.rpn.tood import targets
from fcos_core.modeling.rpn.tood.head import TaskDecomposition, aligned_distances, aligned_logits
from fcos_core.modeling.rpn.tood.targets import assign_aligned
from fcos_core.structures.image_list import ImageList
from tests.live_bytes import LiveBytes
from tests.modeling.test_atss import boxlist, counted, grid_sizes, needs_dispatch_mode, random_boxlist
from tests.reference import tood as reference

STRIDES = [8, 16, 32, 64, 128]
SMALL = ["MODEL.TOOD.NUM_CLASSES", 4, "MODEL.TOOD.NUM_CONVS", 2]
SIZE = (64, 96)


def module(*options, channels=32):
    return build_rpn(load_config("", ["MODEL.TOOD_ON", True] + SMALL + list(options))[0], channels)


def locations_of(size=SIZE, device="cpu"):
    return [level_locations(h, w, s, torch.device(device)) for (h, w), s in zip(grid_sizes(*size), STRIDES)]


def random_maps(seed, device="cpu", dtype=torch.float64, images=2, size=SIZE):
    """Logits, and distances around one to four strides."""
    rng = np.random.RandomState(seed)
    cls = [torch.from_numpy(1.5 * rng.standard_normal((images, 3) + s) - 1) for s in grid_sizes(*size)]
    reg = [torch.from_numpy(np.exp(rng.standard_normal((images, 4) + s))) for s in grid_sizes(*size)]
    return [[m.to(device=device, dtype=dtype) for m in maps] for maps in (cls, reg)]


def boxlists_of(counts, seed=5):
    rng = np.random.RandomState(seed)
    return [random_boxlist(rng, n, SIZE[1], SIZE[0], classes=3) for n in counts]


# ------------------------------------------------------------------------------------------------------ alignment


def test_aligned_score_is_the_geometric_mean(device):
    logits, alignment = (4 * torch.randn(2, channels, 4, 5, dtype=torch.float64) for channels in (3, 1))
    mine = aligned_logits(logits.to(device), alignment.to(device)).cpu()
    for z, a, value in zip(logits.flatten().tolist(), alignment.expand_as(logits).flatten().tolist(), mine.flatten()):
        assert value.item() == pytest.approx(reference.logit_of_mean(z, a), rel=1e-9, abs=1e-9)
    extremes = torch.tensor([-200.0, -20.0, 0.0, 20.0, 200.0]).view(1, 5, 1, 1).requires_grad_()
    for other in (-200.0, 0.0, 200.0):
        value = aligned_logits(extremes, torch.full((1, 1, 1, 1), other))
        assert torch.isfinite(value).all() and torch.isfinite(torch.autograd.grad(value.sum(), extremes)[0]).all()
    small = torch.randn(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(aligned_logits, (small, small[:, :1].detach().clone().requires_grad_()))


@pytest.mark.parametrize("height,width", [(4, 6), (1, 5), (3, 1), (1, 1)])
def test_sides_are_taken_from_places_nearby(height, width, device):
    distances = torch.rand(2, 4, height, width, dtype=torch.float64) * 3 + 0.1
    offsets = 1.5 * torch.randn(2, 8, height, width, dtype=torch.float64)
    mine = aligned_distances(distances.to(device), offsets.to(device)).cpu()
    for i in range(2):
        wanted = reference.aligned_distances(distances[i].tolist(), offsets[i].tolist())
        assert torch.allclose(mine[i], torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    same = aligned_distances(distances, torch.zeros_like(offsets))
    assert torch.allclose(same, distances, rtol=1e-12, atol=1e-12)


def test_sides_that_make_no_box_stay():
    distances = torch.full((1, 4, 1, 9), 0.5)
    offsets = torch.zeros(1, 8, 1, 9)
    offsets[:, 1] = 4.0  # the left sides from places four cells to the right
    moved = aligned_distances(distances, offsets)
    assert torch.equal(moved[..., :7], distances[..., :7])
    assert moved[0, 0, 0, 7:].tolist() == pytest.approx([-0.5, 0.5])  # from the last cell, the border
    offsets[:, 1] = -2.0
    moved = aligned_distances(distances, offsets)[0, :, 0, 4]
    assert moved.tolist() == pytest.approx([2.5, 0.5, 0.5, 0.5])


def test_gradients_of_moved_sides(device):
    distances = (torch.rand(1, 4, 3, 4, dtype=torch.float64, device=device) + 2).requires_grad_()
    offsets = 0.2 + 0.2 * torch.rand(1, 8, 3, 4, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(aligned_distances, (distances, offsets.requires_grad_()))


def test_weighing_the_kernel_is_weighing_the_layers():
    decomposition = TaskDecomposition(32, 3)
    torch.nn.init.normal_(decomposition.attention[2].weight)
    layers = torch.randn(2, 96, 4, 5).clamp(min=0)
    pooled = F.adaptive_avg_pool2d(layers, 1)
    weights = decomposition.attention(pooled).repeat_interleave(32, dim=1)
    assert weights.std() > 1e-3
    wanted = F.relu(decomposition.norm(decomposition.reduction(layers * weights)))
    assert torch.allclose(decomposition(layers, pooled), wanted, rtol=1e-4, atol=1e-4)


# ----------------------------------------------------------------------------------------------------- assignment


def inputs(counts, seed=0, device="cpu"):
    """Arguments of assign_aligned before topk, and the boxes as lists."""
    boxlists = boxlists_of(counts, seed)
    cls, reg = random_maps(seed)
    logits, distances = (levels.flatten_levels(maps) for maps in (cls, reg))
    locations = torch.cat(locations_of()).double()
    scale = levels.per_location(STRIDES, [len(level) for level in locations_of()], torch.device("cpu"), torch.float64)
    sides = distances * scale[:, None]
    boxes = torch.cat((locations - sides[..., :2], locations + sides[..., 2:]), dim=2)
    gt_boxes, gt_labels = levels.pad_targets(boxlists, torch.float64, torch.device("cpu"))
    tensors = (locations, F.logsigmoid(logits), boxes, gt_boxes, gt_labels)
    return [t.to(device) for t in tensors], boxlists


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (8, 2), (1, 20)])
@pytest.mark.parametrize("topk,alpha,beta", [(13, 1.0, 6.0), (3, 0.5, 1.0), (1000, 1.0, 6.0)])
def test_assignment_is_the_written_rule(counts, topk, alpha, beta, device):
    tensors, boxlists = inputs(counts, sum(counts), device)
    assignment, quality = assign_aligned(*tensors, topk, alpha, beta)
    locations, scores, predicted = tensors[0].tolist(), tensors[1].exp().tolist(), tensors[2].tolist()
    for i, target in enumerate(boxlists):
        boxes, classes = target.bbox.double().tolist(), target.get_field("labels").tolist()
        index, wanted = reference.assign(locations, scores[i], predicted[i], boxes, classes, topk, alpha, beta)
        mine = assignment.index[i].masked_fill(~assignment.positive[i], -1).tolist()
        assert mine == index and (max(index) >= 0) == bool(boxes)
        assert quality[i].tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-12)  # 1e-7 in the denominators of IoUs


def test_many_boxes_in_pieces_give_the_same(monkeypatch, device):
    tensors, _ = inputs((60, 25), device=device)
    whole, quality = assign_aligned(*tensors, 13, 1.0, 6.0)
    pieces = []
    monkeypatch.setattr(targets, "box_chunks", counted(levels.box_chunks, pieces))
    for elements in (3000, 1):
        monkeypatch.setattr(levels, "MAX_ELEMENTS", elements)
        again, same = assign_aligned(*tensors, 13, 1.0, 6.0)
        assert torch.equal(whole.positive, again.positive) and torch.equal(quality, same)
        assert torch.equal(whole.index[whole.positive], again.index[again.positive])
    assert 1 < pieces[0] < 60 and pieces[1] == 60


@needs_dispatch_mode
def test_memory_does_not_grow_with_the_number_of_boxes(monkeypatch):
    monkeypatch.setattr(levels, "MAX_ELEMENTS", 1 << 14)
    locations = torch.cat(locations_of((256, 320)))
    boxes = torch.cat((locations - 10, locations + 10), dim=1).expand(2, -1, -1)
    peaks = []
    for count in (20, 400):
        targets_ = [random_boxlist(np.random.RandomState(i), count, 320, 256) for i in range(2)]
        gt = levels.pad_targets(targets_, torch.float32, torch.device("cpu"))
        watch = LiveBytes()
        with watch:
            assign_aligned(locations, torch.zeros(2, len(locations), 6), boxes, *gt, 13, 1.0, 6.0)
        peaks.append(watch.peak)
    one_matrix = 2 * 400 * len(locations) * 4
    candidates = 2 * 400 * 13 * 8
    assert peaks[1] < 1.3 * peaks[0] + 10 * candidates and peaks[1] < one_matrix / 2, (peaks, one_matrix, candidates)


def test_the_best_location_of_a_box_has_its_best_iou_as_quality_however_small():
    """t itself underflows: the sixth power of the IoU of a small box in a large one."""
    locations = torch.tensor([[50.0, 50.0], [60.0, 50.0], [200.0, 50.0]])
    boxes = torch.cat((locations - 0.1, locations + 0.1), dim=1)[None]
    boxes[0, 1, 2:] += 0.1
    gt = torch.tensor([[[0.0, 0.0, 100.0, 100.0]]])
    log_probabilities = torch.full((1, 3, 2), -40.0)
    assignment, quality = assign_aligned(locations, log_probabilities, boxes, gt, torch.tensor([[2]]), 13, 1.0, 6.0)
    assert assignment.positive.tolist() == [[True, True, False]]
    assert quality[0, 1].item() == pytest.approx(0.3 * 0.3 / 1e4, rel=1e-3)
    assert quality[0, 0].item() == pytest.approx(0.09 / 1e4 * (4 / 9) ** 6, rel=1e-2) and quality[0, 2] == 0


def test_of_two_equal_boxes_the_first_is_learned_and_senseless_ones_are_not():
    tensors, _ = inputs((2, 2))
    twice = torch.tensor([10.0, 10.0, 60.0, 50.0]).double()
    tensors[3][0] = twice
    tensors[3][1, 0], tensors[3][1, 1] = math.nan, math.inf
    assignment, quality = assign_aligned(*tensors, 13, 1.0, 6.0)
    assert assignment.positive[0].sum() == 13 and (assignment.index[0][assignment.positive[0]] == 0).all()
    assert not assignment.positive[1].any() and (quality[1] == 0).all()


# --------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_losses_are_the_written_formulas(counts, device):
    model = module("MODEL.TOOD.REG_LOSS_WEIGHT", 1.5, "MODEL.TOOD.TOPK", 5, "MODEL.TOOD.ALIGN_BETA", 2.0)
    maps = [[m.requires_grad_() for m in level] for level in random_maps(1, device)]
    boxlists = boxlists_of(counts)
    mine = model.loss_evaluator(locations_of(device=device), *maps, [b.to(device) for b in boxlists])
    values = [[m.detach().cpu() for m in level] for level in maps]
    strides = [s for s, level in zip(STRIDES, locations_of()) for _ in level]
    wanted = reference.losses(torch.cat(locations_of()).tolist(), strides, values, boxlists, 5, 1.0, 2.0, 2.0, 1.5)
    for value, number in zip(mine, wanted):
        assert value.item() == pytest.approx(number, rel=1e-6, abs=1e-12)
    sum(mine).backward()
    for level in maps[0] + maps[1]:
        assert level.grad is not None and torch.isfinite(level.grad).all()


@pytest.mark.parametrize("rows", [[], [[1, 1, 1.5, 1.5, 2]]])
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_no_positive_gives_zero_attached_to_the_graph_even_with_infinite_predictions(rows, wrong):
    cls, reg = random_maps(0, dtype=torch.float32)
    reg = [torch.full_like(m, wrong).requires_grad_() for m in reg]
    losses = module().loss_evaluator(locations_of(), cls, reg, [boxlist(rows, SIZE[::-1])] * 2)
    assert losses[1] == 0 and torch.isfinite(losses[0]) and losses[0] > 0
    losses[1].backward()
    assert all((m.grad == 0).all() for m in reg)


def test_mirrored_predictions_of_mirrored_boxes_have_the_same_losses():
    """Image of 128 x 128 pixels: every level is mirrored onto itself."""
    model, losses = module(), []
    cls, reg = random_maps(3, images=1, size=(128, 128))
    rows = np.array([[10.25, 20.5, 60.75, 90.0, 1], [50.0, 30.0, 120.5, 100.25, 3]])
    mirrored = rows[:, [2, 1, 0, 3, 4]] * [-1, 1, -1, 1, 1] + [128, 0, 128, 0, 0]
    for maps, boxes in (
        ([cls, reg], rows), ([[m.flip(-1) for m in cls], [m[:, [2, 1, 0, 3]].flip(-1) for m in reg]], mirrored),
    ):  # fmt: skip
        values = model.loss_evaluator(locations_of((128, 128)), *maps, [boxlist(boxes, (128, 128))])
        losses.append([value.item() for value in values])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9) and min(losses[0]) > 0


def test_half_precision_predictions_give_float32_losses():
    model, boxlists = module(), boxlists_of((3, 3))
    half = [[m.bfloat16() for m in maps] for maps in random_maps(1, dtype=torch.float32)]
    rounded = [[m.float() for m in maps] for maps in half]
    for a, b in zip(*[model.loss_evaluator(locations_of(), *maps, boxlists) for maps in (half, rounded)]):
        assert a.dtype == torch.float32 and a.item() == pytest.approx(b.item(), rel=1e-6)


# ----------------------------------------------------------------------------------------------------------- head


def test_head_and_module():
    model = module()
    features = [torch.randn(2, 32, *size) for size in grid_sizes(*SIZE)]
    logits, distances = model.head(features)
    for level, size in enumerate(grid_sizes(*SIZE)):
        assert logits[level].shape == (2, 3) + size and distances[level].shape == (2, 4) + size
    assert logits[0].sigmoid().mean().item() == pytest.approx(0.01, rel=0.05)  # PRIOR_PROB, through both factors
    images = ImageList(torch.zeros(2, 3, *SIZE), [(60, 90), SIZE])
    for counts in ((3, 0), (0, 0)):
        model.zero_grad()
        _, losses = model(images, features, boxlists_of(counts))
        assert sorted(losses) == ["loss_cls", "loss_reg"]
        sum(losses.values()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    detections, losses = model.eval()(images, features)
    assert losses == {} and [d.size for d in detections] == [(90, 60), SIZE[::-1]]
