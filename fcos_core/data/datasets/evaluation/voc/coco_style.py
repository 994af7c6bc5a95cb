"""COCO metrics for a data set that is not in COCO format, on a ground truth converted in memory.

Detection papers report both, and AP over IoU 0.5 to 0.95 says more than VOC's single threshold.
"""

from ..coco.report import per_class_table
from ..coco.results import COCOResults
from ..coco.scorer import load_scorer, score_boxes

__all__ = ["coco_style_evaluation", "coco_groundtruth"]


def coco_style_evaluation(dataset, predictions, truths, logger, scorer="pycocotools"):
    """COCO metrics of detections.

    Args:
        dataset: has ``categories``, label k is ``categories[k-1]``.
        predictions, truths (list[BoxList]): per image, xyxy in the frame of the original image.
        logger (logging.Logger)
        scorer (str): see `score_boxes`; None skips the evaluation.

    Returns:
        (COCOResults, dict): metrics, and name -> (AP, AP50). (None, {}) if there is no scorer.
    """
    if scorer is None:
        return None, {}
    try:
        load_scorer(scorer)
    except ImportError as error:
        logger.warning("Only VOC metrics: %s", error)
        return None, {}
    coco_eval = score_boxes(
        coco_groundtruth(dataset.categories, truths), _detections(predictions), scorer, "COCO metrics"
    )
    results = COCOResults("bbox")
    results.update(coco_eval)
    return results, {name: (ap, ap50) for name, _, _, ap, ap50 in per_class_table(coco_eval)}


def coco_groundtruth(categories, truths):
    """Ground truth BoxLists as a dict in COCO format.

    Difficult objects become crowds, the COCO way to say that finding them is neither right nor wrong.
    """
    images, annotations = [], []
    for image_id, truth in enumerate(truths):
        width, height = truth.size
        images.append({"id": image_id, "width": int(width), "height": int(height), "file_name": str(image_id)})
        difficult = truth.get_field("difficult").tolist() if truth.has_field("difficult") else [0] * len(truth)
        rows = zip(truth.convert("xywh").bbox.tolist(), truth.get_field("labels").tolist(), difficult)
        for box, label, ignore in rows:
            annotations.append({"image_id": image_id, "category_id": int(label), "bbox": box, "iscrowd": int(ignore)})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(categories, 1)],
    }


def _detections(predictions):
    detections = []
    for image_id, prediction in enumerate(predictions):
        rows = zip(
            prediction.convert("xywh").bbox.tolist(),
            prediction.get_field("scores").tolist(),
            prediction.get_field("labels").tolist(),
        )
        for box, score, label in rows:
            detections.append({"image_id": image_id, "category_id": int(label), "bbox": box, "score": score})
    return detections
