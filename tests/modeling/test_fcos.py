"""FCOS by itself: the assignment rule, the losses and the post-processing against slow, obvious versions."""
import math

import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.layers import DFConv2d
from fcos_core.modeling.rpn import levels
from fcos_core.modeling.rpn.fcos.inference import FCOSPostProcessor
from fcos_core.modeling.rpn.fcos.targets import INF, centerness_targets, fcos_targets, size_ranges
from fcos_core.modeling.rpn.levels import flatten_levels, level_locations, pad_targets, per_location
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.modeling.rpn.selection import keep_best, select_candidates
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import ImageList
from tests.golden import recipe
from tests.reference.fcos import assign, post_process
from tests.reference.fcos import losses as reference_losses

STRIDES = [8, 16, 32, 64, 128]
PIECES = recipe.Golden("fcos_pieces.npz")


def grid(height, width, device="cpu"):
    """Locations per level of a padded image."""
    return [level_locations(-(-height // s), -(-width // s), s, torch.device(device)) for s in STRIDES]


def boxlist(rows, size=(224, 160)):
    rows = np.array(rows, np.float32).reshape(-1, 5)
    boxes = BoxList(torch.from_numpy(rows[:, :4].copy()), size, mode="xyxy")
    boxes.add_field("labels", torch.from_numpy(rows[:, 4].astype(np.int64)))
    return boxes


def random_boxlist(rng, count, width, height, classes=80):
    corner = rng.uniform(0, [width - 4, height - 4], (count, 2))
    size = np.exp(rng.uniform(math.log(3), math.log(max(width, height)), (count, 2)))
    far = np.minimum(corner + size, [width - 1, height - 1])
    return boxlist(np.concatenate([corner, far, rng.randint(1, classes + 1, (count, 1))], axis=1), (width, height))


def assigned(locations, boxlists, radius, device="cpu"):
    counts = [len(level) for level in locations]
    boxes, labels = pad_targets(boxlists, torch.float32, torch.device(device))
    return fcos_targets(
        torch.cat(locations),
        per_location(STRIDES, counts, device),
        per_location(size_ranges(5), counts, device),
        boxes,
        labels,
        radius,
    )


@pytest.mark.parametrize("stride", STRIDES)
def test_locations_golden(stride):
    recorded = PIECES["locations/stride{}_3x4".format(stride)]
    assert level_locations(3, 4, stride, torch.device("cpu")).tolist() == recorded.tolist()


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("norm", [0, 1])
def test_assignment_golden(radius, norm):
    prefix = "assign/fcos_r{}_norm{}/".format(radius, norm)
    cfg, _ = load_config("", ["MODEL.FCOS.CENTER_SAMPLING_RADIUS", radius, "MODEL.FCOS.NORM_REG_TARGETS", bool(norm)])
    loss = build_rpn(cfg, 32).loss_evaluator
    rows = np.concatenate([PIECES["assign/boxes"], PIECES["assign/labels"][:, None]], axis=1)
    labels, distances = loss.batch_targets(grid(800, 1216), [boxlist(rows, (1216, 800))])
    positive = labels[0].nonzero().squeeze(1)
    assert positive.tolist() == PIECES[prefix + "pos_index"].tolist()
    assert labels[0, positive].tolist() == PIECES[prefix + "pos_label"].tolist()
    chosen = distances[0, positive]
    recipe.assert_close(chosen[::8], PIECES[prefix + "pos_reg_every8"], 1e-6, "distances")
    recipe.assert_close(centerness_targets(chosen)[::8], PIECES[prefix + "pos_centerness_every8"], 1e-6, "centerness")
    recipe.assert_close(centerness_targets(chosen).double().sum(), PIECES[prefix + "ctr_sum"], 1e-5, "sum")


@pytest.mark.parametrize("radius", [0.0, 1.5])
@pytest.mark.parametrize("counts", [(3, 0, 7), (0, 0), (1,), (40, 5)])
def test_assignment_is_the_written_rule(radius, counts, device):
    rng = np.random.RandomState(len(counts) + sum(counts))
    lists = [random_boxlist(rng, n, 320, 256) for n in counts]
    locations = [level.to(device) for level in grid(256, 320)]
    labels, distances = assigned(locations, [b.to(device) for b in lists], radius, device)
    for i, boxes in enumerate(lists):
        wanted, sides = assign([level.cpu().numpy() for level in locations], STRIDES, boxes, radius)
        assert labels[i].tolist() == wanted.tolist()
        positive = wanted > 0
        np.testing.assert_allclose(distances[i].cpu().numpy()[positive], sides[positive], rtol=1e-5, atol=1e-4)


def test_bounds_belong_to_both_levels_and_ties_to_the_first_box():
    # 64 pixels to the left: the upper bound of P3 and the lower one of P4
    box = [4 - 64 + 8 * 8, 0, 4 + 8 * 8 + 40, 100, 7]
    labels, _ = assigned(grid(160, 224), [boxlist([box])], 0.0)
    p3 = labels[0, : 20 * 28].view(20, 28)
    assert p3[6, 8] == 7
    first, second = [30, 30, 60, 60, 3], [30, 30, 60, 60, 9]
    labels, _ = assigned(grid(160, 224), [boxlist([first, second])], 0.0)
    assert set(labels.unique().tolist()) == {0, 3}


def test_a_location_on_the_border_of_a_box_does_not_learn_it():
    labels, _ = assigned(grid(160, 224), [boxlist([[4, 4, 12, 12, 1]])], 0.0)
    assert labels.sum() == 0


def test_first_box_centred_at_zero_is_a_box_like_others():
    """The predecessors took an image whose first box has its centre at x = 0 for an empty one with centre sampling."""
    labels, _ = assigned(grid(160, 224), [boxlist([[-20, 40, 20, 80, 5], [100, 40, 140, 80, 6]])], 1.5)
    assert {5, 6} <= set(labels.unique().tolist())


@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_many_boxes_in_pieces_give_the_same(radius, monkeypatch):
    rng = np.random.RandomState(3)
    lists = [random_boxlist(rng, n, 320, 256) for n in (150, 60)]
    whole = assigned(grid(256, 320), lists, radius)
    monkeypatch.setattr(levels, "MAX_ELEMENTS", 20000)
    pieces = assigned(grid(256, 320), lists, radius)
    assert torch.equal(whole[0], pieces[0]) and torch.equal(whole[1], pieces[1])


def test_size_ranges():
    assert size_ranges(5) == [[-1, 64], [64, 128], [128, 256], [256, 512], [512, INF]]


def random_predictions(rng, device="cpu", images=2, classes=6, height=192, width=224, dtype=torch.float64):
    maps = []
    for channels, scale, shift in ((classes, 1.5, -2.0), (4, 0.5, 3.0), (1, 1.0, 0.0)):
        shapes = [(images, channels, -(-height // s), -(-width // s)) for s in STRIDES]
        values = [rng.standard_normal(shape) * scale + shift for shape in shapes]
        maps.append([torch.from_numpy(v).to(device=device, dtype=dtype) for v in values])
    maps[1] = [m.exp() for m in maps[1]]
    return maps


@pytest.mark.parametrize("iou_type", ["iou", "linear_iou", "giou"])
@pytest.mark.parametrize("norm,radius", [(False, 0.0), (True, 1.5)])
@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_losses_are_the_written_formulas(iou_type, norm, radius, counts, device):
    rng = np.random.RandomState(5)
    options = ["MODEL.FCOS.IOU_LOSS_TYPE", iou_type, "MODEL.FCOS.NORM_REG_TARGETS", norm]
    cfg, _ = load_config("", options + ["MODEL.FCOS.CENTER_SAMPLING_RADIUS", radius, "MODEL.FCOS.NUM_CLASSES", 7])
    evaluator = build_rpn(cfg, 32).loss_evaluator
    maps = [[m.requires_grad_() for m in maps] for maps in random_predictions(rng, device)]
    lists = [random_boxlist(rng, n, 224, 192, classes=6) for n in counts]
    locations = [level.to(device) for level in grid(192, 224)]
    mine = evaluator(locations, *maps, targets=[b.to(device) for b in lists])
    points = [level.cpu().numpy() for level in locations]
    values = [[m.detach().cpu() for m in level] for level in maps]
    wanted = reference_losses(points, STRIDES, values, lists, radius, norm, iou_type)
    for value, number in zip(mine, wanted):
        assert value.item() == pytest.approx(number, rel=1e-9, abs=1e-12)
    sum(mine).backward()
    for level in maps[0] + maps[1] + maps[2]:
        assert level.grad is not None and torch.isfinite(level.grad).all()


def test_no_positive_gives_zero_attached_to_the_graph_even_with_infinite_predictions():
    cfg, _ = load_config("", ["MODEL.FCOS.NUM_CLASSES", 7])
    evaluator = build_rpn(cfg, 32).loss_evaluator
    cls, reg, ctr = random_predictions(np.random.RandomState(0), dtype=torch.float32)
    reg = [torch.full_like(m, math.inf).requires_grad_() for m in reg]
    losses = evaluator(grid(192, 224), cls, reg, ctr, [boxlist([]), boxlist([])])
    assert losses[1] == 0 and losses[2] == 0 and torch.isfinite(losses[0])
    losses[1].backward()
    assert all((m.grad == 0).all() for m in reg)


def test_half_precision_predictions_give_float32_losses():
    cfg, _ = load_config("", ["MODEL.FCOS.NUM_CLASSES", 7])
    evaluator = build_rpn(cfg, 32).loss_evaluator
    rng = np.random.RandomState(1)
    full = random_predictions(rng, dtype=torch.float32)
    lists = [random_boxlist(rng, 3, 224, 192, classes=6) for _ in range(2)]
    half = [[m.bfloat16() for m in maps] for maps in full]
    rounded = [[m.float() for m in maps] for maps in half]
    losses = [evaluator(grid(192, 224), *maps, targets=lists) for maps in (half, rounded)]
    for a, b in zip(*losses):
        assert a.dtype == torch.float32 and a.item() == pytest.approx(b.item(), rel=1e-6)


POST_SETTINGS = {
    "a": dict(pre_nms_thresh=0.05, pre_nms_top_n=1000, fpn_post_nms_top_n=100),
    "b": dict(pre_nms_thresh=0.05, pre_nms_top_n=50, fpn_post_nms_top_n=20),
    "c": dict(pre_nms_thresh=0.3, pre_nms_top_n=1000, fpn_post_nms_top_n=0),
    "d": dict(pre_nms_thresh=0.9999, pre_nms_top_n=1000, fpn_post_nms_top_n=100),
}


def golden_post_inputs():
    shapes, strides = [(10, 14), (5, 7), (3, 4)], [8, 16, 32]
    draw = np.random.RandomState
    cls = [draw(131 + i).standard_normal((2, 8, h, w)) * 1.5 - 2 for i, (h, w) in enumerate(shapes)]
    reg = [draw(141 + i).uniform(2, 40, (2, 4, h, w)) for i, (h, w) in enumerate(shapes)]
    ctr = [draw(151 + i).standard_normal((2, 1, h, w)) for i, (h, w) in enumerate(shapes)]
    maps = [[torch.from_numpy(m.astype(np.float32)) for m in maps] for maps in (cls, reg, ctr)]
    return [level_locations(h, w, s, torch.device("cpu")) for (h, w), s in zip(shapes, strides)], maps


def as_numpy(found):
    return found.bbox.cpu().numpy(), found.get_field("scores").cpu().numpy(), found.get_field("labels").cpu().numpy()


@pytest.mark.parametrize("case", sorted(POST_SETTINGS))
def test_post_processing_golden(case):
    locations, maps = golden_post_inputs()
    post = FCOSPostProcessor(nms_thresh=0.6, min_size=0, num_classes=9, **POST_SETTINGS[case])
    for i, found in enumerate(post(locations, *maps, image_sizes=[(75, 110), (80, 112)])):
        recorded = [PIECES["post/{}/img{}/{}".format(case, i, k)] for k in ("boxes", "scores", "labels")]
        assert len(found) == len(recorded[1])
        recipe.assert_same_detections(as_numpy(found), recorded, 1e-3, 1e-5)


@pytest.mark.parametrize("top_n,limit,nms", [(1000, 100, 0.6), (7, 5, 0.3), (3, 0, 0.6), (40, 10, -1.0)])
def test_post_processing_is_the_written_procedure(top_n, limit, nms, device):
    maps = random_predictions(np.random.RandomState(top_n), device, dtype=torch.float32)
    locations = [level.to(device) for level in grid(192, 224)]
    post = FCOSPostProcessor(0.2, top_n, nms, limit, 0, 7)
    sizes = [(170, 220), (192, 200)]
    found = post(locations, *maps, image_sizes=sizes)
    points = [level.cpu() for level in locations]
    wanted = post_process(points, [[m.cpu() for m in level] for level in maps], sizes, 0.2, top_n, nms, limit)
    for mine, reference in zip(found, wanted):
        assert len(mine) == len(reference[1]) > 0
        recipe.assert_same_detections(as_numpy(mine), reference, 1e-3, 1e-5)
        scores = mine.get_field("scores")
        assert (scores[:-1] >= scores[1:]).all()


def test_passes_of_a_multi_scale_test_are_not_suppressed_nor_cut():
    locations, maps = golden_post_inputs()
    plain = FCOSPostProcessor(0.05, 1000, 0.6, 100, 0, 9)
    raw = FCOSPostProcessor(0.05, 1000, 0.6, 100, 0, 9, bbox_aug_enabled=True)
    sizes = [(75, 110), (80, 112)]
    for few, many in zip(plain(locations, *maps, image_sizes=sizes), raw(locations, *maps, image_sizes=sizes)):
        assert len(few) == 100 < len(many)


def test_min_size_uses_inclusive_sides():
    locations = [torch.tensor([[10.0, 10.0], [30.0, 30.0]])]
    cls, ctr = torch.full((1, 1, 1, 2), 4.0), torch.full((1, 1, 1, 2), 4.0)
    reg = torch.tensor([[2.0, 2.0, 2.0, 2.0], [3.0, 3.0, 3.0, 3.0]]).t().view(1, 4, 1, 2)
    post = FCOSPostProcessor(0.05, 10, 0.6, 10, 6, 2)
    assert len(post(locations, [cls], [reg], [ctr], [(64, 64)])[0]) == 1  # sides 5 and 7
    post.min_size = 5
    assert len(post(locations, [cls], [reg], [ctr], [(64, 64)])[0]) == 2


def test_scores_equal_to_the_limit_all_stay():
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.5, 0.1]])
    assert keep_best(scores, 2)[0].tolist() == pytest.approx([0.9, 0.5, 0.5, 0.5, -1.0])


def test_threshold_is_strict_and_before_the_quality():
    probabilities = torch.tensor([[[0.5], [0.50001], [0.9]]], dtype=torch.float64)
    quality = torch.tensor([[1.0, 0.001, 0.0]], dtype=torch.float64)
    scores, location, _ = select_candidates(probabilities, quality, [3], 0.5, 10)
    kept = sorted(location[0][scores[0] >= 0].tolist())
    assert kept == [1, 2]


def test_flattening_order():
    maps = [torch.arange(2 * 3 * 2 * 2).view(2, 3, 2, 2), torch.arange(100, 106).view(2, 3, 1, 1)]
    flat = flatten_levels(maps)
    assert flat.shape == (2, 5, 3)
    assert flat[1, 2].tolist() == maps[0][1, :, 1, 0].tolist() and flat[0, 4].tolist() == [100, 101, 102]


def test_unknown_loss_and_missing_head_are_named():
    cfg, _ = load_config("", ["MODEL.FCOS.IOU_LOSS_TYPE", "ciou"])
    with pytest.raises(ValueError, match="linear_iou"):
        build_rpn(cfg, 32)
    cfg, _ = load_config("", ["MODEL.FCOS_ON", False])
    with pytest.raises(ValueError, match="FCOS_ON"):
        build_rpn(cfg, 32)


def test_deformable_towers():
    """The last convolution of each tower, and its initial values: its offsets get those of a plain convolution."""
    cfg, _ = load_config("", ["MODEL.FCOS.USE_DCN_IN_TOWER", True, "MODEL.FCOS.NUM_CONVS", 3])
    head = build_rpn(cfg, 64).head
    for tower in (head.cls_tower, head.bbox_tower):
        assert [type(layer) for layer in tower[::3]] == [torch.nn.Conv2d, torch.nn.Conv2d, DFConv2d]
        last = tower[6]
        assert last.with_modulated_dcn and last.conv.bias is not None and (last.conv.bias == 0).all()
        assert 0.009 < last.offset.weight.std() < 0.011 and (last.offset.bias == 0).all()
        assert 0.95 * 576**-0.5 < last.conv.weight.abs().max() <= 576**-0.5
    assert head.cls_tower[6](torch.randn(2, 64, 5, 7)).shape == (2, 64, 5, 7)


def test_head_shapes_and_units():
    options = ["MODEL.FCOS.NORM_REG_TARGETS", True, "MODEL.FCOS.NUM_CLASSES", 4, "MODEL.FCOS.NUM_CONVS", 1]
    cfg, _ = load_config("", options)
    module = build_rpn(cfg, 32)
    features = [torch.randn(2, 32, -(-64 // s), -(-96 // s)) for s in STRIDES]
    logits, in_strides, centerness = module.head(features)
    module.eval()
    pixels = module.head(features)[1]
    for level, stride in enumerate(STRIDES):
        size = tuple(features[level].shape[2:])
        assert logits[level].shape == (2, 3) + size and centerness[level].shape == (2, 1) + size
        assert torch.equal(pixels[level], in_strides[level] * stride)
    images = ImageList(torch.zeros(2, 3, 64, 96), [(60, 90), (64, 96)])
    detections, losses = module(images, features)
    assert losses == {} and [d.size for d in detections] == [(90, 60), (96, 64)]
