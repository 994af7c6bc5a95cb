"""Geometry of axis-aligned boxes on plain tensors, and the one Python home of the pixel convention.

Convention: a box is (x1, y1, x2, y2) in absolute pixels and *includes* its last pixel, so its width is ``x2 - x1 + 1``
(`PIXEL`).  The constant enters widths, hence areas, IoU and the xywh form; it does not enter distances (the l, t, r, b
targets of FCOS), resizing and cropping.  `csrc/box_iou.h` is the C++ counterpart.

Shape letters: M, K boxes.  Leading dimensions ("...") are arbitrary, empty ones included.  No function changes its
input.
"""
import torch

# Legacy: inclusive pixel coordinates, from the first Matlab detectors; trained weights depend on it.
PIXEL = 1


def xyxy_to_xywh(boxes):
    """Corners to corner and inclusive size: [..., 4] x1 y1 x2 y2 -> [..., 4] x1 y1 w h."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1, y1, x2 - x1 + PIXEL, y2 - y1 + PIXEL), dim=-1)


def xywh_to_xyxy(boxes):
    """Corner and inclusive size to corners: [..., 4] x1 y1 w h -> [..., 4] x1 y1 x2 y2.

    A size below one pixel gives a box of zero extent (x2 = x1), never an inverted one.
    """
    x1, y1, w, h = boxes.unbind(-1)
    return torch.stack((x1, y1, x1 + (w - PIXEL).clamp(min=0), y1 + (h - PIXEL).clamp(min=0)), dim=-1)


def area(boxes):
    """Areas in square pixels, inclusive: [..., 4] xyxy -> [...]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1 + PIXEL) * (y2 - y1 + PIXEL)


def pairwise_iou(boxes1, boxes2):
    """Intersection over union of every box of one set with every box of another.

    Args:
        boxes1: [..., M, 4] xyxy.
        boxes2: [..., K, 4] xyxy.

    Returns:
        [..., M, K], in [0, 1] for boxes with x2 >= x1 and y2 >= y1.
    """
    return iou(boxes1[..., :, None, :], boxes2[..., None, :, :])


def iou(boxes1, boxes2):
    """Intersection over union of boxes that belong together: two of [..., 4] xyxy that broadcast -> [...]."""
    # one coordinate at a time: [M, K, 2] corners would double the largest temporary tensor of an assignment
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes1.unbind(-1), boxes2.unbind(-1)
    w = (torch.min(x2, u2) - torch.max(x1, u1) + PIXEL).clamp(min=0)
    h = (torch.min(y2, v2) - torch.max(y1, v1) + PIXEL).clamp(min=0)
    intersection = w * h
    return intersection / (area(boxes1) + area(boxes2) - intersection)


def clip(boxes, height, width):
    """Move corners into the image: x into [0, width - 1], y into [0, height - 1]; [..., 4] xyxy -> the same."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    x_max, y_max = width - PIXEL, height - PIXEL
    return torch.stack((x1.clamp(0, x_max), y1.clamp(0, y_max), x2.clamp(0, x_max), y2.clamp(0, y_max)), dim=-1)


def is_nonempty(boxes):
    """Boxes of positive extent, strictly and without the pixel: [..., 4] xyxy -> bool [...]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 > x1) & (y2 > y1)


def flip_left_right(boxes, width):
    """Mirror at the vertical centre line of an image `width` pixels wide; [..., 4] xyxy -> the same."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((width - PIXEL - x2, y1, width - PIXEL - x1, y2), dim=-1)


def flip_top_bottom(boxes, height):
    """Mirror at the horizontal centre line of an image `height` pixels high; [..., 4] xyxy -> the same.

    Legacy: without the pixel, hence one pixel lower than `flip_left_right` would be; pinned by test_box_ops.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1, height - y2, x2, height - y1), dim=-1)


def scale(boxes, ratio_x, ratio_y):
    """Multiply x coordinates by ratio_x and y coordinates by ratio_y; [..., 4] xyxy -> the same."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack((x1 * ratio_x, y1 * ratio_y, x2 * ratio_x, y2 * ratio_y), dim=-1)


def crop(boxes, region):
    """Coordinates relative to a region, clamped to it.

    Args:
        boxes: [..., 4] xyxy.
        region: (x1, y1, x2, y2) numbers, pixels.

    Returns:
        [..., 4] xyxy with x in [0, x2 - x1] and y in [0, y2 - y1] of the region.  Boxes outside become empty.
    """
    left, top, right, bottom = region
    width, height = right - left, bottom - top
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        (
            (x1 - left).clamp(0, width),
            (y1 - top).clamp(0, height),
            (x2 - left).clamp(0, width),
            (y2 - top).clamp(0, height),
        ),
        dim=-1,
    )
