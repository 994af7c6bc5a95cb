"""torchvision's FCOS and ours from the same weights: same outputs, same detections."""
import types

import pytest
import torch

from fcos_core.layers import batched_nms
from fcos_core.structures.image_list import ImageList
from fcos_core.utils.weights_formats import interpret
from tests.utils import foreign

theirs = pytest.importorskip("torchvision.models.detection.fcos")
# Multiples of 128, so that torchvision finds its strides, image size // grid size, to be those of the pyramid.
HEIGHT, WIDTH = 128, 256
SCORE = 0.2  # torchvision drops lower scores, sqrt(probability * centerness), before NMS; behind it is the same


@pytest.fixture(scope="module")
def pair():
    """(torchvision's model, ours with its weights and the config that belongs to them)."""
    model = foreign.torchvision_detector()
    weights = interpret({"model": model.state_dict()})
    settings = dict(foreign.TORCHVISION, **foreign.TORCHVISION_WIDTHS)
    settings.update(weights.testing)
    _, mine = foreign.detector(settings, filled=False)
    mine.load_state_dict(weights.state)
    return model, mine


@pytest.fixture(scope="module")
def image():
    coarse = torch.rand(1, 3, 8, 16, generator=torch.Generator().manual_seed(3))
    return torch.nn.functional.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0]


def normalized(image):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image - mean[:, None, None]) / std[:, None, None]


def as_locations(maps):
    """List of [1, C, H, W] -> [R, C]."""
    return torch.cat([m[0].flatten(1).t() for m in maps])


@torch.no_grad()
def test_outputs_and_locations_are_the_same(pair, image):
    model, mine = pair
    x = normalized(image)[None]
    features = list(model.backbone(x).values())
    outputs = model.head(features)
    pyramid = mine.backbone(x)
    logits, distances, centerness = mine.rpn.head(pyramid)
    for level, own in zip(features, pyramid):
        assert torch.allclose(level, own, rtol=0, atol=1e-5 * float(level.abs().max()))
    strides = torch.cat([torch.full((f[0, 0].numel(), 1), float(2 ** (3 + i))) for i, f in enumerate(features)])
    for own, other in (
        (as_locations(logits), outputs["cls_logits"][0][:, 1:]),
        (as_locations(distances), outputs["bbox_regression"][0] * strides),
        (as_locations(centerness), outputs["bbox_ctrness"][0]),
    ):
        assert float(other.std()) > 0.1  # nothing is compared with a constant
        assert torch.allclose(own, other, rtol=0, atol=1e-5 * float(other.abs().max()))
    anchors = model.anchor_generator(types.SimpleNamespace(tensors=x, image_sizes=[(HEIGHT, WIDTH)]), features)[0]
    assert torch.equal((anchors[:, :2] + anchors[:, 2:]) / 2, torch.cat(mine.rpn.compute_locations(pyramid)))


@torch.no_grad()
def detections(pair, image):
    """Theirs as dict(boxes, scores, labels), and ours above their threshold."""
    model, mine = pair
    found = mine(ImageList(normalized(image)[None], [(HEIGHT, WIDTH)]))[0]
    keep = found.get_field("scores") > SCORE
    ours = {name: found.get_field(name)[keep] for name in ("scores", "labels")}
    return model([image])[0], dict(ours, boxes=found.bbox[keep])


def test_detections_are_the_same_where_the_definitions_are(pair, image, monkeypatch):
    """With our counting of pixels in its clipping and its suppression, every detection of torchvision is ours."""

    def clip(boxes, size):
        limit = torch.tensor([size[1] - 1.0, size[0] - 1.0]).repeat(2)
        return torch.min(boxes.clamp(min=0), limit)

    def suppress(boxes, scores, labels, threshold):
        keep = batched_nms(boxes[None], scores[None], labels[None], threshold)[0]
        kept = keep.nonzero()[:, 0]
        return kept[scores[kept].argsort(descending=True)]

    monkeypatch.setattr(theirs, "box_ops", types.SimpleNamespace(clip_boxes_to_image=clip, batched_nms=suppress))
    other, ours = detections(pair, image)
    assert len(other["scores"]) == len(ours["scores"]) >= 30 and len(set(other["labels"].tolist())) >= 4
    assert torch.allclose(other["scores"], ours["scores"], atol=1e-5)
    assert torch.equal(other["labels"], ours["labels"])
    assert torch.allclose(other["boxes"], ours["boxes"], atol=2e-3)


def test_detections_as_shipped_differ_by_a_pixel_at_most(pair, image):
    """torchvision clips to the width, we to the last pixel; boxes at the threshold of the suppression may differ."""
    other, ours = detections(pair, image)
    found = 0
    for box, score, label in zip(other["boxes"], other["scores"], other["labels"]):
        same = (ours["labels"] == label) & ((ours["scores"] - score).abs() < 1e-4)
        found += int(bool(same.any()) and bool(((ours["boxes"][same] - box).abs().max(dim=1)[0] <= 1.01).any()))
    assert found >= 0.9 * max(len(other["scores"]), len(ours["scores"]))
