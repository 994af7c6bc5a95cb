"""FCOS written out slowly: one location, one box, one image at a time, in float64."""
import math

import numpy as np
import torch

RANGES = [(-1, 64), (64, 128), (128, 256), (256, 512), (512, 100000000)]


def assign(locations, strides, boxlist, radius):
    """labels [R] and distances [R, 4] of one image."""
    boxes = boxlist.bbox.double().numpy()
    classes = boxlist.get_field("labels").numpy()
    labels, sides = [], []
    for points, stride, (low, high) in zip(locations, strides, RANGES):
        for x, y in points.astype(np.float64):
            best, label, chosen = math.inf, 0, (0.0, 0.0, 0.0, 0.0)
            for (x1, y1, x2, y2), c in zip(boxes, classes):
                ltrb = (x - x1, y - y1, x2 - x, y2 - y)
                region = (x1, y1, x2, y2)
                if radius > 0:
                    cx, cy, reach = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
                    region = (max(x1, cx - reach), max(y1, cy - reach), min(x2, cx + reach), min(y2, cy + reach))
                inside = region[0] < x < region[2] and region[1] < y < region[3]
                area = (x2 - x1 + 1) * (y2 - y1 + 1)
                if inside and low <= max(ltrb) <= high and area < best:
                    best, label, chosen = area, c, ltrb
            labels.append(label)
            sides.append(chosen)
    return np.array(labels, np.int64), np.array(sides)


def focal(logit, is_target, gamma=2.0, alpha=0.25):
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p) ** gamma * math.log(p) if is_target else -(1 - alpha) * p**gamma * math.log(1 - p)


def _iou_loss(p, t, kind):
    overlap = (min(p[0], t[0]) + min(p[2], t[2])) * (min(p[1], t[1]) + min(p[3], t[3]))
    enclosing = (max(p[0], t[0]) + max(p[2], t[2])) * (max(p[1], t[1]) + max(p[3], t[3])) + 1e-7
    union = (p[0] + p[2]) * (p[1] + p[3]) + (t[0] + t[2]) * (t[1] + t[3]) - overlap
    iou = (overlap + 1) / (union + 1)
    return {"iou": -math.log(iou), "linear_iou": 1 - iou, "giou": 1 - (iou - (enclosing - union) / enclosing)}[kind]


def losses(locations, strides, maps, boxlists, radius, norm, kind):
    """(classification, regression, centerness) of a batch on one process."""
    cls = reg = ctr = weight_sum = 0.0
    positives = 0
    for i, boxlist in enumerate(boxlists):
        labels, sides = assign(locations, strides, boxlist, radius)
        scale = np.concatenate([np.full(len(p), s if norm else 1.0) for p, s in zip(locations, strides)])
        logits, regression, centerness = (
            np.concatenate([m[i].flatten(1).t().double().numpy() for m in level]) for level in maps
        )
        for r, label in enumerate(labels):
            cls += sum(focal(z, c + 1 == label) for c, z in enumerate(logits[r]))
            if label > 0:
                t = sides[r] / scale[r]
                weight = math.sqrt(min(t[0], t[2]) / max(t[0], t[2]) * min(t[1], t[3]) / max(t[1], t[3]))
                z = centerness[r, 0]
                positives += 1
                weight_sum += weight
                reg += weight * _iou_loss(regression[r], t, kind)
                ctr += math.log1p(math.exp(z)) - weight * z
    positives = max(positives, 1)
    return cls / positives, reg / weight_sum if weight_sum else 0.0, ctr / positives


def _overlap(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


def post_process(locations, maps, image_sizes, threshold, top_n, nms, limit):
    """list of (boxes, scores, labels), as the written procedure makes them."""
    results = []
    for i, (height, width) in enumerate(image_sizes):
        candidates = []
        for points, cls, reg, ctr in zip(locations, *maps):
            level = []
            p = torch.sigmoid(cls[i].double()).permute(1, 2, 0).reshape(-1, cls.shape[1])
            q = torch.sigmoid(ctr[i].double()).reshape(-1)
            sides = reg[i].double().permute(1, 2, 0).reshape(-1, 4)
            for r in range(len(points)):
                for c in range(p.shape[1]):
                    if p[r, c] > threshold:
                        x, y = points[r].tolist()
                        left, top, right, bottom = sides[r].tolist()
                        box = [x - left, y - top, x + right, y + bottom]
                        box = [min(max(v, 0), m - 1) for v, m in zip(box, (width, height, width, height))]
                        level.append((math.sqrt(p[r, c] * q[r]), c + 1, box))
            candidates += sorted(level, key=lambda item: -item[0])[:top_n]
        kept = []
        for score, label, box in sorted(candidates, key=lambda item: -item[0]):
            if nms <= 0 or all(other != label or _overlap(box, b) <= nms for _, other, b in kept):
                kept.append((score, label, box))
        if 0 < limit < len(kept):
            kept = [item for item in kept if item[0] >= kept[limit - 1][0]]
        scores, labels, boxes = (np.array(column) for column in zip(*kept)) if kept else np.zeros((3, 0))
        results.append((boxes.reshape(-1, 4), scores, labels))
    return results
