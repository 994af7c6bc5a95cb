"""Functions on BoxLists: NMS, IoU, size filter, concatenation."""
import torch

from fcos_core.layers.nms import ml_nms as _box_ml_nms
from fcos_core.layers.nms import nms as _box_nms
from fcos_core.structures import box_ops
from fcos_core.structures.bounding_box import BoxList


def boxlist_nms(boxlist, nms_thresh, max_proposals=-1, score_field="scores"):
    """Drop every box that overlaps a higher-scored kept one by an IoU above `nms_thresh`.

    Args:
        boxlist: BoxList with a field of scores [M].
        nms_thresh: IoU; at or below 0 the BoxList is returned unchanged.
        max_proposals: at most this many boxes, if positive.
        score_field: name of the field of scores.

    Returns:
        The kept boxes with all fields, by ascending index (not by score), in the mode of the input.

    Note:
        Legacy: `max_proposals` takes the first ones by index, which are the best only if the input is sorted by score.
    """
    if nms_thresh <= 0:
        return boxlist
    keep = _box_nms(boxlist.convert("xyxy").bbox, boxlist.get_field(score_field), nms_thresh)
    return boxlist[_first(keep, max_proposals)]


def boxlist_ml_nms(boxlist, nms_thresh, max_proposals=-1, score_field="scores", label_field="labels"):
    """`boxlist_nms` in which a box is dropped only for a box of the same label.

    Args:
        boxlist: BoxList with fields of scores [M] and labels [M].
        nms_thresh, max_proposals, score_field: see `boxlist_nms`.
        label_field: name of the field of labels.
    """
    if nms_thresh <= 0:
        return boxlist
    keep = _box_ml_nms(
        boxlist.convert("xyxy").bbox, boxlist.get_field(score_field), boxlist.get_field(label_field), nms_thresh
    )
    return boxlist[_first(keep, max_proposals)]


def _first(keep, max_proposals):
    return keep[:max_proposals] if max_proposals > 0 else keep


def remove_small_boxes(boxlist, min_size):
    """Keep the boxes whose inclusive width and height are both at least `min_size` pixels."""
    sizes = boxlist.convert("xywh").bbox[:, 2:]
    return boxlist[(sizes >= min_size).all(dim=1)]


def boxlist_iou(boxlist1, boxlist2):
    """IoU of every box of one BoxList with every box of another.

    Returns:
        [M, K] for M and K boxes.

    Raises:
        ValueError: the BoxLists belong to images of different size.
    """
    if tuple(boxlist1.size) != tuple(boxlist2.size):
        raise ValueError(
            f"boxlist_iou: expected boxlists of the same image size, got {tuple(boxlist1.size)} and "
            f"{tuple(boxlist2.size)}; bring one to the other's frame with BoxList.resize"
        )
    return box_ops.pairwise_iou(boxlist1.convert("xyxy").bbox, boxlist2.convert("xyxy").bbox)


def cat_boxlist(bboxes):
    """Concatenate BoxLists of one image.

    Args:
        bboxes: non-empty list or tuple of BoxLists with the same image size, mode and field names.

    Returns:
        One BoxList.  Tensor fields are concatenated along their first dimension, list fields are joined.

    Raises:
        ValueError: nothing to concatenate, or the BoxLists do not fit together.
    """
    if not isinstance(bboxes, (list, tuple)) or not bboxes or not all(isinstance(b, BoxList) for b in bboxes):
        raise ValueError(f"cat_boxlist: expected a non-empty list of BoxLists, got {bboxes!r}")
    first = bboxes[0]
    for what, value_of in (
        ("image size", lambda b: tuple(b.size)),
        ("mode", lambda b: b.mode),
        ("fields", lambda b: sorted(b.fields())),
    ):
        values = [value_of(b) for b in bboxes]
        if any(v != values[0] for v in values):
            raise ValueError(f"cat_boxlist: expected the same {what} in all boxlists, got {values}")
    result = BoxList(_cat([b.bbox for b in bboxes]), first.size, first.mode)
    for field in first.fields():
        result.add_field(field, _cat_field(field, [b.get_field(field) for b in bboxes]))
    return result


def _cat(tensors, dim=0):
    """torch.cat that hands a single tensor back without a copy."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)


def _cat_field(field, parts):
    if all(isinstance(part, torch.Tensor) for part in parts):
        return _cat(parts)
    if all(isinstance(part, list) for part in parts):
        return [row for part in parts for row in part]
    types = [type(part).__name__ for part in parts]
    raise ValueError(f"cat_boxlist: expected field {field!r} to be all tensors or all lists, got {types}")
