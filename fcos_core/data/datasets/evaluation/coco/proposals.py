"""Average recall of class-less proposals."""

import torch

from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.boxlist_ops import boxlist_iou

__all__ = ["evaluate_box_proposals"]

# Areas of the objects in square pixels of the original image, both ends included.
_AREAS = {
    "all": (0, float("inf")),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, float("inf")),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, float("inf")),
}


def evaluate_box_proposals(predictions, dataset, thresholds=None, area="all", limit=None):
    """Share of the objects that some proposal covers.

    Proposals and objects of an image are paired greedily: the pair of largest IoU first, each used once.

    Args:
        predictions (list[BoxList]): one per image in the order of the data set, field ``objectness`` (or ``scores``).
        dataset (COCODataset): with annotations; crowds do not count.
        thresholds (Tensor [T]): IoU; default 0.5, 0.55, ..., 0.95.
        area (str): "all", "small", "medium", "large", "96-128", "128-256", "256-512" or "512-inf".
        limit (int): only that many best proposals per image; None takes all.

    Returns:
        dict: ``ar`` (scalar, mean of ``recalls``), ``recalls`` [T], ``thresholds`` [T], ``gt_overlaps`` [objects]
        sorted, ``num_pos`` (objects). Without objects the recalls are NaN.

    Raises:
        ValueError: an unknown area.
    """
    if area not in _AREAS:
        raise ValueError("evaluate_box_proposals: expected area among {}, got '{}'".format(", ".join(_AREAS), area))
    if thresholds is None:
        thresholds = torch.arange(10, dtype=torch.float32) * 0.05 + 0.5
    overlaps = []
    for index, prediction in enumerate(predictions):
        info = dataset.get_img_info(index)
        size = (info["width"], info["height"])
        objects = _objects(dataset, index, size, _AREAS[area])
        prediction = prediction.resize(size).convert("xyxy")
        field = "objectness" if prediction.has_field("objectness") else "scores"
        order = prediction.get_field(field).sort(descending=True)[1][:limit]
        overlaps.append(_greedy_overlaps(boxlist_iou(prediction[order], objects)))
    overlaps = torch.cat(overlaps).sort()[0] if overlaps else torch.zeros(0)
    covered = overlaps[None, :] >= thresholds[:, None]  # [T, objects]
    recalls = covered.float().mean(dim=1)
    return {
        "ar": recalls.mean(),
        "recalls": recalls,
        "thresholds": thresholds,
        "gt_overlaps": overlaps,
        "num_pos": len(overlaps),
    }


def _objects(dataset, index, size, area_range):
    """Boxes of the objects of one image whose annotated area lies in the range."""
    image_id = dataset.id_to_img_map[index]
    low, high = area_range
    boxes = []
    for annotation in dataset.coco.imgToAnns[image_id]:
        area = annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])
        if not annotation.get("iscrowd", 0) and low <= area <= high:
            boxes.append(annotation["bbox"])
    return BoxList(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), size, mode="xywh").convert("xyxy")


def _greedy_overlaps(iou):
    """IoU that every object gets in the greedy pairing, in no order.

    Args:
        iou ([P,G]): of every proposal with every object.

    Returns:
        [G]: 0 for an object that gets no proposal.
    """
    proposals, objects = iou.shape
    result = iou.new_zeros(objects)
    iou = iou.clone()
    for step in range(min(proposals, objects)):
        best = int(iou.argmax())
        row, column = best // objects, best % objects
        result[step] = iou[row, column]
        iou[row, :] = -1
        iou[:, column] = -1
    return result
