"""Functions on BoxLists against recorded numbers, and their edge cases."""
import pytest
import torch

from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.boxlist_ops import boxlist_iou, boxlist_ml_nms, boxlist_nms, cat_boxlist, remove_small_boxes
from tests.golden import recipe

GOLDEN = recipe.Golden("structures.npz")
SIZE = (320, 240)


def golden_boxes(count=None, start=0):
    rows = slice(start, None if count is None else start + count)
    boxes = BoxList(torch.from_numpy(GOLDEN["nms/boxes"][rows].copy()), SIZE)
    boxes.add_field("scores", torch.from_numpy(GOLDEN["nms/scores"][rows].copy()))
    boxes.add_field("labels", torch.from_numpy(GOLDEN["nms/labels"][rows].copy()))
    return boxes


def no_boxes():
    return golden_boxes(0)


def test_iou_against_golden():
    others = golden_boxes(30, start=40)
    iou = boxlist_iou(golden_boxes(40), others)
    recipe.assert_close(iou.numpy(), GOLDEN["boxlist/iou"], 1e-6, "iou")
    assert torch.allclose(boxlist_iou(golden_boxes(40).convert("xywh"), others), iou, atol=1e-5)
    assert boxlist_iou(no_boxes(), golden_boxes(3)).shape == (0, 3)


def test_iou_refuses_boxes_of_different_images():
    with pytest.raises(ValueError, match=r"same image size, got \(320, 240\) and \(640, 480\)"):
        boxlist_iou(golden_boxes(2), golden_boxes(2).resize((640, 480)))
    boxes = golden_boxes(2)
    boxes.size = torch.Size(SIZE)
    assert boxlist_iou(boxes, golden_boxes(2)).shape == (2, 2)


def test_remove_small_boxes():
    kept = remove_small_boxes(golden_boxes(40), 40)
    recipe.assert_close(kept.bbox.numpy(), GOLDEN["boxlist/small_keep_min40"], 1e-6, "boxes")
    # sizes include the last pixel: a box of zero extent is one pixel large
    point = BoxList([[5.0, 5.0, 5.0, 5.0]], SIZE)
    assert [len(remove_small_boxes(point, size)) for size in (0, 1, 1.5)] == [1, 1, 0]
    assert len(remove_small_boxes(no_boxes(), 1)) == 0


def test_nms_against_golden():
    kept = boxlist_nms(golden_boxes(), 0.5, max_proposals=20)
    recipe.assert_close(kept.bbox.numpy(), GOLDEN["boxlist/nms_0.5_max20_boxes"], 1e-6, "boxes")
    recipe.assert_close(kept.get_field("scores").numpy(), GOLDEN["boxlist/nms_0.5_max20_scores"], 1e-6, "scores")


def test_ml_nms_against_golden():
    kept = boxlist_ml_nms(golden_boxes(), 0.5)
    recipe.assert_close(kept.get_field("scores").numpy(), GOLDEN["boxlist/ml_nms_0.5_scores"], 1e-6, "scores")


@pytest.mark.parametrize("function", [boxlist_nms, boxlist_ml_nms])
def test_nms_edge_cases(function):
    boxes = golden_boxes(50)
    assert function(boxes, 0) is boxes and function(boxes, -1, max_proposals=3) is boxes
    assert len(function(no_boxes(), 0.5)) == 0
    everything = function(boxes, 0.5)
    # the first ones by index, not the best
    limited = function(boxes, 0.5, max_proposals=4)
    assert torch.equal(limited.bbox, everything.bbox[:4])
    converted = function(boxes.convert("xywh"), 0.5)
    assert converted.mode == "xywh" and len(converted) == len(everything)


def test_nms_takes_other_field_names():
    boxes = golden_boxes(50)
    expected = boxlist_ml_nms(boxes, 0.5)
    renamed = BoxList(boxes.bbox, SIZE)
    renamed.add_field("objectness", boxes.get_field("scores"))
    renamed.add_field("category", boxes.get_field("labels"))
    kept = boxlist_ml_nms(renamed, 0.5, score_field="objectness", label_field="category")
    assert torch.equal(kept.bbox, expected.bbox)


def test_cat():
    parts = [golden_boxes(3), no_boxes(), golden_boxes(2, start=3)]
    for part in parts:
        part.add_field("names", ["x"] * len(part))
    joined = cat_boxlist(parts)
    assert torch.equal(joined.bbox, golden_boxes(5).bbox)
    assert torch.equal(joined.get_field("labels"), golden_boxes(5).get_field("labels"))
    assert joined.get_field("names") == ["x"] * 5 and joined.size == SIZE
    assert torch.equal(cat_boxlist([golden_boxes(3)]).bbox, golden_boxes(3).bbox)


@pytest.mark.parametrize(
    "parts,message",
    [
        ([], "non-empty list"),
        (golden_boxes(2), "non-empty list"),
        ([golden_boxes(2), golden_boxes(2).resize((10, 10))], "same image size"),
        ([golden_boxes(2), golden_boxes(2).convert("xywh")], "same mode"),
        ([golden_boxes(2), golden_boxes(2).copy_with_fields("labels")], "same fields"),
    ],
)
def test_cat_refuses_what_does_not_fit(parts, message):
    with pytest.raises(ValueError, match=message):
        cat_boxlist(parts)


def test_cat_refuses_fields_that_cannot_be_joined():
    parts = [golden_boxes(2), golden_boxes(2)]
    for part in parts:
        part.add_field("masks", object())
    with pytest.raises(ValueError, match="'masks'"):
        cat_boxlist(parts)
