"""TOOD written out slowly: one location, one box, one image at a time, in float64."""
import math

from tests.reference.atss import MARGIN, flat_maps, giou_loss
from tests.reference.gfl import iou, quality_focal, sigmoid


def bilinear(rows, y, x):
    """Value at (y, x) of a map given as rows; places beyond it count as its border."""
    y, x = min(max(y, 0.0), len(rows) - 1.0), min(max(x, 0.0), len(rows[0]) - 1.0)
    top, left = min(int(y), len(rows) - 1), min(int(x), len(rows[0]) - 1)
    bottom, right = min(top + 1, len(rows) - 1), min(left + 1, len(rows[0]) - 1)
    b, a = y - top, x - left
    upper = (1 - a) * rows[top][left] + a * rows[top][right]
    lower = (1 - a) * rows[bottom][left] + a * rows[bottom][right]
    return (1 - b) * upper + b * lower


def aligned_distances(distances, offsets):
    """[4][H][W] and [8][H][W] nested lists -> [4][H][W]."""
    height, width = len(distances[0]), len(distances[0][0])
    signs = (-1, -1, 1, 1)
    sides = [
        [[(j, i, j, i)[k] + signs[k] * distances[k][i][j] for j in range(width)] for i in range(height)]
        for k in range(4)
    ]
    result = [[[0.0] * width for _ in range(height)] for _ in range(4)]
    for i in range(height):
        for j in range(width):
            moved = [bilinear(sides[k], i + offsets[2 * k][i][j], j + offsets[2 * k + 1][i][j]) for k in range(4)]
            if moved[0] > moved[2] or moved[1] > moved[3]:
                moved = [sides[k][i][j] for k in range(4)]
            for k in range(4):
                result[k][i][j] = signs[k] * (moved[k] - (j, i, j, i)[k])
    return result


def assign(locations, scores, predicted, boxes, classes, topk, alpha=1.0, beta=6.0):
    """(index of the box of each location, -1 for background; quality) of one image.

    locations: list of (x, y); scores: [R][C]; predicted: list of boxes.
    """
    table = {}
    for number, (box, label) in enumerate(zip(boxes, classes)):
        found = []
        for r, (x, y) in enumerate(locations):
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > MARGIN
            overlap = iou(predicted[r], box)
            if inside and overlap > 0:
                found.append((scores[r][label - 1] ** alpha * overlap**beta, overlap, r))
        for t, overlap, r in sorted(found, reverse=True)[:topk]:
            table[number, r] = (t, overlap)
    index, quality = [-1] * len(locations), [0.0] * len(locations)
    for (number, r), (_, overlap) in sorted(table.items()):
        if index[r] < 0 or overlap > table[index[r], r][1]:
            index[r] = number
    for number in range(len(boxes)):
        own = [r for r in range(len(locations)) if index[r] == number]
        if own:
            largest = max(table[number, r][0] for r in own)
            best = max(table[number, r][1] for r in own)
            for r in own:
                quality[r] = table[number, r][0] / largest * best
    return index, quality


def losses(locations, strides, maps, boxlists, topk=13, alpha=1.0, beta=6.0, gamma=2.0, weight=2.0):
    """(classification, GIoU) of a batch on one process; locations and strides are lists over all R locations."""
    cls = reg = total = 0.0
    for i, boxlist in enumerate(boxlists):
        boxes, classes = boxlist.bbox.double().tolist(), boxlist.get_field("labels").tolist()
        logits, distances = (flat_maps(level, i, 1) for level in maps)
        predicted = [
            (x - d[0] * s, y - d[1] * s, x + d[2] * s, y + d[3] * s)
            for (x, y), s, d in zip(locations, strides, distances)
        ]
        scores = [[sigmoid(z) for z in row] for row in logits]
        index, quality = assign(locations, scores, predicted, boxes, classes, topk, alpha, beta)
        for r, number in enumerate(index):
            label = classes[number] if number >= 0 else 0
            cls += sum(quality_focal(z, quality[r] if c + 1 == label else 0.0, gamma) for c, z in enumerate(logits[r]))
            if number >= 0:
                reg += quality[r] * giou_loss(predicted[r], boxes[number])
        total += sum(quality)
    return cls / max(total, 1.0), weight * reg / max(total, 1.0)


def logit_of_mean(a, b):
    """Logit of sqrt(sigmoid(a) * sigmoid(b))."""
    p = math.sqrt(sigmoid(a) * sigmoid(b))
    return math.log(p / (1 - p))
