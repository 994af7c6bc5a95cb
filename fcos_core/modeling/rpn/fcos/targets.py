"""What each location must predict: the assignment rule of FCOS (arXiv:1904.01355, 3.1 and 3.2).

Shape letters as in levels.py: N images, R locations, M boxes of the fullest image.
"""
import torch

from fcos_core.modeling.rpn.levels import box_chunks
from fcos_core.structures import box_ops

INF = 100000000


def size_ranges(num_levels):
    """Range of max(l, t, r, b), pixels, that each level learns: [-1, 64], [64, 128], ... [64 * 2^(L-2), INF]."""
    bounds = [-1] + [64 * 2**i for i in range(num_levels - 1)] + [INF]
    return [[bounds[i], bounds[i + 1]] for i in range(num_levels)]


def _sides(locations, boxes):
    """Distances from locations [R, 2] to the left, top, right and bottom side of boxes [N, m, 4]: four of [N, R, m]."""
    xs, ys = locations[None, :, None, 0], locations[None, :, None, 1]
    x1, y1, x2, y2 = (side[:, None, :] for side in boxes.unbind(-1))
    return xs - x1, ys - y1, x2 - xs, y2 - ys


def in_center(locations, strides, boxes, radius):
    """Is the location strictly inside the box and the square of half side radius * stride around its centre?"""
    xs, ys = locations[None, :, None, 0], locations[None, :, None, 1]
    reach = (strides * radius)[None, :, None]
    x1, y1, x2, y2 = (side[:, None, :] for side in boxes.unbind(-1))
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    left = xs - torch.max(cx - reach, x1)
    top = ys - torch.max(cy - reach, y1)
    right = torch.min(cx + reach, x2) - xs
    bottom = torch.min(cy + reach, y2) - ys
    return torch.min(torch.min(left, top), torch.min(right, bottom)) > 0


def _smallest_of_piece(locations, strides, ranges, boxes, valid, radius, margin):
    """Area and index of the smallest box that each location may learn: two of [N, R]; area INF where there is none."""
    left, top, right, bottom = _sides(locations, boxes)
    # 1. inside the box, or near its centre
    if radius > 0:
        learnable = in_center(locations, strides, boxes, radius)
    else:
        learnable = torch.min(torch.min(left, top), torch.min(right, bottom)) > margin
    # 2. of a size that this level learns; a size on the bound belongs to both levels
    size = torch.max(torch.max(left, top), torch.max(right, bottom))
    learnable &= (size >= ranges[None, :, None, 0]) & (size <= ranges[None, :, None, 1])
    learnable &= valid[:, None, :]
    # 3. ambiguity: the smallest wins, the first one on ties
    area = box_ops.area(boxes)[:, None, :].expand_as(size)
    return torch.where(learnable, area, torch.full_like(area, INF)).min(dim=2)


@torch.no_grad()
def smallest_box(locations, strides, ranges, gt_boxes, gt_labels, radius=0.0, margin=0.0):
    """Assign to every location of a batch the smallest box that it may learn.

    Works on the whole batch at once; memory is bounded whatever the number of boxes.

    Args:
        locations, strides, ranges, gt_boxes, gt_labels, radius: see `fcos_targets`.
        margin: without radius, all four sides of the box must be farther from the location than this, pixels.

    Returns:
        bool [N, R]: is there such a box; int64 [N, R]: its index (0 where there is none; M must not be 0 then).
    """
    num_images, num_boxes = gt_labels.shape
    num_locations = locations.shape[0]
    best_area = locations.new_full((num_images, num_locations), INF)
    best = torch.zeros((num_images, num_locations), dtype=torch.int64, device=locations.device)
    for part in box_chunks(num_boxes, num_images * num_locations):
        valid = gt_labels[:, part] > 0
        area, index = _smallest_of_piece(locations, strides, ranges, gt_boxes[:, part], valid, radius, margin)
        smaller = area < best_area  # strict: on ties the earlier box stays
        best = torch.where(smaller, index + part.start, best)
        best_area = torch.where(smaller, area, best_area)
    return best_area < INF, best


@torch.no_grad()
def fcos_targets(locations, strides, ranges, gt_boxes, gt_labels, radius=0.0):
    """Assign a box, or background, to every location of a batch.

    Args:
        locations: [R, 2] (x, y) pixels.
        strides: [R] stride of each location's level, pixels.
        ranges: [R, 2] smallest and largest max(l, t, r, b) that the level learns, pixels, both inclusive.
        gt_boxes: [N, M, 4] xyxy pixels, padded.
        gt_labels: [N, M] int64, 1..C; 0 marks padding.
        radius: 0: a location learns the boxes around it; > 0: only those whose centre is within radius strides.

    Returns:
        labels [N, R] int64 (0: background) and distances [N, R, 4] to the left, top, right and bottom side of the
        assigned box, pixels (meaningless where the label is 0).

    Reference: arXiv:1904.01355, section 3.2; centre sampling: arXiv:2006.09214, section 3.
    """
    assigned, best = smallest_box(locations, strides, ranges, gt_boxes, gt_labels, radius)
    labels, boxes = take_boxes(assigned, best, gt_boxes, gt_labels)
    return labels, distances_to_sides(locations, boxes)


def take_boxes(assigned, index, gt_boxes, gt_labels):
    """Labels and boxes of what was assigned.

    Args:
        assigned: bool [N, R].
        index: int64 [N, R], into the M boxes.
        gt_boxes, gt_labels: [N, M, 4] and [N, M].

    Returns:
        labels [N, R] int64, 0 where nothing is assigned, and boxes [N, R, 4], meaningless there.
    """
    if gt_labels.shape[1] == 0:
        return torch.zeros_like(index), gt_boxes.new_zeros(index.shape + (4,))
    labels = gt_labels.gather(1, index).masked_fill(~assigned, 0)
    return labels, gt_boxes.gather(1, index[:, :, None].expand(-1, -1, 4))


def distances_to_sides(locations, boxes):
    """Distances from locations [R, 2] to the left, top, right and bottom side of boxes [..., R, 4]: [..., R, 4]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    xs, ys = locations.unbind(-1)
    return torch.stack((xs - x1, ys - y1, x2 - xs, y2 - ys), dim=-1)


def centerness_targets(distances):
    """sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)) (arXiv:1904.01355, equation 3).

    Args:
        distances: [..., 4] positive l, t, r, b in any unit.

    Returns:
        [...] in (0, 1].
    """
    left, top, right, bottom = distances.unbind(-1)
    horizontal = torch.min(left, right) / torch.max(left, right)
    vertical = torch.min(top, bottom) / torch.max(top, bottom)
    return torch.sqrt(horizontal * vertical)
