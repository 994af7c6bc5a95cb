"""BoxList: geometry against recorded numbers, fields, containers, empty lists."""
import copy
import pickle

import numpy as np
import pytest
import torch

from fcos_core.structures.bounding_box import FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM, BoxList
from tests.golden import recipe

GOLDEN = recipe.Golden("structures.npz")
SIZE = (320, 240)


def golden_boxes():
    return BoxList(torch.from_numpy(GOLDEN["nms/boxes"][:40].copy()), SIZE)


def check(boxlist, key):
    recipe.assert_close(boxlist.bbox.numpy(), GOLDEN["boxlist/" + key], 1e-6, key)


class Shapes(object):
    """A field that is no tensor: records what is done to it."""

    def __init__(self, log=()):
        self.log = tuple(log)

    def resize(self, size, *args, **kwargs):
        return Shapes(self.log + (("resize", tuple(size), args, kwargs),))

    def transpose(self, method):
        return Shapes(self.log + (("transpose", method),))

    def crop(self, box):
        return Shapes(self.log + (("crop", tuple(box)),))

    def to(self, device):
        return Shapes(self.log + (("to", str(device)),))

    def __getitem__(self, item):
        return Shapes(self.log + (("getitem", item),))


def test_area_and_modes_against_golden():
    recipe.assert_close(golden_boxes().area().numpy(), GOLDEN["boxlist/area"], 1e-6, "area")
    recipe.assert_close(golden_boxes().convert("xywh").area().numpy(), GOLDEN["boxlist/area"], 1e-5, "area, xywh")
    check(golden_boxes().convert("xywh"), "xywh")


def test_resize_against_golden():
    check(golden_boxes().resize((640, 480)), "resize_same_ratio")
    resized = golden_boxes().resize((500, 333))
    check(resized, "resize_diff")
    assert tuple(resized.size) == (500, 333)
    check(golden_boxes().convert("xywh").resize((500, 333)), "resize_xywh_diff")


def test_resize_in_xywh_depends_on_the_ratios():
    """Legacy: equal ratios scale the inclusive sizes themselves, different ones go through the corners."""
    boxes = BoxList([[0.0, 0.0, 10.0, 10.0]], (100, 100), mode="xywh")
    assert boxes.resize((200, 200)).bbox.tolist() == [[0, 0, 20, 20]]
    assert boxes.resize((200, 300)).bbox.tolist() == [[0, 0, 19, 28]]


def test_flips_against_golden():
    check(golden_boxes().transpose(FLIP_LEFT_RIGHT), "flip_lr")
    check(golden_boxes().transpose(FLIP_TOP_BOTTOM), "flip_tb")
    with pytest.raises(ValueError, match="FLIP_LEFT_RIGHT"):
        golden_boxes().transpose(5)


def test_crop_against_golden():
    cropped = golden_boxes().crop((50, 40, 200, 180))
    check(cropped, "crop_50_40_200_180")
    assert tuple(cropped.size) == (150, 140)


def test_clip_against_golden():
    for remove_empty, key in ((False, "clip_keep"), (True, "clip_remove")):
        check(BoxList(GOLDEN["boxlist/clip_input"].copy(), SIZE).clip_to_image(remove_empty), key)


def test_clip_works_in_place():
    """Legacy: the tensor that the BoxList was made from is clipped, too."""
    tensor = torch.tensor([[-5.0, -5.0, 500.0, 100.0]])
    BoxList(tensor, SIZE).clip_to_image()
    assert tensor.tolist() == [[0, 0, 319, 100]]


def test_clip_removes_by_default_and_selects_fields():
    boxes = BoxList([[-9.0, 1.0, -3.0, 9.0], [1.0, 1.0, 9.0, 9.0]], SIZE)
    boxes.add_field("labels", torch.tensor([7, 8]))
    clipped = boxes.clip_to_image()
    assert len(clipped) == 1 and clipped.get_field("labels").tolist() == [8]


def test_clip_in_mode_xywh():
    boxes = BoxList([[-5.0, 10.0, 11.0, 500.0], [400.0, 0.0, 10.0, 10.0]], SIZE, mode="xywh")
    clipped = boxes.clip_to_image()
    assert clipped.bbox.tolist() == [[0, 10, 6, 230]] and clipped.mode == "xywh"


@pytest.mark.parametrize("operation", ["resize", "transpose", "crop", "convert"])
@pytest.mark.parametrize("mode", ["xyxy", "xywh"])
def test_mode_is_kept_and_equivalent(operation, mode):
    argument = {"resize": (200, 333), "transpose": 0, "crop": (10, 20, 200, 150), "convert": mode}[operation]
    result = getattr(golden_boxes().convert(mode), operation)(argument)
    expected = golden_boxes() if operation == "convert" else getattr(golden_boxes(), operation)(argument)
    assert result.mode == mode
    assert torch.allclose(result.convert("xyxy").bbox, expected.bbox, atol=1e-3)


@pytest.mark.parametrize(
    "bbox",
    [
        torch.tensor([[1, 2, 3, 4]]),
        torch.tensor([[1, 2, 3, 4]], dtype=torch.float64),
        torch.tensor([[1, 2, 3, 4]], dtype=torch.float16),
        np.array([[1, 2, 3, 4]], np.int32),
        [[1, 2, 3, 4]],
        [(1.0, 2.0, 3.0, 4.0)],
    ],
)
def test_stores_float32(bbox):
    boxes = BoxList(bbox, SIZE)
    assert boxes.bbox.dtype == torch.float32 and boxes.bbox.tolist() == [[1, 2, 3, 4]]


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"BoxList: expected bbox of shape \[M, 4\], got \[2, 5\]"):
        BoxList(torch.zeros(2, 5), SIZE)
    with pytest.raises(ValueError, match=r"got \[4\]"):
        golden_boxes()[0]
    with pytest.raises(ValueError, match="'xyxy' or 'xywh', got 'cxcywh'"):
        BoxList(torch.zeros(2, 4), SIZE, mode="cxcywh")
    with pytest.raises(ValueError, match="'xyxy' or 'xywh', got 'xyhw'"):
        golden_boxes().convert("xyhw")
    with pytest.raises(KeyError, match="labels.*scores"):
        boxes = golden_boxes()
        boxes.add_field("labels", torch.zeros(40))
        boxes.get_field("scores")


def test_fields():
    boxes = golden_boxes()
    boxes.add_field("labels", torch.arange(40))
    boxes.add_field("names", ["a"] * 40)
    assert boxes.fields() == ["labels", "names"]
    assert boxes.has_field("names") and not boxes.has_field("scores")
    part = boxes.copy_with_fields("labels")
    assert part.fields() == ["labels"] and torch.equal(part.bbox, boxes.bbox)
    assert boxes.copy_with_fields(["labels", "scores"], skip_missing=True).fields() == ["labels"]
    with pytest.raises(KeyError):
        boxes.copy_with_fields(["labels", "scores"])


@pytest.mark.parametrize(
    "item,expected",
    [
        (slice(1, 3), [1, 2]),
        ([2, 0], [2, 0]),
        (torch.tensor([3, 3]), [3, 3]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.zeros(4, dtype=torch.bool), []),
    ],
)
def test_indexing(item, expected):
    boxes = BoxList(torch.arange(16.0).reshape(4, 4), SIZE)
    boxes.add_field("labels", torch.arange(4))
    selected = boxes[item]
    assert selected.get_field("labels").tolist() == expected
    assert selected.bbox[:, 0].tolist() == [4 * i for i in expected]
    assert len(selected) == len(expected) and selected.size == SIZE


def test_other_fields_take_part_in_geometry():
    boxes = BoxList(torch.ones(2, 4), SIZE)
    boxes.add_field("shapes", Shapes())
    boxes.add_field("names", ["a", "b"])
    moved = boxes.resize((10, 20), "bilinear", edge=1).transpose(1).crop((0, 0, 5, 6)).to("cpu")[:1]
    assert moved.get_field("shapes").log == (
        ("resize", (10, 20), ("bilinear",), {"edge": 1}),
        ("transpose", 1),
        ("crop", (0, 0, 5, 6)),
        ("to", "cpu"),
        ("getitem", slice(None, 1)),
    )
    assert moved.get_field("names") == ["a"]


def test_tensor_fields_are_not_touched_by_geometry():
    boxes = BoxList(torch.ones(2, 4), SIZE)
    boxes.add_field("labels", torch.tensor([1, 2]))
    for moved in (boxes.resize((10, 20)), boxes.transpose(0), boxes.crop((0, 0, 5, 6)), boxes.convert("xywh")):
        assert moved.get_field("labels").tolist() == [1, 2]


def test_to(device):
    boxes = golden_boxes()
    boxes.add_field("labels", torch.arange(40))
    moved = boxes.to(device, non_blocking=True)
    assert moved.bbox.device.type == moved.get_field("labels").device.type == device.type
    assert boxes.bbox.device.type == "cpu" and len(moved) == 40


def test_pin_memory_covers_boxes_and_fields(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    boxes = golden_boxes()
    boxes.add_field("labels", torch.arange(40))
    boxes.add_field("names", ["a"] * 40)
    assert boxes.pin_memory().get_field("names") == ["a"] * 40 and len(pinned) == 2


@pytest.mark.parametrize("empty", [torch.zeros(0, 4), [], np.zeros((0, 4))])
@pytest.mark.parametrize("mode", ["xyxy", "xywh"])
def test_no_boxes(empty, mode):
    boxes = BoxList(empty, SIZE, mode)
    boxes.add_field("labels", torch.zeros(0, dtype=torch.int64))
    for result in (
        boxes,
        boxes.convert("xyxy"),
        boxes.convert("xywh"),
        boxes.resize((640, 480)),
        boxes.resize((100, 480)),
        boxes.transpose(0),
        boxes.transpose(1),
        boxes.crop((0, 0, 9, 9)),
        boxes.clip_to_image(),
        boxes.clip_to_image(remove_empty=False),
        boxes.to("cpu"),
        boxes[torch.zeros(0, dtype=torch.int64)],
        boxes.copy_with_fields("labels"),
    ):
        assert len(result) == 0 and result.bbox.shape == (0, 4) and result.get_field("labels").shape == (0,)
    assert boxes.area().shape == (0,)
    assert "num_boxes=0" in repr(boxes)


def test_survives_pickle_and_deepcopy():
    boxes = golden_boxes()
    boxes.add_field("labels", torch.arange(40))
    for twin in (pickle.loads(pickle.dumps(boxes)), copy.deepcopy(boxes)):
        assert torch.equal(twin.bbox, boxes.bbox) and torch.equal(twin.get_field("labels"), torch.arange(40))
        assert twin.size == SIZE and twin.mode == "xyxy"
