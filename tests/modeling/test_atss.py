"""ATSS by itself: anchors, coders, assignment, losses and post-processing against slow, obvious versions."""
import gzip
import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_core.config import load_config
from fcos_core.layers import DFConv2d
from fcos_core.layers.iou_loss import giou_loss
from fcos_core.modeling.matcher import Matcher
from fcos_core.modeling.rpn import levels
from fcos_core.modeling.rpn.anchor_generator import AnchorGenerator, generate_anchors
from fcos_core.modeling.rpn.atss.atss import BoxCoder
from fcos_core.modeling.rpn.atss.inference import ATSSPostProcessor
from fcos_core.modeling.rpn.atss.nearest import nearest_locations
from fcos_core.modeling.rpn.levels import flatten_levels, pad_targets
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import ImageList
from tests.golden import recipe
from tests.live_bytes import LiveBytes
from tests.reference import atss as reference

STRIDES = [8, 16, 32, 64, 128]
PIECES = recipe.Golden("atss_pieces.npz")
TYPES = sorted(reference.ASSIGN)
THREE = ["MODEL.ATSS.ASPECT_RATIOS", (0.5, 1.0, 2.0)]
NINE = THREE + ["MODEL.ATSS.SCALES_PER_OCTAVE", 3]
POINT = ["MODEL.ATSS.REGRESSION_TYPE", "POINT"]
VARIANTS = [("BOX", [], (1.0,)), ("POINT", POINT, (1.0,)), ("BOX", THREE, (0.5, 1.0, 2.0))]


def config(*options):
    return load_config("", ["MODEL.ATSS_ON", True] + list(options))[0]


def module(*options, channels=32):
    return build_rpn(config(*options), channels)


def grid_sizes(height, width):
    return [(-(-height // s), -(-width // s)) for s in STRIDES]


def boxlist(rows, size=(128, 96)):
    rows = np.array(rows, np.float32).reshape(-1, 5)
    boxes = BoxList(torch.from_numpy(rows[:, :4].copy()), size, mode="xyxy")
    boxes.add_field("labels", torch.from_numpy(rows[:, 4].astype(np.int64)))
    return boxes


def random_boxlist(rng, count, width=128, height=96, classes=6, step=0.5):
    """Corners are multiples of `step`, so that distances can be equal, and are computed without rounding."""
    corner = rng.uniform(0, [width - 4, height - 4], (count, 2))
    side = np.exp(rng.uniform(math.log(3), math.log(max(width, height)), (count, 2)))
    far = np.minimum(corner + side, [width - 1, height - 1])
    rows = np.round(np.concatenate([corner, far], axis=1) / step) * step
    return boxlist(np.concatenate([rows, rng.randint(1, classes + 1, (count, 1))], axis=1), (width, height))


def targets_of(loss, anchors, boxlists, device="cpu"):
    """(labels [N, R], boxes [N, R, 4]); what has no meaning is 0."""
    labels, boxes = loss.batch_targets([b.to(device) for b in boxlists], [a.to(device) for a in anchors])
    return labels.cpu(), boxes.masked_fill((labels <= 0)[:, :, None], 0.0).cpu()


# ------------------------------------------------------------------------------------------------------- anchors


def cell_anchors(*options):
    return list(module(*options).anchor_generator.cell_anchors)


SIZES = (32, 64, 128, 256, 512)


def of_sizes(strides, shift=0.0):
    return AnchorGenerator(SIZES, (0.5, 1.0, 2.0), strides, shift=shift).cell_anchors


@pytest.mark.parametrize(
    "record,made",
    [
        ("atss_core/atss_1", lambda: cell_anchors()),
        ("atss_core/atss_9", lambda: cell_anchors(*NINE)),
        ("atss_core/rpn_fpn", lambda: of_sizes((4, 8, 16, 32, 64), 0.5)),
        ("fcos_core/rpn_fpn", lambda: of_sizes((4, 8, 16, 32, 64))),
        ("fcos_core/rpn_c4", lambda: of_sizes((16,))),
    ],
)
def test_anchors_golden(record, made):
    for level, cell in enumerate(made()):
        assert cell.dtype == torch.float32
        assert cell.tolist() == PIECES["anchors/{}/cell{}".format(record, level)].tolist()


def test_grid_of_anchors_and_their_visibility_golden():
    generator = AnchorGenerator(SIZES, (0.5, 1.0, 2.0), (4, 8, 16, 32, 64))
    features = [torch.zeros(2, 1, *size) for size in ((15, 23), (8, 12), (4, 6), (2, 3), (1, 1))]
    images = ImageList(torch.zeros(2, 3, 60, 90), [(60, 90), (60, 90)])
    for image in generator(images, features):
        for level in (2, 3, 4):
            record = "anchors/fcos_core/rpn_fpn_grid_60x90/"
            assert image[level].size == (90, 60)
            assert image[level].bbox.tolist() == PIECES[record + "level{}".format(level)].tolist()
            visible = image[level].get_field("visibility")
            assert visible.tolist() == PIECES[record + "vis{}".format(level)].tolist()
    generator.straddle_thresh = -1
    assert all(level.get_field("visibility").all() for level in generator(images, features)[0])
    assert generator.num_anchors_per_location() == [3] * 5


def test_shape_of_level_anchors_is_the_grid():
    generator = AnchorGenerator((32, 64), (0.5, 1.0), (8, 16))
    first, second = generator.level_anchors([(3, 4), (2, 2)])
    assert first.shape == (3, 4, 2, 4) and second.shape == (2, 2, 2, 4)
    assert torch.equal(first[2, 3], generate_anchors(8, (32,), (0.5, 1.0)) + torch.tensor([24.0, 16.0, 24.0, 16.0]))
    with pytest.raises(ValueError, match="as many sizes as strides"):
        AnchorGenerator((32, 64, 128), (1.0,), (8, 16))


@pytest.mark.parametrize("head,usual", [("ATSS", 0.5), ("RETINANET", 0.0)])
def test_shift_of_the_anchors(head, usual):
    def first(*options):
        cfg, _ = load_config("", ["MODEL.{}_ON".format(head), True] + list(options))
        return next(iter(build_rpn(cfg, 32).anchor_generator.cell_anchors))

    assert torch.equal(first("MODEL.ANCHOR_SHIFT", usual), first())
    assert torch.equal(first("MODEL.ANCHOR_SHIFT", 0.5) - 0.5, first("MODEL.ANCHOR_SHIFT", 0.0))


def test_anchors_come_from_the_weights():
    """A model trained with the other shift keeps it when its weights are loaded."""
    model = module()
    other = module("MODEL.ANCHOR_SHIFT", 0.0)
    model.load_state_dict(other.state_dict())
    a, b = (m.anchor_generator.level_anchors([(2, 2)] * 5)[0] for m in (model, other))
    assert torch.equal(a, b)


# -------------------------------------------------------------------------------------------------------- coders


@pytest.mark.parametrize("kind", ["BOX", "POINT"])
def test_box_coder_golden(kind):
    coder = BoxCoder(config("MODEL.ATSS.REGRESSION_TYPE", kind))
    boxes, anchors = (torch.from_numpy(PIECES["box_coder/" + key]) for key in ("reference", "proposals"))
    codes = torch.from_numpy(PIECES["box_coder/codes"][:, :4])
    encoded = coder.encode(boxes, anchors)
    record = "atss_box_coder/{}/".format(kind)
    recipe.assert_close(encoded, PIECES[record + "encode"], 1e-6, "encode")
    recipe.assert_close(coder.decode(codes, anchors), PIECES[record + "decode"], 1e-6, "decode")
    recipe.assert_close(coder.decode(encoded, anchors), PIECES[record + "roundtrip"], 1e-6, "roundtrip")
    recipe.assert_close(coder.decode(encoded, anchors), boxes, 1e-5, "boxes")


def test_giou_golden():
    loss = module().loss_evaluator
    anchors, boxes, codes, weight = (
        torch.from_numpy(PIECES["atss_giou/" + key]) for key in ("anchors", "gt", "codes", "weight")
    )
    codes.requires_grad_()
    value = loss.GIoULoss(codes, loss.box_coder.encode(boxes, anchors), anchors, weight)
    recipe.assert_close(value.item(), PIECES["atss_giou/value"], 1e-6, "loss")
    value.backward()
    recipe.assert_close(codes.grad, PIECES["atss_giou/grad"], 1e-5, "gradient")


def test_giou_of_special_boxes():
    box = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    assert giou_loss(box, box).item() == pytest.approx(0.0, abs=1e-6)
    assert giou_loss(torch.tensor([[50.0, 10.0, 70.0, 30.0]]), box).item() == pytest.approx(1 + 400 / 1200)
    inverted = torch.tensor([[20.0, 20.0, 12.0, 13.0]], requires_grad=True)
    loss = giou_loss(inverted, box)
    assert loss.item() == pytest.approx(1.0)  # a point inside the box: nothing in common, enclosed by the box
    loss.sum().backward()
    assert torch.isfinite(inverted.grad).all()
    assert giou_loss(box.half(), box.half()).dtype == torch.float32


# --------------------------------------------------------------------------------------------- nearest locations


def brute_force(point, origins, strides, sizes, k):
    found, start = [], 0
    for (x0, y0), stride, (height, width) in zip(origins, strides, sizes):
        distances = [
            ((x0 + stride * c - point[0]) ** 2 + (y0 + stride * r - point[1]) ** 2, -(r * width + c))
            for r in range(height)
            for c in range(width)
        ]
        found.append([start - place for _, place in sorted(distances)[:k]])
        start += height * width
    return found


coordinate = st.one_of(
    st.integers(-400, 800).map(lambda v: v / 4),  # often at the same distance from two locations
    st.floats(-1e4, 1e4, width=32),
)


@settings(max_examples=150, deadline=None)
@given(
    point=st.tuples(coordinate, coordinate),
    sizes=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14)), min_size=1, max_size=3),
    k=st.integers(1, 12),
)
def test_nearest_locations_are_the_nearest(point, sizes, k):
    strides, origins = [8.0, 16.0, 32.0][: len(sizes)], [(4.0, 4.0), (8.0, 8.0), (15.5, 15.5)][: len(sizes)]
    points = torch.tensor([[point]], dtype=torch.float64)
    mine = nearest_locations(points, points.new_tensor(origins), points.new_tensor(strides), sizes, k)[0, 0]
    for level, wanted in enumerate(brute_force(point, origins, strides, sizes, k)):
        assert mine[level, : len(wanted)].tolist() == wanted


# ---------------------------------------------------------------------------------------------------- assignment


@pytest.fixture
def rounded_exp_and_log(monkeypatch):
    """exp and log of float32 as exact as float32 allows.

    Those of MKL are off by a unit or two in the last place, differently on each processor, and centerness makes that
    ten times as much where a side is near the centre.
    """
    for name in ("exp", "log"):
        exact = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda x, exact=exact: exact(x.double()).to(x.dtype))


@pytest.mark.parametrize("positive_type", TYPES)
@pytest.mark.parametrize("variant,options", [("a1_BOX", []), ("a1_POINT", POINT), ("a9_BOX", NINE)])
def test_assignment_golden(positive_type, variant, options, rounded_exp_and_log):
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type, *options)
    anchors = model.anchor_generator.level_anchors(grid_sizes(800, 1216))
    rows = np.concatenate([PIECES["assign/boxes"], PIECES["assign/labels"][:, None]], axis=1)
    (labels,), (encoded,) = model.loss_evaluator.prepare_targets([boxlist(rows, (1216, 800))], anchors)
    record = "assign/atss_{}_{}/".format(positive_type, variant)
    positive = (labels > 0).nonzero().squeeze(1)
    assert positive.tolist() == PIECES[record + "pos_index"].tolist()
    assert labels[positive].tolist() == PIECES[record + "pos_label"].tolist()
    assert int((labels == -1).sum()) == int(PIECES[record + "num_ignored"])
    recipe.assert_close(encoded[positive][::4], PIECES[record + "pos_reg_every4"], 1e-6, "boxes")
    flat = torch.cat([level.reshape(-1, 4) for level in anchors])
    centerness = model.loss_evaluator.compute_centerness_targets(encoded[positive], flat[positive])
    recipe.assert_close(centerness[::4], PIECES[record + "pos_centerness_every4"], 1e-6, "centerness")


@pytest.mark.parametrize("positive_type", TYPES)
@pytest.mark.parametrize("options,ratios", [([], (1.0,)), (THREE, (0.5, 1.0, 2.0))])
@pytest.mark.parametrize("counts", [(3, 0, 7), (0, 0), (1,), (25, 5)])
def test_assignment_is_the_written_rule(positive_type, options, ratios, counts, device):
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type, *options)
    rng = np.random.RandomState(len(counts) + sum(counts))
    boxlists = [random_boxlist(rng, n) for n in counts]
    anchors = model.anchor_generator.level_anchors(grid_sizes(96, 128))
    labels, boxes = targets_of(model.loss_evaluator, anchors, boxlists, device)
    pyramid = reference.pyramid(96, 128, STRIDES, [8 * s for s in STRIDES], ratios)
    for i, target in enumerate(boxlists):
        rows, classes = target.bbox.double().tolist(), target.get_field("labels").tolist()
        assigned = reference.ASSIGN[positive_type](pyramid, rows, 9)
        assert labels[i].tolist() == [classes[b] if b >= 0 else min(b + 1, 0) for b in assigned]
        for r, b in enumerate(assigned):
            assert b < 0 or boxes[i, r].tolist() == rows[b]


def test_of_two_equal_boxes_the_first_is_learned():
    twice = [20, 20, 70, 60]
    for positive_type in TYPES:
        model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type)
        anchors = model.anchor_generator.level_anchors(grid_sizes(96, 128))
        labels, _ = targets_of(model.loss_evaluator, anchors, [boxlist([twice + [3], twice + [5]])])
        assert set(labels.unique().tolist()) - {-1, 0} == {3}


@pytest.mark.parametrize("positive_type", TYPES)
@pytest.mark.parametrize("options", [[], THREE])
def test_many_boxes_in_pieces_give_the_same(positive_type, options, device, monkeypatch):
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type, *options)
    rng = np.random.RandomState(3)
    boxlists = [random_boxlist(rng, n, step=1e-3) for n in (150, 60)]
    anchors = model.anchor_generator.level_anchors(grid_sizes(96, 128))
    whole = targets_of(model.loss_evaluator, anchors, boxlists, device)
    pieces = []
    chunks = levels.box_chunks
    for module_ in ("atss.targets", "fcos.targets"):
        monkeypatch.setattr("fcos_core.modeling.rpn.{}.box_chunks".format(module_), counted(chunks, pieces))
    monkeypatch.setattr("fcos_core.modeling.matcher.box_chunks", counted(chunks, pieces))
    for elements in (60000, 1):
        monkeypatch.setattr(levels, "MAX_ELEMENTS", elements)
        again = targets_of(model.loss_evaluator, anchors, boxlists, device)
        assert torch.equal(whole[0], again[0]) and torch.equal(whole[1], again[1])
    assert pieces[0] > 1 and pieces[1] == 150


def counted(chunks, pieces):
    def call(*args):
        result = chunks(*args)
        pieces.append(len(result))
        return result

    return call


needs_dispatch_mode = pytest.mark.skipif(
    not hasattr(torch.Tensor, "untyped_storage"), reason="this torch cannot watch its operators"
)


@needs_dispatch_mode
def test_memory_of_a_large_batch():
    """16 images of 800 x 1344 with 1000 boxes each: far less than one matrix of all anchors and boxes."""
    model = module()
    rng = np.random.RandomState(0)
    boxlists = [random_boxlist(rng, 1000, 1344, 800) for _ in range(16)]
    anchors = model.anchor_generator.level_anchors(grid_sizes(800, 1344))
    one_matrix = 16 * 1000 * sum(level.numel() // 4 for level in anchors) * 4
    assert one_matrix > 1.4e9
    mode = LiveBytes()
    with mode:
        labels, _ = model.loss_evaluator.batch_targets(boxlists, anchors)
    assert (labels > 0).any(dim=1).all()
    assert mode.peak < one_matrix / 5, mode.peak


@needs_dispatch_mode
@pytest.mark.parametrize("positive_type", TYPES)
def test_memory_does_not_grow_with_the_number_of_boxes(positive_type, monkeypatch):
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type)
    anchors = model.anchor_generator.level_anchors(grid_sizes(256, 320))
    monkeypatch.setattr(levels, "MAX_ELEMENTS", 1 << 16)
    peaks = []
    for count in (50, 800):
        mode = LiveBytes()
        boxlists = [random_boxlist(np.random.RandomState(i), count, 320, 256) for i in range(2)]
        with mode:
            model.loss_evaluator.batch_targets(boxlists, anchors)
        peaks.append(mode.peak)
    naive = 2 * 800 * sum(level.numel() // 4 for level in anchors) * 4
    assert peaks[1] < 1.3 * peaks[0] + 2 * 800 * 100 and peaks[1] < naive, (peaks, naive)


# -------------------------------------------------------------------------------------------------------- losses


def random_maps(rng, anchors=1, device="cpu", dtype=torch.float64, images=2, classes=6, height=96, width=128):
    maps = []
    for channels, scale, shift in ((classes, 1.5, -2.0), (4, 0.7, 0.0), (1, 1.0, 0.0)):
        values = [rng.standard_normal((images, anchors * channels) + size) for size in grid_sizes(height, width)]
        maps.append([torch.from_numpy(v * scale + shift).to(device=device, dtype=dtype) for v in values])
    return maps


def points(maps):
    """Distances instead of offsets."""
    return [maps[0], [(m + 4).clamp(min=0.1) for m in maps[1]], maps[2]]


@pytest.mark.parametrize("positive_type", TYPES)
@pytest.mark.parametrize("kind,options,ratios", VARIANTS)
@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_losses_are_the_written_formulas(positive_type, kind, options, ratios, counts, device):
    rng = np.random.RandomState(5)
    more = ["MODEL.ATSS.NUM_CLASSES", 7, "MODEL.ATSS.REG_LOSS_WEIGHT", 1.5]
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type, *(options + more))
    maps = random_maps(rng, len(ratios), device)
    maps = [[m.requires_grad_() for m in level] for level in (points(maps) if kind == "POINT" else maps)]
    boxlists = [random_boxlist(rng, n) for n in counts]
    anchors = [a.to(device) for a in model.anchor_generator.level_anchors(grid_sizes(96, 128))]
    mine = model.loss_evaluator(*maps, [b.to(device) for b in boxlists], anchors)
    pyramid = reference.pyramid(96, 128, STRIDES, [8 * s for s in STRIDES], ratios)
    values = [[m.detach().cpu() for m in level] for level in maps]
    wanted = reference.losses(pyramid, values, boxlists, positive_type, kind, 9, 1.5)
    for value, number in zip(mine, wanted):
        assert value.item() == pytest.approx(number, rel=1e-9, abs=1e-12)
    sum(mine).backward()
    for level in maps[0] + maps[1] + maps[2]:
        assert level.grad is not None and torch.isfinite(level.grad).all()


@pytest.mark.parametrize("positive_type", TYPES)
@pytest.mark.parametrize("rows", [[], [[1, 1, 1.5, 1.5, 5]]])
def test_no_positive_gives_zero_attached_to_the_graph_even_with_infinite_predictions(positive_type, rows):
    """Images without boxes, and boxes whose inside no anchor is centred in: both crashed the predecessor."""
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type, "MODEL.ATSS.NUM_CLASSES", 7)
    cls, reg, ctr = random_maps(np.random.RandomState(0), dtype=torch.float32)
    reg = [torch.full_like(m, math.inf).requires_grad_() for m in reg]
    anchors = model.anchor_generator.level_anchors(grid_sizes(96, 128))
    losses = model.loss_evaluator(cls, reg, ctr, [boxlist(rows), boxlist(rows)], anchors)
    assert losses[1] == 0 and losses[2] == 0 and torch.isfinite(losses[0])
    losses[1].backward()
    assert all((m.grad == 0).all() for m in reg)


@pytest.mark.parametrize("positive_type", TYPES)
@pytest.mark.parametrize(
    "row", [[math.nan] * 4, [math.inf] * 4, [1e30, 1e30, 2e30, 2e30], [50, 50, 20, 20], [500, 500, 600, 600]]
)
def test_senseless_boxes_do_no_harm(positive_type, row):
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type, "MODEL.ATSS.NUM_CLASSES", 7)
    maps = random_maps(np.random.RandomState(0), dtype=torch.float32)
    anchors = model.anchor_generator.level_anchors(grid_sizes(96, 128))
    good = [20, 20, 70, 60, 3]
    losses = model.loss_evaluator(*maps, [boxlist([good]), boxlist([row + [5]])], anchors)
    assert all(torch.isfinite(loss) for loss in losses)
    labels, _ = targets_of(model.loss_evaluator, anchors, [boxlist([good]), boxlist([row + [5]])])
    assert (labels[0] == 3).any() and not (labels == 5).any()


def test_half_precision_predictions_give_float32_losses():
    model = module("MODEL.ATSS.NUM_CLASSES", 7)
    rng = np.random.RandomState(1)
    full = random_maps(rng, dtype=torch.float32)
    boxlists = [random_boxlist(rng, 3) for _ in range(2)]
    anchors = model.anchor_generator.level_anchors(grid_sizes(96, 128))
    half = [[m.bfloat16() for m in maps] for maps in full]
    rounded = [[m.float() for m in maps] for maps in half]
    for a, b in zip(*[model.loss_evaluator(*maps, boxlists, anchors) for maps in (half, rounded)]):
        assert a.dtype == torch.float32 and a.item() == pytest.approx(b.item(), rel=1e-6)


@pytest.mark.parametrize("positive_type", TYPES)
def test_what_is_assigned_does_not_depend_on_the_precision(positive_type):
    model = module("MODEL.ATSS.POSITIVE_TYPE", positive_type, *NINE)
    boxlists = [random_boxlist(np.random.RandomState(1), 20, step=0.1)]
    single = targets_of(model.loss_evaluator, model.anchor_generator.level_anchors(grid_sizes(96, 128)), boxlists)
    model.double()
    double = targets_of(model.loss_evaluator, model.anchor_generator.level_anchors(grid_sizes(96, 128)), boxlists)
    assert torch.equal(single[0], double[0]) and torch.equal(single[1], double[1])


# ------------------------------------------------------------------------------------------------ post-processing


def as_numpy(found):
    return found.bbox.cpu().numpy(), found.get_field("scores").cpu().numpy(), found.get_field("labels").cpu().numpy()


@pytest.mark.parametrize("kind,options,ratios", VARIANTS)
@pytest.mark.parametrize("top_n,limit,nms", [(1000, 100, 0.6), (7, 5, 0.3), (40, 10, -1.0)])
def test_post_processing_is_the_written_procedure(kind, options, ratios, top_n, limit, nms, device):
    maps = random_maps(np.random.RandomState(top_n), len(ratios), device)
    maps = points(maps) if kind == "POINT" else maps
    model = module(*options)
    anchors = [a.to(device) for a in model.anchor_generator.level_anchors(grid_sizes(96, 128))]
    post = ATSSPostProcessor(0.2, top_n, nms, limit, 0, 7, model.loss_evaluator.box_coder)
    sizes = [(90, 120), (96, 100)]
    pyramid = reference.pyramid(96, 128, STRIDES, [8 * s for s in STRIDES], ratios)
    values = [[m.cpu() for m in level] for level in maps]
    wanted = reference.post_process(pyramid, values, sizes, kind, 0.2, top_n, nms, limit)
    for mine, recorded in zip(post(*maps, anchors=anchors, image_sizes=sizes), wanted):
        assert len(mine) == len(recorded[1]) > 0
        recipe.assert_same_detections(as_numpy(mine), recorded, 1e-3, 1e-5)
        scores = mine.get_field("scores")
        assert (scores[:-1] >= scores[1:]).all()


def test_what_a_pass_of_a_multi_scale_test_leaves_to_the_merging():
    maps = random_maps(np.random.RandomState(2), dtype=torch.float32)
    numbers = {}
    for name, switches in {"single": {}, "merge": {"ENABLED": True}, "vote": {"ENABLED": True, "VOTE": True}}.items():
        options = [word for key, value in switches.items() for word in ("TEST.BBOX_AUG." + key, value)]
        model = module("TEST.DETECTIONS_PER_IMG", 20, "MODEL.ATSS.NUM_CLASSES", 7, *options)
        anchors = model.anchor_generator.level_anchors(grid_sizes(96, 128))
        found = model.box_selector_test(*maps, anchors=anchors, image_sizes=[(96, 128)] * 2)
        numbers[name] = len(found[0])
    assert numbers["single"] == numbers["vote"] == 20 < numbers["merge"]


# ---------------------------------------------------------------------------------------------------------- head


def test_head_of_one_and_of_many_anchors():
    for options, anchors in (([], 1), (NINE, 9)):
        model = module("MODEL.ATSS.NUM_CLASSES", 4, "MODEL.ATSS.NUM_CONVS", 1, *options)
        features = [torch.randn(2, 32, *size) for size in grid_sizes(64, 96)]
        logits, regression, centerness = model.head(features)
        for level, size in enumerate(grid_sizes(64, 96)):
            assert logits[level].shape == (2, 3 * anchors) + size
            assert regression[level].shape == (2, 4 * anchors) + size
            assert centerness[level].shape == (2, anchors) + size
        model.eval()
        images = ImageList(torch.zeros(2, 3, 64, 96), [(60, 90), (64, 96)])
        detections, losses = model(images, features)
        assert losses == {} and [d.size for d in detections] == [(90, 60), (96, 64)]
        assert torch.equal(model.head(features)[1][0], regression[0])  # the same while training


def test_centerness_comes_from_the_regression_tower():
    model = module("MODEL.ATSS.NUM_CONVS", 1)
    features = [torch.randn(1, 32, 4, 4) for _ in STRIDES]
    model.head(features)[2][0].sum().backward()
    assert model.head.bbox_tower[0].weight.grad is not None and model.head.cls_tower[0].weight.grad is None


def test_point_head_predicts_distances():
    head = module(*POINT).head
    assert (head.bbox_pred.bias == 4).all()
    torch.nn.init.constant_(head.bbox_pred.bias, -1)
    assert (head([torch.zeros(1, 32, 2, 2)] * 5)[1][0] == 0).all()
    with pytest.raises(ValueError, match="one anchor at each location"):
        module(*(POINT + THREE))


def test_last_convolution_of_the_towers_may_be_deformable():
    head = module("MODEL.ATSS.USE_DCN_IN_TOWER", True, "MODEL.ATSS.NUM_CONVS", 2).head
    for tower in (head.cls_tower, head.bbox_tower):
        assert [isinstance(tower[i], DFConv2d) for i in (0, 3)] == [False, True]


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="ATSS, SSC, IoU, TOPK, got iou"):
        module("MODEL.ATSS.POSITIVE_TYPE", "iou")
    with pytest.raises(ValueError, match="BOX or POINT, got LTRB"):
        module("MODEL.ATSS.REGRESSION_TYPE", "LTRB")


def test_state_dict_with_several_anchors_is_the_recorded_one():
    with gzip.open(os.path.join(recipe.HERE, "state_dicts.json.gz"), "rt") as stream:
        models = json.load(stream)["models"]
    (name,) = [n for n in models if "SCALES_PER_OCTAVE" in n]
    state = module(*NINE, channels=256).state_dict()
    mine = [["rpn." + key, list(value.shape)] for key, value in state.items()]
    assert mine == [entry[:2] for entry in models[name] if entry[0].startswith("rpn.")]


def test_flattening_order_with_several_anchors():
    maps = [torch.arange(2 * 6 * 2 * 2).view(2, 6, 2, 2), torch.arange(100, 112).view(2, 6, 1, 1)]
    flat = flatten_levels(maps, 2)
    assert flat.shape == (2, 10, 3)
    assert flat[1, 4].tolist() == maps[0][1, :3, 1, 0].tolist()  # location 2, anchor 0
    assert flat[1, 5].tolist() == maps[0][1, 3:, 1, 0].tolist()  # location 2, anchor 1
    assert flat[0, 9].tolist() == [103, 104, 105]
    last = torch.randn(2, 6, 3, 4).contiguous(memory_format=torch.channels_last)
    assert torch.equal(flatten_levels([last], 2), flatten_levels([last.contiguous()], 2))


# ------------------------------------------------------------------------------------------------------- matcher


def test_matcher_golden():
    matrix = torch.from_numpy(PIECES["matcher/matrix"])
    for low_quality in (0, 1):
        recorded = PIECES["matcher/0.7_0.3_lowq{}".format(low_quality)]
        assert Matcher(0.7, 0.3, bool(low_quality))(matrix).tolist() == recorded.tolist()


def test_matcher_of_batches_and_of_matrices_agree():
    rng = np.random.RandomState(0)
    boxlists = [random_boxlist(rng, n) for n in (5, 0, 9)]
    anchors = torch.cat(module().anchor_generator.grid_anchors(grid_sizes(96, 128)))
    boxes, labels = pad_targets(boxlists, torch.float32, torch.device("cpu"))
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    from fcos_core.structures.box_ops import pairwise_iou

    for i, target in enumerate(boxlists):
        alone = matcher(pairwise_iou(target.bbox, anchors))
        assert matcher.match(anchors, boxes, labels > 0)[i].tolist() == alone.tolist()


def test_matcher_without_boxes_and_with_one_that_no_anchor_overlaps():
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    assert matcher(torch.zeros(0, 4)).tolist() == [-1] * 4
    # the predecessor matched every anchor then
    assert matcher(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.2, 0.45]])).tolist() == [-1, -1, 1]
    with pytest.raises(ValueError, match="exchange"):
        Matcher(0.4, 0.5)
