"""VOC evaluation: average precision at IoU 0.5, with 11 points (VOC 2007) and as the area under the curve (since 2010).

A detection belongs to the object of its class that it overlaps most (inclusive pixel widths, the "+1"). It is right if
that IoU reaches the threshold and no better-scored detection took the object; it does not count if the object is marked
difficult. Source: M. Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge", IJCV 2010, and its devkit.
"""

import os

import numpy as np

from fcos_core.structures.boxlist_ops import boxlist_iou

from ..coco.report import format_table
from .coco_style import coco_style_evaluation

__all__ = ["do_voc_evaluation", "eval_detection_voc", "calc_detection_voc_prec_rec", "calc_detection_voc_ap"]


def do_voc_evaluation(dataset, predictions, output_folder, logger, scorer="pycocotools"):
    """Score detections on a VOC data set, and log VOC and COCO metrics.

    Args:
        dataset (PascalVOCDataset)
        predictions (list[BoxList]): one per image in the order of the data set, fields ``scores`` and ``labels``.
        output_folder (str): receives ``result.txt``; None writes nothing.
        logger (logging.Logger)
        scorer (str): program for the COCO metrics, "pycocotools" or "faster_coco_eval"; where it is missing, or is
            None, the VOC metrics stand alone.

    Returns:
        dict: ``ap`` (one per label, NaN for label 0 and for classes without objects) and ``map`` with the 11-point
        metric, ``ap_area`` and ``map_area`` with the area metric, ``coco`` (COCOResults or None) and its metrics by
        name (``AP``, ``AP50``, ...). Empty for a data set without annotations.
    """
    if not dataset.has_annotations:
        logger.warning(
            "This data set has no annotations, so there is nothing to score: %d detections on %d images, no AP.",
            sum(len(prediction) for prediction in predictions),
            len(dataset),
        )
        return {}
    predictions, truths = _in_original_size(dataset, predictions)
    prec, rec = calc_detection_voc_prec_rec(truths, predictions, iou_thresh=0.5)
    ap, ap_area = (calc_detection_voc_ap(prec, rec, use_07_metric=old) for old in (True, False))
    result = {"ap": ap, "map": _nanmean(ap), "ap_area": ap_area, "map_area": _nanmean(ap_area)}

    coco_eval_result, coco_per_class = coco_style_evaluation(dataset, predictions, truths, logger, scorer)
    result["coco"] = coco_eval_result
    if coco_eval_result is not None:
        result.update(coco_eval_result.results["bbox"])
    text = _report(dataset.categories, result, coco_per_class)
    logger.info("%s", text)
    if output_folder:
        with open(os.path.join(output_folder, "result.txt"), "w", encoding="utf-8") as f:
            f.write(text + "\n")
    return result


def _in_original_size(dataset, predictions):
    """Predictions and ground truth of every image, as corners in the frame of the original image."""
    resized, truths = [], []
    for index, prediction in enumerate(predictions):
        info = dataset.get_img_info(index)
        resized.append(prediction.resize((info["width"], info["height"])).convert("xyxy"))
        truths.append(dataset.get_groundtruth(index).convert("xyxy"))
    return resized, truths


def _report(categories, result, coco_per_class):
    rows = []
    for label, name in enumerate(categories, 1):
        ap = [
            float(values[label]) if label < len(values) else float("nan")
            for values in (result["ap"], result["ap_area"])
        ]
        rows.append([name] + ap + list(coco_per_class.get(name, ())))
    rows.append(["mean", result["map"], result["map_area"]])
    header = ["class", "VOC AP50 (11 points)", "VOC AP50 (area)"]
    if result["coco"] is not None:
        header += ["COCO AP", "COCO AP50"]
        rows[-1] += [result["coco"].results["bbox"][metric] for metric in ("AP", "AP50")]
    return "mAP: {:.4f}\n{}".format(result["map"], format_table(header, rows))


def eval_detection_voc(pred_boxlists, gt_boxlists, iou_thresh=0.5, use_07_metric=False):
    """Average precision per class.

    Args:
        pred_boxlists (list[BoxList]): one per image, fields ``labels`` and ``scores``.
        gt_boxlists (list[BoxList]): in the same frames, fields ``labels`` and, where there are any, ``difficult``.
        iou_thresh (float): IoU from which on a detection is right.
        use_07_metric (bool): 11 points instead of the area under the curve.

    Returns:
        dict: ``ap`` (float64, one per label from 0 on; NaN for a class without objects) and ``map``, the mean of
        the rest.
    """
    prec, rec = calc_detection_voc_prec_rec(gt_boxlists, pred_boxlists, iou_thresh)
    ap = calc_detection_voc_ap(prec, rec, use_07_metric=use_07_metric)
    return {"ap": ap, "map": _nanmean(ap)}


def calc_detection_voc_prec_rec(gt_boxlists, pred_boxlists, iou_thresh=0.5):
    """Precision and recall per class, over all images.

    Args:
        gt_boxlists, pred_boxlists, iou_thresh: see `eval_detection_voc`.

    Returns:
        (prec, rec): lists over the labels from 0 on of float64 arrays over the detections of that class by falling
        score. ``prec`` is None for a class with neither objects nor detections, ``rec`` for a class without objects.

    Raises:
        ValueError: different numbers of images.
    """
    if len(gt_boxlists) != len(pred_boxlists):
        raise ValueError(
            "calc_detection_voc_prec_rec: expected one prediction per image, got {} for {} images".format(
                len(pred_boxlists), len(gt_boxlists)
            )
        )
    objects = {}  # label -> number of objects that are not difficult
    scores, matches = {}, {}  # label -> list of arrays over images; a match is 1 right, 0 wrong, -1 does not count
    for truth, prediction in zip(gt_boxlists, pred_boxlists):
        truth_labels, labels = _field(truth, "labels", np.int64), _field(prediction, "labels", np.int64)
        difficult = _field(truth, "difficult", bool) if truth.has_field("difficult") else np.zeros(len(truth), bool)
        for label in np.unique(np.concatenate([truth_labels, labels])).tolist():
            of_truth, of_prediction = np.flatnonzero(truth_labels == label), np.flatnonzero(labels == label)
            score = _field(prediction, "scores", np.float64)[of_prediction]
            order = np.argsort(-score, kind="stable")
            of_prediction = of_prediction[order]
            iou = boxlist_iou(prediction[of_prediction.tolist()], truth[of_truth.tolist()]).cpu().numpy()
            objects[label] = objects.get(label, 0) + int((~difficult[of_truth]).sum())
            scores.setdefault(label, []).append(score[order])
            matches.setdefault(label, []).append(_match(iou, difficult[of_truth], iou_thresh))
    return _curves(objects, scores, matches)


def _match(iou, difficult, iou_thresh):
    """1, 0 or -1 for every detection of one class in one image.

    Args:
        iou ([P,G]): detections by falling score against objects.
        difficult (bool [G])
    """
    match = np.zeros(len(iou), np.int64)
    if iou.shape[1] == 0:
        return match
    taken = np.zeros(iou.shape[1], bool)
    for row, best in enumerate(iou.argmax(axis=1)):
        if iou[row, best] < iou_thresh:
            continue
        if difficult[best]:
            match[row] = -1
        elif not taken[best]:
            match[row] = 1
            taken[best] = True
    return match


def _curves(objects, scores, matches):
    labels = max(objects) + 1 if objects else 1
    prec, rec = [None] * labels, [None] * labels
    for label, count in objects.items():
        score, match = np.concatenate(scores[label]), np.concatenate(matches[label])
        match = match[np.argsort(-score, kind="stable")]
        right, wrong = np.cumsum(match == 1), np.cumsum(match == 0)
        # Before the first detection that counts there is no precision; 0/0 would be NaN.
        prec[label] = right / np.maximum(right + wrong, 1).astype(np.float64)
        if count > 0:
            rec[label] = right / float(count)
    return prec, rec


def calc_detection_voc_ap(prec, rec, use_07_metric=False):
    """Average precision from precision and recall.

    Args:
        prec, rec: see `calc_detection_voc_prec_rec`.
        use_07_metric (bool): mean of the best precision at recall 0, 0.1, ..., 1; otherwise the area under the curve
            after making precision fall monotonously.

    Returns:
        float64 [labels]: NaN where precision or recall is None.
    """
    ap = np.full(len(prec), np.nan)
    for label, (precision, recall) in enumerate(zip(prec, rec)):
        if precision is None or recall is None:
            continue
        if use_07_metric:
            # Divided, not stepped by 0.1: 0.3 must be the same float as a recall of 3 objects in 10.
            points = np.arange(11) / 10.0
            ap[label] = np.mean(
                [precision[recall >= point].max() if (recall >= point).any() else 0.0 for point in points]
            )
        else:
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            ap[label] = np.sum(np.diff(np.concatenate([[0.0], recall])) * envelope)
    return ap


def _field(boxlist, name, dtype):
    return np.asarray(boxlist.get_field(name).cpu()).astype(dtype)


def _nanmean(values):
    """np.nanmean without its warning when there is nothing."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
