import logging

from .voc_eval import do_voc_evaluation

__all__ = ["voc_evaluation", "do_voc_evaluation"]


def voc_evaluation(dataset, predictions, output_folder, box_only=False, scorer="pycocotools", **_):
    """VOC metrics of a data set, with COCO metrics beside them; see `do_voc_evaluation`.

    ``iou_types`` and the expected results belong to COCO data sets and are ignored here.
    """
    logger = logging.getLogger("fcos_core.inference")
    if box_only:
        logger.warning("voc evaluation does not score class-less proposals: box_only is ignored.")
    return do_voc_evaluation(dataset, predictions, output_folder, logger, scorer=scorer)
