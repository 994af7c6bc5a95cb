"""GFL written out slowly: one location, one side, one box at a time, in float64."""
import math

import torch

from tests.reference.atss import assign_atss, center, flat_anchors, flat_maps, giou_loss


def softmax(logits):
    highest = max(logits)
    powers = [math.exp(z - highest) for z in logits]
    return [power / sum(powers) for power in powers]


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def quality_focal(z, y, beta):
    """-|y - p|^beta ((1 - y) log(1 - p) + y log(p))."""
    p = sigmoid(z)
    return -(abs(y - p) ** beta) * ((1 - y) * math.log(1 - p) + y * math.log(p))


def expected(logits, sides=4):
    """Mean of each side's distribution."""
    length = len(logits) // sides
    return [sum(i * p for i, p in enumerate(softmax(logits[k * length : (k + 1) * length]))) for k in range(sides)]


def distribution_focal(logits, y):
    """-((i + 1 - y) log(S_i) + (y - i) log(S_(i + 1))), of one side."""
    y = min(max(y, 0.0), len(logits) - 1.0)
    i = min(int(y), len(logits) - 2)
    shares = softmax(logits)
    return -((i + 1 - y) * math.log(shares[i]) + (y - i) * math.log(shares[i + 1]))


def iou(a, b):
    """Without the pixel."""
    width, height = (max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0) for k in (0, 1))
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return width * height / (areas[0] + areas[1] - width * height)


def sides_of(levels):
    """Stride of each location."""
    return [stride for locations, stride in levels for _ in locations]


def losses(levels, maps, boxlists, topk=9, beta=2.0, reg_weight=2.0, dfl_weight=0.25):
    """(quality focal, GIoU, distribution focal) of a batch on one process."""
    anchors, strides = flat_anchors(levels), sides_of(levels)
    cls = reg = dfl = weight_sum = 0.0
    positives = 0
    for i, boxlist in enumerate(boxlists):
        boxes, classes = boxlist.bbox.double().tolist(), boxlist.get_field("labels").tolist()
        assigned = assign_atss(levels, boxes, topk) if boxes else [-1] * len(anchors)
        logits, codes = (flat_maps(level, i, 1) for level in maps)
        for r, index in enumerate(assigned):
            quality, label = 0.0, 0
            if index >= 0:
                (x, y), box, label = center(anchors[r]), boxes[index], classes[index]
                d = [side * strides[r] for side in expected(codes[r])]
                predicted = (x - d[0], y - d[1], x + d[2], y + d[3])
                quality = iou(predicted, box)
                weight = max(sigmoid(z) for z in logits[r])
                positives += 1
                weight_sum += weight
                reg += weight * giou_loss(predicted, box)
                wanted = [side / strides[r] for side in (x - box[0], y - box[1], box[2] - x, box[3] - y)]
                length = len(codes[r]) // 4
                parts = [codes[r][k * length : (k + 1) * length] for k in range(4)]
                dfl += weight * sum(distribution_focal(part, w) for part, w in zip(parts, wanted)) / 4
            cls += sum(quality_focal(z, quality if c + 1 == label else 0.0, beta) for c, z in enumerate(logits[r]))
    weight_sum = weight_sum or 1.0
    return cls / max(positives, 1), reg_weight * reg / weight_sum, dfl_weight * dfl / weight_sum


def expected_maps(maps):
    """[N, 4 * (n + 1), H, W] logits of each level -> [N, 4, H, W] distances in strides, one location at a time."""
    result = []
    for level in maps:
        images, _, height, width = level.shape
        distances = torch.zeros(images, 4, height, width, dtype=torch.float64)
        for i in range(images):
            for row in range(height):
                for column in range(width):
                    values = expected(level[i, :, row, column].double().tolist())
                    distances[i, :, row, column] = torch.tensor(values, dtype=torch.float64)
        result.append(distances)
    return result
