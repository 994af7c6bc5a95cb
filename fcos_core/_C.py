"""The function names of the old compiled module, with its argument order, on top of `torch.ops.fcos_core`.

New code uses `fcos_core.layers`, whose functions differentiate.  These take their arguments by position, as ever.
"""

import torch as _torch

from fcos_core import layers as _layers
from fcos_core.layers._library import load as _load

# Names of the old module whose operators this version does not have.
_ABSENT = (
    "roi_align_forward",
    "roi_align_backward",
    "roi_pool_forward",
    "roi_pool_backward",
    "deform_conv_forward",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "modulated_deform_conv_forward",
    "modulated_deform_conv_backward",
    "deform_psroi_pooling_forward",
    "deform_psroi_pooling_backward",
)


def nms(dets, scores, threshold):
    """Kept indices (int64, ascending) of boxes [M, 4] with scores [M]."""
    return _layers.nms(dets, scores, threshold)


def ml_nms(dets, scores, labels, threshold):
    """Kept indices (int64, ascending) of boxes [M, 4] with scores [M] and labels [M], floating or integer."""
    return _layers.ml_nms(dets, scores, labels, threshold)


def sigmoid_focalloss_forward(logits, targets, num_classes, gamma, alpha):
    """Losses [R, C] of logits [R, C] and targets [R] in -1..C; num_classes is C."""
    _check_num_classes("sigmoid_focalloss_forward", logits, num_classes)
    return _layers.sigmoid_focal_loss(logits, targets, gamma, alpha, reduction="none")


def sigmoid_focalloss_backward(logits, targets, d_losses, num_classes, gamma, alpha):
    """Gradient [R, C] with respect to logits, given the one with respect to the losses, d_losses [R, C]."""
    _check_num_classes("sigmoid_focalloss_backward", logits, num_classes)
    _load()
    return _torch.ops.fcos_core._sigmoid_focal_loss_backward(d_losses, logits, targets, float(gamma), float(alpha), 0)


def _check_num_classes(function, logits, num_classes):
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            "{}: expected num_classes to be the number of columns of logits, got {} for logits of shape {}; foreground "
            "classes only".format(function, num_classes, list(logits.shape))
        )


def __getattr__(name):
    if name in _ABSENT:
        raise AttributeError("fcos_core._C.{} is not part of this version of fcos_core.".format(name))
    raise AttributeError("module 'fcos_core._C' has no attribute '{}'".format(name))
