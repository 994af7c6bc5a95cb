"""IoU losses, slow and obvious, in float64; and the inputs that tests and benchmarks share."""

from typing import NamedTuple

import torch

KINDS = ("iou", "linear_iou", "giou", "box_giou")


class Sample(NamedTuple):
    """pred [M, 4], target [M, 4], weight [M] or None; distances, or corners of boxes."""

    name: str
    pred: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def _of_distances(p, t, kind):
    # p, t: lists of four numbers, tensors without dimensions
    def area(sides):
        left, top, right, bottom = sides
        return (left + right) * (top + bottom)

    intersection = area([a if a < b else b for a, b in zip(p, t)])
    union = area(p) + area(t) - intersection
    iou = (intersection + 1) / (union + 1)
    if kind == "iou":
        return -torch.log(iou)
    if kind == "linear_iou":
        return 1 - iou
    enclosing = area([a if a > b else b for a, b in zip(p, t)]) + 1e-7
    return 1 - (iou - (enclosing - union) / enclosing)


def _of_boxes(p, t):
    x1, y1, x2, y2 = p
    u1, v1, u2, v2 = t
    x2, y2 = (x1 if x1 > x2 else x2), (y1 if y1 > y2 else y2)
    width = (x2 if x2 < u2 else u2) - (x1 if x1 > u1 else u1)
    height = (y2 if y2 < v2 else v2) - (y1 if y1 > v1 else v1)
    intersection = (width if width >= 0 else width * 0) * (height if height >= 0 else height * 0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - intersection + 1e-7
    width = (x2 if x2 > u2 else u2) - (x1 if x1 < u1 else u1)
    height = (y2 if y2 > v2 else v2) - (y1 if y1 < v1 else v1)
    enclosing = width * height + 1e-7
    return 1 - (intersection / union - (enclosing - union) / enclosing)


def iou_loss(pred, target, weight, kind):
    """Losses [M] in float64, differentiable by pred."""
    rows = []
    for i, (p, t) in enumerate(zip(pred.double(), target.double())):
        if weight is not None and float(weight[i]) == 0:
            rows.append(p.new_zeros(()))
            continue
        loss = _of_boxes(list(p), list(t)) if kind == "box_giou" else _of_distances(list(p), list(t), kind)
        rows.append(loss if weight is None else loss * weight[i].double())
    return torch.stack(rows) if rows else pred.double().sum(1)


def random_inputs(num_boxes, kind, seed=0):
    """Float32 pred, target [M, 4] of some pixels to some hundred, and weight [M] in (0, 1) with some zeros."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    target = torch.exp(rand(num_boxes, 4) * 4) + 1
    pred = target * (0.5 + rand(num_boxes, 4))
    weight = rand(num_boxes).masked_fill(rand(num_boxes) < 0.2, 0.0)
    if kind == "box_giou":
        location = rand(num_boxes, 2) * 500
        # some of them far apart
        shift = torch.where(rand(num_boxes, 1) < 0.2, location.flip(0), location)
        sign = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        pred, target = pred * sign + shift.repeat(1, 2), target * sign + location.repeat(1, 2)
    return pred, target, weight


def sample_inputs(kind, device="cpu", dtype=torch.float32, requires_grad=False):
    """List of Sample: typical, none, one, more than one block, ties, strides; boxes: also reversed ones."""
    pred, target, weight = random_inputs(70, kind)
    many = random_inputs(1100, kind, seed=1)
    tied = torch.where(torch.arange(70)[:, None] % 4 == torch.arange(4), target, pred)
    cases = [
        ("typical", pred, target, None),
        ("weights", pred, target, weight),
        ("no box", pred[:0], target[:0], weight[:0]),
        ("one box", pred[:1], target[:1], None),
        ("more than a chunk", *many),
        ("equal sides", tied, target, weight),
        ("perfect", target, target, None),
        ("no weight", pred, target, weight * 0),
        ("not contiguous", pred.t().contiguous().t(), target.repeat(1, 2)[:, ::2], weight.repeat_interleave(2)[::2]),
    ]
    if kind == "box_giou":
        cases.append(("reversed", pred[:, [2, 1, 0, 3]], target, None))
        cases.append(("all reversed", pred.flip(1), target, weight))
    samples = []
    for name, p, t, w in cases:
        # to() keeps strides, and a leaf is needed for the gradient
        p = p.to(device, dtype).detach().requires_grad_(requires_grad)
        samples.append(Sample(name, p, t.to(device, dtype), None if w is None else w.to(device)))
    return samples


def exercise(device, dtype, small):
    """Call the operator forward and backward on every sample; returns the number of calls."""
    from fcos_core.layers.iou_loss import giou_loss
    from fcos_core.layers.iou_loss import iou_loss as loss

    calls = 0
    for kind in KINDS:
        for _, pred, target, weight in sample_inputs(kind, device, dtype, requires_grad=True):
            for reduction in ("none", "sum"):
                if kind == "box_giou":
                    result = giou_loss(pred, target, weight, reduction)
                else:
                    result = loss(pred, target, kind, weight, reduction)
                result.sum().backward()
                calls += 2
    return calls
