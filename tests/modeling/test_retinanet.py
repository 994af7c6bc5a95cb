"""RetinaNet by itself: anchors, coder, losses and post-processing against slow, obvious versions."""
import math

import numpy as np
import pytest
import torch

from fcos_core.config import load_config
from fcos_core.modeling.box_coder import BoxCoder
from fcos_core.modeling.rpn import levels
from fcos_core.modeling.rpn.retinanet.inference import RetinaNetPostProcessor
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.structures.image_list import ImageList
from tests.golden import recipe
from tests.modeling.test_atss import as_numpy, boxlist, grid_sizes, random_boxlist, random_maps
from tests.reference import atss as reference

STRIDES = [8, 16, 32, 64, 128]
PIECES = recipe.Golden("atss_pieces.npz")
RATIOS = (0.5, 1.0, 2.0)
# three anchors at a location instead of nine: enough, and fast
SMALL = ["MODEL.RETINANET.SCALES_PER_OCTAVE", 1, "MODEL.RETINANET.NUM_CLASSES", 7]


def module(*options, channels=32):
    return build_rpn(load_config("", ["MODEL.RETINANET_ON", True] + list(options))[0], channels)


def pyramid():
    return reference.pyramid(96, 128, STRIDES, [4 * s for s in STRIDES], RATIOS, shift=0.0)


def maps_and_anchors(model, seed, device="cpu", dtype=torch.float64):
    maps = random_maps(np.random.RandomState(seed), 3, device, dtype)[:2]
    return maps, [level.to(device) for level in model.anchor_generator.level_anchors(grid_sizes(96, 128))]


@pytest.mark.parametrize("package,shift", [("fcos_core", -1.0), ("atss_core", 0.5)])
def test_anchors_golden(package, shift):
    for level, cell in enumerate(module("MODEL.ANCHOR_SHIFT", shift).anchor_generator.cell_anchors):
        recorded = PIECES["anchors/{}/retinanet_R-50-FPN_1x/cell{}".format(package, level)]
        assert cell.tolist() == recorded.tolist()


@pytest.mark.parametrize("weights", [(10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0)])
def test_box_coder_golden(weights):
    coder = BoxCoder(weights)
    boxes, anchors, codes = (torch.from_numpy(PIECES["box_coder/" + k]) for k in ("reference", "proposals", "codes"))
    record = "box_coder/{}/".format("_".join("{:g}".format(w) for w in weights))
    encoded = coder.encode(boxes, anchors)
    recipe.assert_close(encoded, PIECES[record + "encode"], 1e-6, "encode")
    recipe.assert_close(coder.decode(codes, anchors), PIECES[record + "decode"], 1e-6, "decode")
    recipe.assert_close(coder.decode(encoded, anchors), PIECES[record + "roundtrip"], 1e-6, "roundtrip")


def test_box_coder_with_four_different_weights():
    coder = BoxCoder((1.0, 2.0, 3.0, 4.0))
    boxes, anchors = torch.tensor([[12.0, 7.0, 40.0, 30.0]]), torch.tensor([[10.0, 10.0, 29.0, 49.0]])
    encoded = coder.encode(boxes, anchors)
    factors = encoded / BoxCoder((1.0, 1.0, 1.0, 1.0)).encode(boxes, anchors)
    recipe.assert_close(factors, [[1, 2, 3, 4]], 1e-6, "weights")
    recipe.assert_close(coder.decode(encoded, anchors), boxes, 1e-6, "boxes")
    huge = coder.decode(torch.tensor([[0.0, 0.0, 100.0, 100.0]]), anchors)
    assert torch.isfinite(huge).all() and huge[0, 2] - huge[0, 0] + 1 == pytest.approx(20 * 1000 / 16, rel=1e-5)


@pytest.mark.parametrize("counts", [(4, 2), (0, 3), (0, 0)])
def test_losses_are_the_written_formulas(counts, device):
    rng = np.random.RandomState(5)
    model = module(*SMALL)
    maps, anchors = maps_and_anchors(model, 1, device)
    maps = [[m.requires_grad_() for m in level] for level in maps]
    boxlists = [random_boxlist(rng, n) for n in counts]
    mine = model.loss_evaluator(anchors, *maps, [b.to(device) for b in boxlists])
    wanted = reference.retinanet_losses(pyramid(), [[m.detach().cpu() for m in level] for level in maps], boxlists)
    for value, number in zip(mine, wanted):
        assert value.item() == pytest.approx(number, rel=1e-9, abs=1e-12)
    sum(mine).backward()
    for level in maps[0] + maps[1]:
        assert level.grad is not None and torch.isfinite(level.grad).all()


def test_targets_of_many_boxes_in_pieces(monkeypatch):
    loss = module(*SMALL).loss_evaluator
    boxlists = [random_boxlist(np.random.RandomState(n), n, step=1e-3) for n in (70, 30)]
    anchors = module(*SMALL).anchor_generator.level_anchors(grid_sizes(96, 128))
    labels, encoded = loss.prepare_targets(anchors, boxlists)
    assert {-1, 0} < set(labels[0].unique().tolist())
    monkeypatch.setattr(levels, "MAX_ELEMENTS", 1)
    for a, b, codes, again in zip(labels, loss.prepare_targets(anchors, boxlists)[0], encoded,
                                  loss.prepare_targets(anchors, boxlists)[1]):  # fmt: skip
        assert torch.equal(a, b) and torch.equal(codes[a > 0], again[b > 0])


def test_no_positive_gives_zero_even_with_infinite_predictions():
    model = module(*SMALL)
    (cls, reg), anchors = maps_and_anchors(model, 0, dtype=torch.float32)
    reg = [torch.full_like(m, math.inf).requires_grad_() for m in reg]
    losses = model.loss_evaluator(anchors, cls, reg, [boxlist([]), boxlist([])])
    assert losses[1] == 0 and torch.isfinite(losses[0])
    losses[1].backward()
    assert all((m.grad == 0).all() for m in reg)


@pytest.mark.parametrize("top_n,limit,nms", [(1000, 100, 0.4), (7, 5, 0.3), (40, 10, -1.0)])
def test_post_processing_is_the_written_procedure(top_n, limit, nms, device):
    model = module(*SMALL)
    maps, anchors = maps_and_anchors(model, top_n, device)
    post = RetinaNetPostProcessor(0.2, top_n, nms, limit, 0, 7, BoxCoder((10.0, 10.0, 5.0, 5.0)))
    sizes = [(90, 120), (96, 100)]
    values = [[m.cpu() for m in level] for level in maps]
    wanted = reference.post_process(pyramid(), values, sizes, "RCNN", 0.2, top_n, nms, limit)
    for mine, recorded in zip(post(anchors, *maps, image_sizes=sizes), wanted):
        assert len(mine) == len(recorded[1]) > 0
        recipe.assert_same_detections(as_numpy(mine), recorded, 1e-3, 1e-5)
        scores = mine.get_field("scores")
        assert (scores[:-1] >= scores[1:]).all()


def test_an_iou_equal_to_the_threshold_does_not_suppress():
    """As on the GPUs that gave the published results; the predecessor's CPU code suppressed."""
    anchors = [torch.tensor([[[[0.0, 0.0, 9.0, 9.0]], [[0.0, 0.0, 9.0, 4.0]]]])]  # IoU 0.5
    logits, codes = [torch.tensor([[[[2.0, 1.0]]]])], [torch.zeros(1, 4, 1, 2)]
    for threshold, kept in ((0.5, 2), (0.49, 1)):
        post = RetinaNetPostProcessor(0.05, 10, threshold, 10, 0, 2, BoxCoder((10.0, 10.0, 5.0, 5.0)))
        assert len(post(anchors, logits, codes, [(32, 32)])[0]) == kept


def test_head_and_module():
    model = module("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NUM_CLASSES", 4)
    kinds = [type(layer) for layer in model.head.cls_tower]
    assert kinds == [torch.nn.Conv2d, torch.nn.ReLU]
    features = [torch.randn(2, 32, *size) for size in grid_sizes(64, 96)]
    logits, regression = model.head(features)
    assert logits[0].shape == (2, 27, 8, 12) and regression[4].shape == (2, 36, 1, 1)
    images = ImageList(torch.zeros(2, 3, 64, 96), [(60, 90), (64, 96)])
    _, losses = model(images, features, [boxlist([[5, 5, 40, 40, 3]]), boxlist([])])
    assert sorted(losses) == ["loss_retina_cls", "loss_retina_reg"]
    assert 0 < losses["loss_retina_cls"] < 10 and losses["loss_retina_reg"] > 0
    detections, losses = model.eval()(images, features)
    assert losses == {} and [d.size for d in detections] == [(90, 60), (96, 64)]
