"""COCO evaluation of box detections: json, AP and its table per class, checks against expected values."""

import json
import logging
import os

import torch

from fcos_core.config.not_carried import RESULTS, module_getattr

from .proposals import evaluate_box_proposals
from .report import compute_thresholds_for_classes, format_table, per_class_table
from .results import COCOResults, check_expected_results
from .scorer import score_boxes

__all__ = [
    "COCOResults",
    "check_expected_results",
    "compute_thresholds_for_classes",
    "do_coco_evaluation",
    "evaluate_box_proposals",
    "evaluate_predictions_on_coco",
    "prepare_for_coco_detection",
]

__getattr__ = module_getattr(
    __name__, dict.fromkeys(("prepare_for_coco_keypoint", "prepare_for_coco_segmentation"), RESULTS)
)


def do_coco_evaluation(
    dataset,
    predictions,
    box_only,
    output_folder,
    iou_types,
    expected_results,
    expected_results_sigma_tol,
    scorer="pycocotools",
):
    """Score detections on a COCO-format data set.

    A data set without annotations gets its detections written (to be sent to an evaluation server) and a notice instead
    of metrics.

    Args:
        dataset (COCODataset)
        predictions (list[BoxList]): one per image in the order of the data set, fields ``scores`` and ``labels``.
        box_only (bool): score class-less proposals by average recall instead (field ``objectness``).
        output_folder (str): receives ``bbox.json`` and ``coco_results.pth``; None writes nothing.
        iou_types (tuple[str]): only "bbox".
        expected_results, expected_results_sigma_tol: see `check_expected_results`.
        scorer (str): "pycocotools" or "faster_coco_eval".

    Returns:
        (COCOResults, dict): the metrics, and the json-ready detections by task. For ``box_only`` the dict is empty.

    Raises:
        ValueError: another iou_type than "bbox".
    """
    logger = logging.getLogger("fcos_core.inference")
    unknown = [iou_type for iou_type in iou_types if iou_type != "bbox"]
    if unknown:
        raise ValueError(
            "do_coco_evaluation: expected iou_types ('bbox',), got {}; this package detects boxes".format(unknown)
        )
    if box_only:
        results = _score_proposals(dataset, predictions, logger)
        _save_results(results, output_folder)
        check_expected_results(results, expected_results, expected_results_sigma_tol)
        return results, {}

    results = COCOResults("bbox")
    detections = prepare_for_coco_detection(predictions, dataset)
    json_file = os.path.join(output_folder, "bbox.json") if output_folder else None
    if not dataset.has_annotations:
        _write_json(detections, json_file)
        logger.warning(
            "This data set has no annotations, so there is nothing to score: %d detections on %d images%s, no AP.",
            len(detections),
            len(dataset),
            " were written to {}".format(json_file) if json_file else "",
        )
        return results, {"bbox": detections}

    coco_eval = evaluate_predictions_on_coco(dataset.coco, detections, json_file, "bbox", scorer)
    results.update(coco_eval)
    logger.info("Per class:\n%s", format_table(("class", "images", "boxes", "AP", "AP50"), per_class_table(coco_eval)))
    compute_thresholds_for_classes(coco_eval)
    logger.info("%s", results)
    _save_results(results, output_folder)
    check_expected_results(results, expected_results, expected_results_sigma_tol)
    return results, {"bbox": detections}


def prepare_for_coco_detection(predictions, dataset):
    """Detections as COCO json writes them.

    Args:
        predictions (list[BoxList]): one per image in the order of the data set, in any frame.
        dataset (COCODataset): gives the original sizes and ids.

    Returns:
        list[dict]: ``image_id``, ``category_id``, ``bbox`` and ``score``; boxes are xywh with inclusive sizes in pixels
        of the original image.
    """
    detections = []
    for index, prediction in enumerate(predictions):
        if len(prediction) == 0:
            continue
        info = dataset.get_img_info(index)
        prediction = prediction.resize((info["width"], info["height"])).convert("xywh")
        rows = zip(
            prediction.bbox.tolist(),
            prediction.get_field("scores").tolist(),
            prediction.get_field("labels").tolist(),
        )
        image_id = dataset.id_to_img_map[index]
        for box, score, label in rows:
            category_id = dataset.contiguous_category_id_to_json_id[int(label)]
            detections.append({"image_id": image_id, "category_id": category_id, "bbox": box, "score": score})
    return detections


def evaluate_predictions_on_coco(coco_gt, coco_results, json_result_file, iou_type="bbox", scorer="pycocotools"):
    """Write detections and score them.

    Args:
        coco_gt: anything with the ground truth as a dict in COCO format under ``dataset``, such as pycocotools' COCO.
        coco_results (list[dict]): see `prepare_for_coco_detection`; an empty list scores 0.
        json_result_file (str): where to write them; None writes nothing.
        iou_type (str): only "bbox".
        scorer (str): see `scorer.SCORERS`.

    Returns:
        the evaluated COCOeval.
    """
    if iou_type != "bbox":
        raise ValueError("evaluate_predictions_on_coco: expected iou_type 'bbox', got '{}'".format(iou_type))
    _write_json(coco_results, json_result_file)
    return score_boxes(coco_gt.dataset, coco_results, scorer)


def _score_proposals(dataset, predictions, logger):
    results = COCOResults("box_proposal")
    if not dataset.has_annotations:
        logger.warning("This data set has no annotations, so there is nothing to score: no average recall.")
        return results
    for limit in (100, 1000):
        for area, suffix in (("all", ""), ("small", "s"), ("medium", "m"), ("large", "l")):
            stats = evaluate_box_proposals(predictions, dataset, area=area, limit=limit)
            results.results["box_proposal"]["AR{}@{}".format(suffix, limit)] = float(stats["ar"])
    logger.info("%s", results)
    return results


def _save_results(results, output_folder):
    if output_folder:
        torch.save(results.to_dict(), os.path.join(output_folder, "coco_results.pth"))


def _write_json(detections, path):
    if path:
        with open(path, "w", encoding="utf-8") as f:
            json.dump(detections, f)
