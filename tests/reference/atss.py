"""ATSS and RetinaNet written out slowly: one anchor, one box, one image at a time, in float64.

A pyramid is a list of levels (anchors, stride); anchors is a list over locations (row by row) of lists of A boxes.
"""
import math

import numpy as np
import torch

from tests.reference.fcos import RANGES, focal

MARGIN = 0.01


def pyramid(height, width, strides, sizes, ratios=(1.0,), shift=0.5):
    """Levels of an image of height x width pixels; one size per level."""
    levels = []
    for stride, size in zip(strides, sizes):
        shapes = []
        for ratio in ratios:
            w = round(math.sqrt(stride * stride / ratio))
            shapes.append((w * size / stride, round(w * ratio) * size / stride))
        locations = []
        for row in range(-(-height // stride)):
            for column in range(-(-width // stride)):
                x, y = (stride - 1) / 2 + shift + stride * column, (stride - 1) / 2 + shift + stride * row
                rows = [(x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2) for w, h in shapes]
                locations.append([tuple(np.float32(v).item() for v in box) for box in rows])
        levels.append((locations, stride))
    return levels


def flat_anchors(levels):
    return [anchor for locations, _ in levels for location in locations for anchor in location]


def iou(a, b):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + 1, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + 1, 0)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


def center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def distance(a, b):
    (x, y), (u, v) = center(a), center(b)
    return math.hypot(x - u, y - v)


def least_side(box, of):
    x, y = center(of)
    return min(x - box[0], y - box[1], box[2] - x, box[3] - y)


def give_to_best(claims, num_anchors):
    """claims: (anchor, IoU, box); the highest IoU wins, of equal ones the first box."""
    best, index = [-1.0] * num_anchors, [-1] * num_anchors
    for anchor, value, box in claims:
        if value > best[anchor]:
            best[anchor], index[anchor] = value, box
    return index


def assign_atss(levels, boxes, topk):
    """Index of the box of each anchor, -1 for background."""
    claims = []
    for number, box in enumerate(boxes):
        candidates, start = [], 0
        x, y = center(box)
        for locations, _ in levels:
            distances = []
            for place, anchors in enumerate(locations):
                u, v = center(anchors[0])
                distances.append(((u - x) ** 2 + (v - y) ** 2, -place))
            for _, minus_place in sorted(distances)[:topk]:  # of equal distances the higher place goes first
                anchors = locations[-minus_place]
                candidates += [(start - minus_place * len(anchors) + a, anchor) for a, anchor in enumerate(anchors)]
            start += len(locations) * len(locations[0])
        values = [iou(anchor, box) for _, anchor in candidates]
        mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        for (index, anchor), value in zip(candidates, values):
            if value >= mean + deviation and least_side(box, anchor) > MARGIN:
                claims.append((index, value, number))
    return give_to_best(claims, len(flat_anchors(levels)))


def assign_topk(levels, boxes, topk):
    anchors = flat_anchors(levels)
    far = max([distance(a, b) for a in anchors for b in boxes] + [0.0])
    claims = []
    for number, box in enumerate(boxes):
        values = [iou(anchor, box) - distance(anchor, box) / far / 1000 for anchor in anchors]
        for _, index in sorted(((v, i) for i, v in enumerate(values)), reverse=True)[:topk]:
            if least_side(box, anchors[index]) > MARGIN:
                claims.append((index, iou(anchors[index], box), number))
    return give_to_best(claims, len(anchors))


def assign_ssc(levels, boxes, topk=None):
    result = []
    for (locations, _), (low, high) in zip(levels, RANGES):
        for anchor in [anchor for location in locations for anchor in location]:
            best, index = math.inf, -1
            x, y = center(anchor)
            for number, box in enumerate(boxes):
                farthest = max(x - box[0], y - box[1], box[2] - x, box[3] - y)
                area = (box[2] - box[0] + 1) * (box[3] - box[1] + 1)
                if least_side(box, anchor) > MARGIN and low <= farthest <= high and area < best:
                    best, index = area, number
            result.append(index)
    return result


def match(anchors, boxes, high=0.5, low=0.4):
    """Index of the box of each anchor; -1 below the thresholds, -2 between them."""
    table = [[iou(anchor, box) for box in boxes] for anchor in anchors]
    best_of_box = [max(column) for column in zip(*table)]
    result = []
    for row in table:
        value = max(row + [-1.0])
        index = row.index(value) if row else -1
        kept = any(v == best and best > 0 for v, best in zip(row, best_of_box))
        result.append(index if value >= high or kept else -1 if value < low else -2)
    return result


def assign_iou(levels, boxes, topk=None):
    anchors = flat_anchors(levels)
    matches = match(anchors, boxes)
    return [-2 if m >= 0 and least_side(boxes[m], a) <= MARGIN else m for m, a in zip(matches, anchors)]


ASSIGN = {"ATSS": assign_atss, "TOPK": assign_topk, "SSC": assign_ssc, "IoU": assign_iou}


def decode(code, anchor, kind):
    (x, y), w, h = center(anchor), anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
    if kind == "POINT":
        return x - code[0] * w / 8, y - code[1] * h / 8, x + code[2] * w / 8, y + code[3] * h / 8
    if kind == "RCNN":
        x, y = anchor[0] + w / 2, anchor[1] + h / 2
    x, y = x + code[0] / 10 * w, y + code[1] / 10 * h
    w, h = (side * math.exp(min(c / 5, math.log(1000 / 16))) for side, c in ((w, code[2]), (h, code[3])))
    if kind == "RCNN":
        return x - w / 2, y - h / 2, x + w / 2 - 1, y + h / 2 - 1
    return x - (w - 1) / 2, y - (h - 1) / 2, x + (w - 1) / 2, y + (h - 1) / 2


def giou_loss(p, t):
    p = (p[0], p[1], max(p[0], p[2]), max(p[1], p[3]))
    overlap = max(min(p[2], t[2]) - max(p[0], t[0]), 0) * max(min(p[3], t[3]) - max(p[1], t[1]), 0)
    union = (p[2] - p[0]) * (p[3] - p[1]) + (t[2] - t[0]) * (t[3] - t[1]) - overlap + 1e-7
    enclosing = (max(p[2], t[2]) - min(p[0], t[0])) * (max(p[3], t[3]) - min(p[1], t[1])) + 1e-7
    return 1 - (overlap / union - (enclosing - union) / enclosing)


def flat_maps(maps, image, anchors):
    """[R, C] of one image: level by level, location by location, anchor by anchor."""
    rows = []
    for level in maps:
        values = level[image].double()
        channels = values.shape[0] // anchors
        for y in range(values.shape[1]):
            for x in range(values.shape[2]):
                rows += [values[a * channels : (a + 1) * channels, y, x].tolist() for a in range(anchors)]
    return rows


def losses(levels, maps, boxlists, positive_type="ATSS", kind="BOX", topk=9, weight=2.0):
    """(classification, regression, centerness) of a batch on one process."""
    anchors, per_location = flat_anchors(levels), len(levels[0][0][0])
    cls = reg = ctr = weight_sum = 0.0
    positives = 0
    for i, boxlist in enumerate(boxlists):
        boxes, classes = boxlist.bbox.double().tolist(), boxlist.get_field("labels").tolist()
        assigned = ASSIGN[positive_type](levels, boxes, topk)
        logits, codes, centerness = (flat_maps(level, i, per_location) for level in maps)
        for r, index in enumerate(assigned):
            label = classes[index] if index >= 0 else 0
            if index > -2:
                cls += sum(focal(z, c + 1 == label) for c, z in enumerate(logits[r]))
            if index >= 0:
                (x, y), box = center(anchors[r]), boxes[index]
                left, top, right, bottom = x - box[0], y - box[1], box[2] - x, box[3] - y
                target = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
                positives += 1
                weight_sum += target
                reg += target * giou_loss(decode(codes[r], anchors[r], kind), box)
                ctr += math.log1p(math.exp(centerness[r][0])) - target * centerness[r][0]
    positives = max(positives, 1)
    return cls / positives, weight * reg / weight_sum if weight_sum else 0.0, ctr / positives


def retinanet_losses(levels, maps, boxlists, beta=0.11, norm=4.0):
    """(classification, regression) of a batch."""
    anchors, per_location = flat_anchors(levels), len(levels[0][0][0])
    cls = reg = 0.0
    positives = 0
    for i, boxlist in enumerate(boxlists):
        boxes, classes = boxlist.bbox.double().tolist(), boxlist.get_field("labels").tolist()
        logits, codes = (flat_maps(level, i, per_location) for level in maps)
        for r, index in enumerate(match(anchors, boxes)):
            label = classes[index] if index >= 0 else 0
            if index > -2:
                cls += sum(focal(z, c + 1 == label) for c, z in enumerate(logits[r]))
            if index >= 0:
                positives += 1
                (x1, y1, x2, y2), (u1, v1, u2, v2) = anchors[r], boxes[index]
                w, h, g, k = x2 - x1 + 1, y2 - y1 + 1, u2 - u1 + 1, v2 - v1 + 1
                wanted = (10 * (u1 + g / 2 - x1 - w / 2) / w, 10 * (v1 + k / 2 - y1 - h / 2) / h)
                wanted += (5 * math.log(g / w), 5 * math.log(k / h))
                for d in [abs(a - b) for a, b in zip(codes[r], wanted)]:
                    reg += d * d / (2 * beta) if d < beta else d - beta / 2
    return cls / (positives + len(boxlists)), reg / max(1, positives * norm)


def post_process(levels, maps, image_sizes, kind, threshold, top_n, nms, limit):
    """list of (boxes, scores, labels); without centerness the score is the probability."""
    per_location = len(levels[0][0][0])
    results = []
    for i, (height, width) in enumerate(image_sizes):
        flat = [flat_maps(level, i, per_location) for level in maps]
        candidates, start = [], 0
        for locations, _ in levels:
            level = []
            for r, anchor in enumerate([a for location in locations for a in location], start):
                for c, z in enumerate(flat[0][r]):
                    p = 1 / (1 + math.exp(-z))
                    if p > threshold:
                        score = math.sqrt(p / (1 + math.exp(-flat[2][r][0]))) if len(maps) == 3 else p
                        box = decode(flat[1][r], anchor, kind)
                        box = [min(max(v, 0), m - 1) for v, m in zip(box, (width, height, width, height))]
                        level.append((score, c + 1, box))
            start += len(locations) * per_location
            candidates += sorted(level, key=lambda item: -item[0])[:top_n]
        kept = []
        for score, label, box in sorted(candidates, key=lambda item: -item[0]):
            if nms <= 0 or all(other != label or iou(box, b) <= nms for _, other, b in kept):
                kept.append((score, label, box))
        if 0 < limit < len(kept):
            kept = [item for item in kept if item[0] >= kept[limit - 1][0]]
        scores, labels, boxes = (np.array(column) for column in zip(*kept)) if kept else np.zeros((3, 0))
        results.append((boxes.reshape(-1, 4), scores, labels))
    return results


def nearest_anchors_of_the_recorded_runs(pyramid, points, topk):
    """Stand-in for targets.nearest_anchors: torch.topk over all distances, as the predecessor did it on a CPU.

    Which of several anchors at the same distance it takes follows no rule, so records with such ties need it.
    """
    per_box, start = topk * pyramid.per_location, 0
    all_centers, device, points = pyramid.centers.cpu(), points.device, points.cpu()
    found = torch.zeros(points.shape[:2] + (len(pyramid.counts), per_box), dtype=torch.int64)
    for level, count in enumerate(pyramid.counts):
        for image, centers in enumerate(points):
            offsets = all_centers[start : start + count, None] - centers[None]
            distances = offsets.pow(2).sum(dim=2).sqrt()
            index = distances.topk(min(per_box, count), dim=0, largest=False)[1] + start
            found[image, :, level, : len(index)] = index.t()
        start += count
    return found.flatten(2).to(device)
