"""Masks and keypoints as fields of a BoxList."""
import numpy as np
import pytest
import torch

from fcos_core.structures.bounding_box import FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM, BoxList
from fcos_core.structures.keypoint import Keypoints, PersonKeypoints, keypoints_to_heat_map
from fcos_core.structures.segmentation_mask import BinaryMaskList, PolygonInstance, PolygonList, SegmentationMask
from fcos_core.utils.cv2_util import findContours

SIZE = (40, 30)  # width, height
# a rectangle; one of two parts; lines are no polygons
POLYGONS = [[[4, 3, 20, 3, 20, 12, 4, 12]], [[25, 10, 35, 10, 35, 20], [1, 20, 9, 20, 9, 28, 1, 28], [0, 0, 5, 5]]]


def both_modes():
    poly = SegmentationMask(POLYGONS, SIZE, "poly")
    return poly, poly.convert("mask")


def test_forms_and_their_conversion():
    poly, mask = both_modes()
    assert len(poly) == len(mask) == 2 and [len(p) for p in poly.instances] == [1, 2]
    bitmaps = mask.get_mask_tensor()
    assert bitmaps.shape == (2, 30, 40) and bitmaps.dtype == torch.uint8 and set(bitmaps.unique().tolist()) == {0, 1}
    assert bitmaps[0, 3:12, 4:20].all() and bitmaps[0].sum() <= 10 * 17
    # outlines go through the middle of border pixels, so these may get lost, and no others
    again = mask.convert("poly").convert("mask").get_mask_tensor().float()
    inner = 1 - torch.nn.functional.max_pool2d(1 - bitmaps[None].float(), 3, stride=1, padding=1)[0]
    assert (again <= bitmaps).all() and (again >= inner).all() and inner.sum() > 50
    assert poly.convert("poly") is poly and poly[0].get_mask_tensor().shape == (30, 40)
    with pytest.raises(ValueError, match="expected mode 'poly' or 'mask', got 'rle'"):
        SegmentationMask(POLYGONS, SIZE, "rle")
    with pytest.raises(ValueError, match="size is .width, height."):
        BinaryMaskList(torch.zeros(2, 40, 30), SIZE)


@pytest.mark.parametrize("method", [FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM])
def test_the_mirror_of_both_forms_agrees(method):
    poly, mask = both_modes()
    flipped = mask.transpose(method).get_mask_tensor()
    assert torch.equal(flipped, mask.get_mask_tensor().flip(2 if method == FLIP_LEFT_RIGHT else 1))
    assert (poly.transpose(method).get_mask_tensor() != flipped).float().mean() < 0.05  # corners against pixels
    twice = poly.transpose(method).transpose(method)
    for one, other in zip(twice.instances, poly.instances):
        assert all(torch.equal(a, b) for a, b in zip(one.polygons, other.polygons))
    with pytest.raises(ValueError, match="FLIP_LEFT_RIGHT"):
        poly.transpose(7)


def test_crop_and_resize_of_both_forms_agree():
    poly, mask = both_modes()
    box = (2, 2, 34, 26)
    cropped = mask.crop(box)
    assert cropped.size == (32, 24) and torch.equal(cropped.get_mask_tensor(), mask.get_mask_tensor()[:, 2:26, 2:34])
    assert (poly.crop(box).get_mask_tensor() != cropped.get_mask_tensor()).float().mean() < 0.02
    assert mask.crop((50, 50, 60, 60)).size == (1, 1)
    resized = mask.resize((80, 60))
    assert resized.size == (80, 60) and resized.get_mask_tensor().shape == (2, 60, 80)
    assert (poly.resize((80, 60)).get_mask_tensor() != resized.get_mask_tensor()).float().mean() < 0.02
    assert poly.resize((20, 60)).instances[0].polygons[0].polygons[0].tolist() == [2, 6, 10, 6, 10, 24, 2, 24]


@pytest.mark.parametrize("mode", ["poly", "mask"])
def test_masks_follow_their_boxes(mode):
    boxes = BoxList([[4, 3, 20, 12], [1, 10, 35, 28]], SIZE)
    boxes.add_field("masks", both_modes()[0].convert(mode))
    for changed in (boxes.resize((80, 60)), boxes.transpose(0), boxes.crop((0, 0, 30, 25)), boxes.to("cpu")):
        masks = changed.get_field("masks")
        assert len(masks) == 2 and tuple(masks.size) == tuple(changed.size) and masks.mode == mode
    for item in ([1], torch.tensor([1]), torch.tensor([False, True]), slice(1, 2)):
        chosen = boxes[item].get_field("masks")
        assert len(chosen) == 1 and torch.equal(chosen.get_mask_tensor(), boxes.get_field("masks")[1].get_mask_tensor())
    assert len(boxes[torch.zeros(2, dtype=torch.bool)].get_field("masks")) == 0
    assert [len(one) for one in boxes.get_field("masks")] == [1, 1]
    assert "num_instances=2" in repr(boxes.get_field("masks"))


def test_other_inputs():
    from pycocotools import mask

    bitmaps = both_modes()[1].get_mask_tensor()
    runs = [mask.encode(np.asfortranarray(bitmap.numpy())) for bitmap in bitmaps]
    assert torch.equal(BinaryMaskList(runs, SIZE).masks, bitmaps)
    assert torch.equal(BinaryMaskList(list(bitmaps), SIZE).masks, bitmaps)
    assert torch.equal(BinaryMaskList(bitmaps[0], SIZE).masks, bitmaps[:1])
    assert len(BinaryMaskList([], SIZE).resize((8, 9)).masks) == 0
    assert len(PolygonList(PolygonList(POLYGONS, SIZE), SIZE)) == 2
    assert PolygonInstance([], SIZE).convert_to_binarymask().sum() == 0
    contours, hierarchy = findContours(bitmaps[0].numpy().copy(), 0, 1)
    assert len(contours) == 1 and hierarchy is not None


def keypoints():
    points = torch.zeros(2, 17, 3)
    points[0, 1] = torch.tensor([10.0, 5.0, 2.0])  # left eye
    points[1, 16] = torch.tensor([30.0, 25.0, 1.0])  # right ankle
    return PersonKeypoints(points, SIZE)


def test_keypoints_change_sides_in_the_mirror():
    flipped = keypoints().transpose(FLIP_LEFT_RIGHT)
    assert flipped.keypoints[0, PersonKeypoints.NAMES.index("right_eye")].tolist() == [29, 5, 2]
    assert flipped.keypoints[1, PersonKeypoints.NAMES.index("left_ankle")].tolist() == [9, 25, 1]
    assert flipped.keypoints.abs().sum() == 29 + 5 + 2 + 9 + 25 + 1
    assert torch.equal(flipped.transpose(FLIP_LEFT_RIGHT).keypoints, keypoints().keypoints)
    for points, method in ((keypoints(), FLIP_TOP_BOTTOM), (Keypoints([[[1, 2, 3]]], SIZE), FLIP_LEFT_RIGHT)):
        with pytest.raises(ValueError, match="FLIP_INDS"):
            points.transpose(method)
    assert len(PersonKeypoints.NAMES) == 17 and len(set(map(tuple, PersonKeypoints.CONNECTIONS))) == 17


def test_keypoints_follow_their_boxes():
    boxes = BoxList([[4, 3, 20, 12], [1, 10, 35, 28]], SIZE)
    points = keypoints()
    points.add_field("logits", torch.tensor([[1.0], [2.0]]))
    boxes.add_field("keypoints", points)
    assert boxes.resize((80, 30)).get_field("keypoints").keypoints[0, 1].tolist() == [20, 5, 2]
    cropped = boxes.crop((5, 0, 25, 30)).get_field("keypoints")
    assert cropped.keypoints[0, 1].tolist() == [5, 5, 2] and cropped.keypoints[1].abs().sum() == 0
    one = boxes[torch.tensor([False, True])].get_field("keypoints")
    assert len(one) == 1 and one.get_field("logits").tolist() == [[2.0]]
    assert boxes.to("cpu").get_field("keypoints").get_field("logits").shape == (2, 1)
    assert type(one) is PersonKeypoints and "image_width=40" in repr(one)
    assert Keypoints([[1, 2, 2, 3, 4, 0]], SIZE).keypoints.shape == (1, 2, 3) and len(Keypoints([], SIZE)) == 0


def test_heat_map_cells():
    points = torch.tensor([[[0.0, 0, 2], [9.99, 5, 2], [10, 10, 1], [5, 5, 0], [11, 5, 2], [-0.1, 5, 2]]])
    index, valid = keypoints_to_heat_map(points, torch.tensor([[0.0, 0.0, 10.0, 10.0]]), 20)
    assert valid.tolist() == [[1, 1, 1, 0, 0, 0]]
    assert index.tolist() == [[0, 10 * 20 + 19, 19 * 20 + 19, 0, 0, 0]]
