"""Box geometry: formulas, the pixel convention, empty sets."""
import pytest
import torch

from fcos_core.structures import box_ops

BOXES = torch.tensor([[2.0, 3.0, 11.0, 7.0], [0.0, 0.0, 0.0, 0.0], [-4.0, 5.5, 30.25, 40.0]])


def brute_force_iou(box1, box2):
    """IoU of integer boxes by counting the pixels that they include."""
    pixels1 = {(x, y) for x in range(int(box1[0]), int(box1[2]) + 1) for y in range(int(box1[1]), int(box1[3]) + 1)}
    pixels2 = {(x, y) for x in range(int(box2[0]), int(box2[2]) + 1) for y in range(int(box2[1]), int(box2[3]) + 1)}
    return len(pixels1 & pixels2) / len(pixels1 | pixels2)


def test_sizes_include_the_last_pixel():
    assert box_ops.area(BOXES)[:2].tolist() == [50.0, 1.0]
    assert box_ops.xyxy_to_xywh(BOXES)[0].tolist() == [2.0, 3.0, 10.0, 5.0]


def test_iou_counts_pixels():
    generator = torch.Generator().manual_seed(3)
    corner = torch.randint(0, 12, (9, 2), generator=generator)
    boxes = torch.cat((corner, corner + torch.randint(0, 9, (9, 2), generator=generator)), 1).float()
    iou = box_ops.pairwise_iou(boxes[:5], boxes[5:])
    expected = [[brute_force_iou(a, b) for b in boxes[5:].tolist()] for a in boxes[:5].tolist()]
    assert torch.allclose(iou, torch.tensor(expected), atol=1e-6)


def test_iou_is_batched():
    boxes = torch.rand(2, 6, 4).cumsum(-1)
    batched = box_ops.pairwise_iou(boxes, boxes[:, :3])
    assert batched.shape == (2, 6, 3)
    for image in range(2):
        assert torch.equal(batched[image], box_ops.pairwise_iou(boxes[image], boxes[image, :3]))


def test_conversion_round_trip():
    assert torch.allclose(box_ops.xywh_to_xyxy(box_ops.xyxy_to_xywh(BOXES)), BOXES)


def test_sizes_below_a_pixel_give_no_inverted_box():
    boxes = torch.tensor([[5.0, 6.0, 0.25, 0.0]])
    assert box_ops.xywh_to_xyxy(boxes).tolist() == [[5.0, 6.0, 5.0, 6.0]]


def test_clip():
    assert box_ops.clip(BOXES, height=20, width=10).tolist() == [[2, 3, 9, 7], [0, 0, 0, 0], [0, 5.5, 9, 19]]


def test_is_nonempty_is_strict():
    boxes = torch.tensor([[1.0, 1.0, 1.0, 5.0], [1.0, 1.0, 1.5, 1.5], [3.0, 1.0, 2.0, 5.0]])
    assert box_ops.is_nonempty(boxes).tolist() == [False, True, False]


@pytest.mark.parametrize("flip,size", [(box_ops.flip_left_right, 50), (box_ops.flip_top_bottom, 64)])
def test_flipping_twice_changes_nothing(flip, size):
    assert torch.allclose(flip(flip(BOXES, size), size), BOXES)


def test_left_right_flip_maps_the_first_pixel_to_the_last():
    assert box_ops.flip_left_right(torch.tensor([[0.0, 0.0, 0.0, 9.0]]), 50).tolist() == [[49, 0, 49, 9]]


def test_top_bottom_flip_is_a_pixel_off():
    """Legacy: the first row maps to `height`, one below the last row."""
    assert box_ops.flip_top_bottom(torch.tensor([[0.0, 0.0, 9.0, 0.0]]), 50).tolist() == [[0, 50, 9, 50]]


def test_crop_is_relative_and_clamped():
    assert box_ops.crop(BOXES, (1, 4, 11, 8)).tolist() == [[1, 0, 10, 3], [0, 0, 0, 0], [0, 1.5, 10, 4]]


def test_scale():
    assert box_ops.scale(BOXES[:1], 2.0, 0.5).tolist() == [[4.0, 1.5, 22.0, 3.5]]


@pytest.mark.parametrize(
    "function",
    [
        box_ops.xyxy_to_xywh,
        box_ops.xywh_to_xyxy,
        lambda b: box_ops.clip(b, 5, 5),
        lambda b: box_ops.flip_left_right(b, 5),
        lambda b: box_ops.flip_top_bottom(b, 5),
        lambda b: box_ops.scale(b, 2, 3),
        lambda b: box_ops.crop(b, (0, 0, 3, 3)),
    ],
)
def test_no_boxes(function):
    assert function(torch.zeros(0, 4)).shape == (0, 4)
    assert box_ops.area(torch.zeros(0, 4)).shape == (0,)
    assert box_ops.pairwise_iou(torch.zeros(0, 4), BOXES).shape == (0, 3)
    assert box_ops.pairwise_iou(BOXES, torch.zeros(0, 4)).shape == (3, 0)


def test_inputs_are_not_changed():
    boxes = BOXES.clone()
    for result in (box_ops.clip(boxes, 5, 5), box_ops.crop(boxes, (1, 1, 5, 5)), box_ops.xyxy_to_xywh(boxes)):
        result.zero_()
    assert torch.equal(boxes, BOXES)


def test_float64_is_kept():
    assert box_ops.pairwise_iou(BOXES.double(), BOXES.double()).dtype == torch.float64
