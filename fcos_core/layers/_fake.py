"""Shapes and dtypes of all operators without computing them, for torch.compile and torch.export.

The one file that differs between versions of torch on the Python side of the operators: there is nothing to register
before 2.2, a function that later changed its name in 2.2 and 2.3.  Gradients and autocast are registered in C++.
"""

import torch


def register():
    """Register a fake kernel for every operator; called once, after the library is loaded."""
    library = getattr(torch, "library", None)
    register_fake = getattr(library, "register_fake", None) or getattr(library, "impl_abstract", None)
    if register_fake is None:
        return
    for name, function in _FAKES.items():
        register_fake("fcos_core::" + name)(function)


def _nms(boxes, scores, iou_threshold):
    return _kept_indices(boxes)


def _ml_nms(boxes, scores, labels, iou_threshold):
    return _kept_indices(boxes)


def _kept_indices(boxes):
    # how many boxes stay depends on the data
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _batched_nms(boxes, scores, labels, iou_threshold):
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _sigmoid_focal_loss(logits, targets, gamma, alpha, reduction):
    if reduction == 0:
        return logits.new_empty(logits.shape)
    # sums have at least float32
    return logits.new_empty((), dtype=torch.promote_types(logits.dtype, torch.float32))


def _sigmoid_focal_loss_backward(grad, logits, targets, gamma, alpha, reduction):
    return logits.new_empty(logits.shape)


_FAKES = {
    "nms": _nms,
    "ml_nms": _ml_nms,
    "batched_nms": _batched_nms,
    "sigmoid_focal_loss": _sigmoid_focal_loss,
    "_sigmoid_focal_loss_backward": _sigmoid_focal_loss_backward,
}
