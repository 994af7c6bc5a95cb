"""NMS, slow and obvious, in float64; and the inputs that tests and benchmarks share."""

from typing import NamedTuple

import numpy as np
import torch


class Sample(NamedTuple):
    """One list of boxes: boxes [M, 4], scores [M], labels int64 [M]."""

    name: str
    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


def iou(box, others):
    """IoU of one box [4] with others [B, 4], sides counted in pixels from the first to the last one."""
    width = np.maximum(0, np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0]) + 1)
    height = np.maximum(0, np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1]) + 1)
    common = width * height
    with np.errstate(invalid="ignore", divide="ignore"):
        return common / (area(box[None]) + area(others) - common)


def area(boxes):
    """Pixels of boxes [B, 4]; none for a box that ends before it begins."""
    return np.maximum(0, boxes[:, 2] - boxes[:, 0] + 1) * np.maximum(0, boxes[:, 3] - boxes[:, 1] + 1)


def ml_nms(boxes, scores, labels, iou_threshold):
    """Ascending indices of the boxes that stay; labels None: all alike."""
    boxes = boxes.detach().double().cpu().numpy()
    scores = scores.detach().double().cpu().tolist()
    labels = [0] * len(scores) if labels is None else labels.cpu().tolist()
    is_nan = [score != score for score in scores]
    order = sorted(range(len(scores)), key=lambda i: (is_nan[i], 0 if is_nan[i] else -scores[i], i))
    kept = {}
    for i in order:
        rivals = kept.setdefault(labels[i], [])
        if not (iou(boxes[i], boxes[rivals]) > iou_threshold).any():
            rivals.append(i)
    return sorted(i for rivals in kept.values() for i in rivals)


def batched_nms(boxes, scores, labels, iou_threshold):
    """Nested list [N, K] of bool; a label below 0 is padding."""
    mask = []
    for image_boxes, image_scores, image_labels in zip(boxes, scores, labels):
        real = (image_labels >= 0).nonzero(as_tuple=True)[0]
        kept = ml_nms(image_boxes[real], image_scores[real], image_labels[real], iou_threshold)
        chosen = set(real[kept].tolist())
        mask.append([k in chosen for k in range(len(image_labels))])
    return mask


def random_boxes(num_boxes, num_labels=5, clusters=None, seed=0):
    """Boxes of 8 to 200 pixels on a grid of quarter pixels, in clusters like those of a detector."""
    rng = np.random.RandomState(seed)
    clusters = clusters or max(1, num_boxes // 12)
    centres = rng.uniform(-50, 1000, (clusters, 2))
    sizes = rng.uniform(8, 200, (clusters, 2))
    which = rng.randint(0, clusters, num_boxes)
    size = sizes[which] * rng.uniform(0.8, 1.25, (num_boxes, 2))
    corner = centres[which] + rng.normal(0, 0.1, (num_boxes, 2)) * size
    boxes = np.round(4 * np.concatenate([corner, corner + size], 1)) / 4
    scores = rng.permutation(num_boxes) / max(1, num_boxes)
    labels = rng.randint(0, num_labels, num_boxes)
    return torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(labels).long()


def tied_boxes(num_boxes, num_labels=3, seed=0):
    """Boxes of few shapes with few scores, so that IoUs equal each other, thresholds and 0; strange numbers, too."""
    rng = np.random.RandomState(seed)
    corner = rng.randint(0, max(2, int(num_boxes**0.5)), (num_boxes, 2))
    boxes = np.concatenate([corner, corner + rng.randint(-2, 7, (num_boxes, 2))], 1).astype(np.float64)
    strange = rng.rand(num_boxes, 4)
    boxes[strange < 0.002] = np.nan
    boxes[strange > 0.999] = np.inf
    boxes[(strange > 0.998) & (strange < 0.999)] = -np.inf
    scores = rng.choice([0.0, -0.0, 0.25, 0.5, 1.0, -1.0, np.nan, np.inf, -np.inf], num_boxes)
    labels = rng.randint(-1, num_labels, num_boxes)
    return torch.from_numpy(boxes).float(), torch.from_numpy(scores).float(), torch.from_numpy(labels).long()


def sample_inputs(device="cpu", dtype=torch.float32):
    """List of Sample: typical, none, one, ties, strange numbers, strides, more than one block of the kernel."""
    inf, nan = float("inf"), float("nan")
    boxes, scores, labels = random_boxes(300)
    many = random_boxes(2600, num_labels=1, seed=1)
    strange_boxes = torch.tensor(
        [
            [10.0, 10, 19, 19],
            [10, 10, 19, 18],  # overlaps the first
            [30, 30, 20, 40],  # ends before it begins
            [30, 30, 20, 40],
            [30, 30, 30, 30],  # one pixel
            [30, 30, 30, 30],
            [40, 40, 39, 60],  # no pixel, not less
            [40, 40, 39.5, 60],  # half a pixel
            [nan, 10, 19, 19],
            [10, 10, nan, 19],
            [10, nan, 19, 19],
            [-inf, -inf, inf, inf],
            [-inf, -inf, inf, inf],
            [0, 0, inf, 5],
        ]
    )
    strange_scores = torch.tensor([0.1, nan, -inf, inf, 0.5, 0.5, -1, 0, 3, 2, 1, 0.3, 0.2, nan])
    cases = [
        ("typical", boxes, scores, labels),
        ("none", boxes[:0], scores[:0], labels[:0]),
        ("one", boxes[:1], scores[:1], labels[:1]),
        ("tied scores", boxes, (scores * 4).floor(), labels),
        ("all scores nan", boxes[:40], torch.full((40,), nan), labels[:40]),
        ("some scores nan", boxes, scores.masked_fill(labels == 1, nan).masked_fill(labels == 2, -inf), labels),
        ("one box many times", boxes[:1].repeat(70, 1), scores[:70], labels[:70] % 2),
        ("strange boxes", strange_boxes, strange_scores, torch.zeros(14, dtype=torch.int64)),
        ("negative labels", boxes, scores, labels - 3),
        ("more than a block", many[0], many[1], many[2]),
    ]
    samples = [Sample(n, b.to(device, dtype), s.to(device, dtype), t.to(device)) for n, b, s, t in cases]
    spread = Sample(
        "not contiguous",
        boxes.to(device, dtype).t().contiguous().t(),
        torch.stack([scores, scores], 1).to(device, dtype)[:, 0],
        torch.stack([labels, labels], 1).to(device)[:, 0],
    )
    assert not spread.boxes.is_contiguous() and not spread.scores.is_contiguous()
    return samples + [spread]


def batched_inputs(device="cpu", dtype=torch.float32):
    """List of Sample with boxes [N, K, 4], scores [N, K], labels [N, K]: typical, empty ones, padding, strides."""
    lists = [random_boxes(200, seed=i) for i in range(3)]
    boxes, scores, labels = (torch.stack(parts) for parts in zip(*lists))
    padded = labels.clone()
    padded[0, 150:] = -1
    padded[1, ::3] = -7
    padded[2] = -1
    spread = boxes.transpose(0, 1).contiguous().transpose(0, 1)
    cases = [
        ("typical", boxes, scores, labels),
        ("padding", boxes, scores, padded),
        ("padding that would win", boxes, scores.masked_fill(padded < 0, 9.0), padded),
        ("no image", boxes[:0], scores[:0], labels[:0]),
        ("no box", boxes[:, :0], scores[:, :0], labels[:, :0]),
        ("not contiguous", spread, scores.t().contiguous().t(), padded),
    ]
    return [Sample(n, b.to(device, dtype), s.to(device, dtype), t.to(device)) for n, b, s, t in cases]


def exercise(device, dtype, small):
    """Call the three operators on every sample; returns the number of calls."""
    from fcos_core import layers

    calls = 0
    for _, boxes, scores, labels in sample_inputs(device, dtype):
        if small and len(boxes) > 1000 and dtype != torch.float32:
            boxes, scores, labels = boxes[:500], scores[:500], labels[:500]
        for threshold in (0.0, 0.5):
            layers.nms(boxes, scores, threshold)
            layers.ml_nms(boxes, scores, labels, threshold)
            calls += 2
    for _, boxes, scores, labels in batched_inputs(device, dtype):
        layers.batched_nms(boxes, scores, labels, 0.5)
        calls += 1
    return calls
