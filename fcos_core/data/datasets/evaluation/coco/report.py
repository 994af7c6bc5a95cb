"""What a person reads after an evaluation: a table per class, and score thresholds per class."""

import logging

import numpy as np

__all__ = ["per_class_table", "compute_thresholds_for_classes", "format_table"]

# Axes of COCOeval's arrays: precision and scores [T thresholds of IoU, R recall points, K classes, A areas, M limits].
_ALL_AREAS = 0
_ALL_DETECTIONS = -1


def per_class_table(coco_eval):
    """AP and AP50 of every class.

    Args:
        coco_eval: an evaluated COCOeval for boxes.

    Returns:
        list of (name, images with the class, boxes without crowds, AP, AP50), in the order of the category ids; the
        metrics are NaN for a class that has no box to find.
    """
    precision = np.asarray(coco_eval.eval["precision"])[:, :, :, _ALL_AREAS, _ALL_DETECTIONS]  # [T,R,K]
    at_50 = int(np.argmin(np.abs(np.asarray(coco_eval.params.iouThrs) - 0.5)))
    evaluated = set(coco_eval.params.imgIds)
    images, boxes = {}, {}
    for annotation in coco_eval.cocoGt.dataset["annotations"]:
        if annotation["image_id"] in evaluated and not annotation["iscrowd"]:
            category = annotation["category_id"]
            images.setdefault(category, set()).add(annotation["image_id"])
            boxes[category] = boxes.get(category, 0) + 1
    names = {category["id"]: category["name"] for category in coco_eval.cocoGt.dataset["categories"]}
    rows = []
    for k, category in enumerate(coco_eval.params.catIds):
        ap, ap50 = _mean(precision[:, :, k]), _mean(precision[at_50, :, k])
        rows.append((names[category], len(images.get(category, ())), boxes.get(category, 0), ap, ap50))
    return rows


def _mean(precision):
    """Mean over the entries that exist: -1 stands for "no box of this class"."""
    present = precision[precision > -1]
    return float(present.mean()) if present.size else float("nan")


def compute_thresholds_for_classes(coco_eval):
    """Score threshold of the largest F-measure of every class, at IoU 0.5, all areas, 100 detections.

    The F-measure is 2 P R / (P + R) over the points of the precision-recall curve. The thresholds are what one would
    cut detections at to show them to a person; they are logged as a list that can be pasted into code.

    Args:
        coco_eval: an evaluated COCOeval for boxes.

    Returns:
        list[float]: one per class, in the order of the category ids; NaN for a class of which nothing was found.
    """
    logger = logging.getLogger("fcos_core.inference")
    precision = np.asarray(coco_eval.eval["precision"])[0, :, :, _ALL_AREAS, _ALL_DETECTIONS]  # [R,K]
    scores = np.asarray(coco_eval.eval["scores"])[0, :, :, _ALL_AREAS, _ALL_DETECTIONS]  # [R,K]
    recall = np.asarray(coco_eval.params.recThrs)[:, None]  # [R,1]
    f_measure = 2 * precision * recall / np.maximum(precision + recall, 1e-6)
    best = f_measure.argmax(axis=0)  # [K]
    columns = np.arange(precision.shape[1])
    largest = f_measure[best, columns]  # 0 without a right detection, negative for a class without boxes
    thresholds = [float(value) for value in np.where(largest > 0, scores[best, columns], np.nan)]
    present = largest[largest > 0]
    logger.info(
        "Score thresholds of the largest F-measure (mean %.4f over classes): [%s]",
        float(present.mean()) if present.size else 0.0,
        ", ".join("{:.4f}".format(value) for value in thresholds),
    )
    return thresholds


def format_table(header, rows):
    """Text table: first column left, others right; floats with three digits, NaN as a dash."""
    cells = [list(header)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        lines.append("  ".join([first] + [text.rjust(width) for text, width in zip(row[1:], widths[1:])]))
    return "\n".join(lines)


def _cell(value):
    if isinstance(value, float):
        return "-" if np.isnan(value) else "{:.3f}".format(value)
    return str(value)
