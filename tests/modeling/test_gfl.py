"""GFL by itself: quality focal loss, distributions, losses and post-processing against slow, obvious versions."""
import math

import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.layers import DFConv2d
from fcos_core.modeling.rpn.gfl.distances import distribution_focal_loss, expected_distances
from fcos_core.modeling.rpn.gfl.inference import GFLPostProcessor
from fcos_core.modeling.rpn.losses import continuous_iou, positives_first, quality_focal_loss_sum, take
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.structures.image_list import ImageList
from tests.golden import recipe
from tests.modeling.test_atss import as_numpy, boxlist, grid_sizes, random_boxlist
from tests.reference import atss as reference_atss
from tests.reference import gfl as reference

STRIDES = [8, 16, 32, 64, 128]
SMALL = ["MODEL.GFL.NUM_CLASSES", 4, "MODEL.GFL.REG_MAX", 7, "MODEL.GFL.NUM_CONVS", 1]
SIZE = (64, 96)


def module(*options, channels=32):
    return build_rpn(load_config("", ["MODEL.GFL_ON", True] + SMALL + list(options))[0], channels)


def pyramid(height=SIZE[0], width=SIZE[1]):
    return reference_atss.pyramid(height, width, STRIDES, [8 * s for s in STRIDES])


def anchors_of(model, device="cpu"):
    return [level.to(device) for level in model.anchor_generator.level_anchors(grid_sizes(*SIZE))]


def random_maps(seed, device="cpu", dtype=torch.float64, classes=3, bins=8, images=2):
    rng, maps = np.random.RandomState(seed), []
    for channels, shift in ((classes, -1.0), (4 * bins, 0.0)):
        values = [1.5 * rng.standard_normal((images, channels) + size) + shift for size in grid_sizes(*SIZE)]
        maps.append([torch.from_numpy(v).to(device=device, dtype=dtype) for v in values])
    return maps


def boxlists_of(counts, seed=5):
    rng = np.random.RandomState(seed)
    return [random_boxlist(rng, n, SIZE[1], SIZE[0], classes=3) for n in counts]


# ------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("beta", [2.0, 1.0, 1.5])
def test_quality_focal_loss_is_the_written_formula(beta, device):
    logits = 3 * torch.randn(2, 5, 3, dtype=torch.float64)
    index = torch.tensor([[4, 0, 2], [1, 2, 3]])
    labels = torch.tensor([[1, 0, 3], [0, 2, 2]])
    quality = torch.rand(2, 3, dtype=torch.float64)
    wanted = torch.zeros(2, 5, 3, dtype=torch.float64)
    for i in range(2):
        for k in range(3):
            if labels[i, k] > 0:
                wanted[i, index[i, k], labels[i, k] - 1] = quality[i, k]
    pairs = zip(logits.flatten().tolist(), wanted.flatten().tolist())
    expected = sum(reference.quality_focal(z, y, beta) for z, y in pairs)
    mine = quality_focal_loss_sum(*(t.to(device) for t in (logits, index, labels, quality)), beta)
    assert mine.item() == pytest.approx(expected, rel=1e-12)


def test_quality_focal_loss_is_least_at_the_quality():
    """... which the focal loss of a soft label, without the modulation, would be as well, but not 0 there."""
    logits = torch.linspace(-4, 4, 401, dtype=torch.float64)
    index, labels, quality = torch.tensor([[0]]), torch.tensor([[1]]), torch.tensor([[0.7]], dtype=torch.float64)
    values = torch.stack([quality_focal_loss_sum(z.view(1, 1, 1), index, labels, quality, 2.0) for z in logits])
    assert logits[values.argmin()].sigmoid().item() == pytest.approx(0.7, abs=0.005) and values.min() < 1e-5


def test_gradients(device):
    index, labels = torch.tensor([[2, 0]], device=device), torch.tensor([[3, 0]], device=device)
    quality = torch.tensor([[0.6, 0.9]], dtype=torch.float64, device=device)
    logits = torch.randn(1, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: quality_focal_loss_sum(z, index, labels, quality, 2.0), (logits,))
    codes = torch.randn(3, 20, dtype=torch.float64, device=device, requires_grad=True)
    distances = torch.tensor([[0.0, 0.3, 2.0, 4.0], [9.0, 1.5, 3.99, -1.0], [1.0, 2.2, 0.1, 3.0]], device=device)
    assert torch.autograd.gradcheck(lambda z: distribution_focal_loss(z, distances.double()), (codes,))
    assert torch.autograd.gradcheck(expected_distances, (codes,))


def test_distributions_are_the_written_formulas(device):
    logits = 2 * torch.randn(2, 3, 4 * 6, dtype=torch.float64)
    distances = 6 * torch.rand(2, 3, 4, dtype=torch.float64) - 0.5  # on both sides of the range [0, 5]
    distances[0, 0] = torch.tensor([0.0, 5.0, 2.0, 1e6])
    means = expected_distances(logits.to(device)).cpu()
    losses = distribution_focal_loss(logits.to(device), distances.to(device)).cpu()
    for place in [(i, j) for i in range(2) for j in range(3)]:
        row = logits[place].tolist()
        assert means[place].tolist() == pytest.approx(reference.expected(row), rel=1e-12)
        wanted = [reference.distribution_focal(row[6 * k : 6 * k + 6], distances[place][k].item()) for k in range(4)]
        assert losses[place].item() == pytest.approx(sum(wanted) / 4, rel=1e-12)


def test_a_distribution_that_is_right_costs_least():
    """The distribution focal loss is least for S_i = i + 1 - y, S_(i + 1) = y - i, whose mean is y."""
    right = torch.tensor([1e-9, 0.7, 0.3, 1e-9], dtype=torch.float64).log().repeat(4)
    y = torch.full((4,), 1.3, dtype=torch.float64)
    assert expected_distances(right).tolist() == pytest.approx([1.3] * 4)
    least = distribution_focal_loss(right, y)
    assert least.item() == pytest.approx(-(0.7 * math.log(0.7) + 0.3 * math.log(0.3)))
    for _ in range(20):
        assert distribution_focal_loss(right + 0.3 * torch.randn(16, dtype=torch.float64), y) > least


def test_iou_without_the_pixel():
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0, 0, 2, 2], [5, 5, 9, 9], [3, 3, 1, 1]])
    wanted = [1.0, 4 / 16, 0.0, 0.0]
    assert continuous_iou(boxes, boxes[:1].expand(4, 4)).tolist() == pytest.approx(wanted, abs=1e-6)


def test_positives_come_first_whatever_the_bound():
    positive = torch.tensor([[False, True, False, True, True], [False] * 5, [True] + [False] * 4])
    for limit in (3, 4, 5, 99):
        index = positives_first(positive, limit)
        assert index.shape == (3, min(limit, 5)) and index[0, :3].tolist() == [1, 3, 4] and index[2, 0] == 0
        assert take(positive, index).sum(1).tolist() == [3, 0, 1]
        assert all(len(set(row)) == len(row) for row in index.tolist())
    assert positives_first(positive, 0).shape == (3, 1)


# --------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_losses_are_the_written_formulas(counts, device):
    model = module("MODEL.GFL.REG_LOSS_WEIGHT", 1.5, "MODEL.GFL.DFL_LOSS_WEIGHT", 0.5, "MODEL.GFL.QUALITY_BETA", 1.5)
    maps = [[m.requires_grad_() for m in level] for level in random_maps(1, device)]
    boxlists = boxlists_of(counts)
    mine = model.loss_evaluator(*maps, [b.to(device) for b in boxlists], anchors_of(model, device))
    values = [[m.detach().cpu() for m in level] for level in maps]
    wanted = reference.losses(pyramid(), values, boxlists, 9, 1.5, 1.5, 0.5)
    for value, number in zip(mine, wanted):
        assert value.item() == pytest.approx(number, rel=1e-6, abs=1e-12)  # 1e-7 in the denominators of IoUs
    sum(mine).backward()
    for level in maps[0] + maps[1]:
        assert level.grad is not None and torch.isfinite(level.grad).all()


@pytest.mark.parametrize("rows", [[], [[1, 1, 1.5, 1.5, 2]]])
def test_no_positive_gives_zero_attached_to_the_graph_even_with_infinite_predictions(rows):
    model = module()
    cls, reg = random_maps(0, dtype=torch.float32)
    reg = [torch.full_like(m, math.inf).requires_grad_() for m in reg]
    targets = [boxlist(rows, SIZE[::-1]), boxlist(rows, SIZE[::-1])]
    losses = model.loss_evaluator(cls, reg, targets, anchors_of(model))
    assert losses[1] == 0 and losses[2] == 0 and torch.isfinite(losses[0]) and losses[0] > 0
    (losses[1] + losses[2]).backward()
    assert all((m.grad == 0).all() for m in reg)


def test_the_bound_on_positives_leaves_none_out(monkeypatch):
    """Losses over all locations are those over the locations that can be positive."""
    model, maps, boxlists = module(), random_maps(3), boxlists_of((6, 1))
    anchors = anchors_of(model)
    bounded = model.loss_evaluator(*maps, boxlists, anchors)
    batch_targets = model.loss_evaluator.batch_targets
    monkeypatch.setattr(model.loss_evaluator, "batch_targets", lambda *args: batch_targets(*args)[:2] + (10**6,))
    for a, b in zip(bounded, model.loss_evaluator(*maps, boxlists, anchors)):
        assert a.item() == pytest.approx(b.item(), rel=1e-12)


def test_mirrored_predictions_of_mirrored_boxes_have_the_same_losses():
    """Image of 128 x 128 pixels: every level is mirrored onto itself."""
    model = module()
    sizes = grid_sizes(128, 128)
    rng = np.random.RandomState(2)
    cls = [torch.from_numpy(rng.standard_normal((1, 3) + size)) for size in sizes]
    reg = [torch.from_numpy(rng.standard_normal((1, 4, 8) + size)) for size in sizes]
    rows = np.array([[10.25, 20.5, 60.75, 90.0, 1], [50.0, 30.0, 120.5, 100.25, 3]])
    mirrored = rows[:, [2, 1, 0, 3, 4]] * [-1, 1, -1, 1, 1] + [128, 0, 128, 0, 0]
    losses = []
    for flip, boxes in ((False, rows), (True, mirrored)):
        maps = [cls, reg]
        if flip:
            maps = [[m.flip(-1) for m in cls], [m[:, [2, 1, 0, 3]].flip(-1) for m in reg]]
        maps[1] = [m.reshape(m.shape[0], 32, *m.shape[-2:]) for m in maps[1]]
        anchors = model.anchor_generator.level_anchors(sizes)
        losses.append([v.item() for v in model.loss_evaluator(*maps, [boxlist(boxes, (128, 128))], anchors)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9) and min(losses[0]) > 0


def test_half_precision_predictions_give_float32_losses():
    model, boxlists = module(), boxlists_of((3, 3))
    half = [[m.bfloat16() for m in maps] for maps in random_maps(1, dtype=torch.float32)]
    rounded = [[m.float() for m in maps] for maps in half]
    anchors = anchors_of(model)
    for a, b in zip(*[model.loss_evaluator(*maps, boxlists, anchors) for maps in (half, rounded)]):
        assert a.dtype == torch.float32 and a.item() == pytest.approx(b.item(), rel=1e-6)


# ------------------------------------------------------------------------------------------------ post-processing


@pytest.mark.parametrize("top_n,limit,nms", [(1000, 100, 0.6), (7, 5, 0.3), (40, 10, -1.0)])
def test_post_processing_is_the_written_procedure(top_n, limit, nms, device):
    maps = random_maps(top_n, device)
    post = GFLPostProcessor(STRIDES, pre_nms_thresh=0.3, pre_nms_top_n=top_n, nms_thresh=nms, fpn_post_nms_top_n=limit,
                            min_size=0, num_classes=4)  # fmt: skip
    sizes = [(60, 90), (64, 80)]
    # "POINT": distances in units of an eighth of the anchor's side, which is the stride
    codes = reference.expected_maps([m.cpu() for m in maps[1]])
    values = [[m.cpu() for m in maps[0]], codes]
    wanted = reference_atss.post_process(pyramid(), values, sizes, "POINT", 0.3, top_n, nms, limit)
    locations = [(level[..., 2:] + level[..., :2]).reshape(-1, 2) / 2 for level in anchors_of(module(), device)]
    for mine, recorded in zip(post(locations, *maps, image_sizes=sizes), wanted):
        assert len(mine) == len(recorded[1]) > 0
        recipe.assert_same_detections(as_numpy(mine), recorded, 1e-3, 1e-5)
        scores = mine.get_field("scores")
        assert (scores[:-1] >= scores[1:]).all()


# ----------------------------------------------------------------------------------------------------------- head


def test_head_and_module():
    model = module()
    features = [torch.randn(2, 32, *size) for size in grid_sizes(*SIZE)]
    logits, regression = model.head(features)
    for level, size in enumerate(grid_sizes(*SIZE)):
        assert logits[level].shape == (2, 3) + size and regression[level].shape == (2, 32) + size
    images = ImageList(torch.zeros(2, 3, *SIZE), [(60, 90), SIZE])
    _, losses = model(images, features, boxlists_of((3, 0)))
    assert sorted(losses) == ["loss_cls", "loss_dfl", "loss_reg"]
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    detections, losses = model.eval()(images, features)
    assert losses == {} and [d.size for d in detections] == [(90, 60), SIZE[::-1]]
    deformable = module("MODEL.GFL.USE_DCN_IN_TOWER", True).head
    assert isinstance(deformable.cls_tower[0], DFConv2d) and isinstance(deformable.bbox_tower[0], DFConv2d)
    with pytest.raises(ValueError, match="REG_MAX of at least 1, got 0"):
        module("MODEL.GFL.REG_MAX", 0)
