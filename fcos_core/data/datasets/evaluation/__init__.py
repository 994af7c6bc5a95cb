"""Scoring of detections: COCO metrics and VOC metrics, chosen by the class of the data set."""

from fcos_core.data import datasets

from .coco import coco_evaluation
from .voc import voc_evaluation

__all__ = ["evaluate", "coco_evaluation", "voc_evaluation"]


def evaluate(dataset, predictions, output_folder, **kwargs):
    """Score detections with the metric that belongs to the data set.

    Args:
        dataset (COCODataset | PascalVOCDataset): what was detected on; subclasses count.
        predictions (list[BoxList]): one per image, in the order of the data set, in any frame (``size`` tells);
            fields ``scores`` and ``labels`` (``objectness`` for ``box_only``).
        output_folder (str): where the result files go; None writes none.
        **kwargs: of `coco_evaluation` and `voc_evaluation`, among them ``box_only``, ``iou_types``,
            ``expected_results``, ``expected_results_sigma_tol`` and ``scorer``.

    Returns:
        what the evaluation of that data set returns: (COCOResults, dict) or a dict with ``ap`` and ``map``.

    Raises:
        TypeError: no metric is known for this class.
        ValueError: the number of predictions is not the number of images.
    """
    if len(predictions) != len(dataset):
        raise ValueError(
            "evaluate: expected one prediction per image, got {} for {} images; add an empty BoxList for an image "
            "without detections".format(len(predictions), len(dataset))
        )
    arguments = dict(dataset=dataset, predictions=predictions, output_folder=output_folder, **kwargs)
    if isinstance(dataset, datasets.COCODataset):
        return coco_evaluation(**arguments)
    if isinstance(dataset, datasets.PascalVOCDataset):
        return voc_evaluation(**arguments)
    raise TypeError(
        "evaluate: expected dataset to be a COCODataset or a PascalVOCDataset, got {}; derive it from one of "
        "these".format(type(dataset).__name__)
    )
