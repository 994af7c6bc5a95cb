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


def deform_psroi_pooling_forward(
    input,
    bbox,
    trans,
    out,
    top_count,
    no_trans,
    spatial_scale,
    output_dim,
    group_size,
    pooled_size,
    part_size,
    sample_per_part,
    trans_std,
):
    """Write means and numbers of samples to out and top_count [K, D, P, P]; trans is not looked at if no_trans."""
    shape = (bbox.shape[0], output_dim, pooled_size, pooled_size)
    _check_buffer("deform_psroi_pooling_forward", "out", out, shape)
    _check_buffer("deform_psroi_pooling_forward", "top_count", top_count, shape)
    sizes = (output_dim, group_size, pooled_size, part_size, sample_per_part)
    _load()
    with _torch.no_grad():
        output, count = _torch.ops.fcos_core.deform_psroi_pooling(
            input, bbox, None if no_trans else trans, float(spatial_scale), *sizes, float(trans_std)
        )
        out.copy_(output)
        # one number for all channels of a class
        top_count.copy_(count.repeat_interleave(output_dim // count.shape[1], 1))


def deform_psroi_pooling_backward(
    out_grad,
    input,
    bbox,
    trans,
    top_count,
    input_grad,
    trans_grad,
    no_trans,
    spatial_scale,
    output_dim,
    group_size,
    pooled_size,
    part_size,
    sample_per_part,
    trans_std,
):
    """Add the gradients to input_grad and trans_grad; top_count, which is counted again, and with no_trans trans and
    trans_grad are not looked at.
    """
    _check_buffer("deform_psroi_pooling_backward", "input_grad", input_grad, input.shape)
    if not no_trans:
        _check_buffer("deform_psroi_pooling_backward", "trans_grad", trans_grad, trans.shape)
    sizes = (output_dim, group_size, pooled_size, part_size, sample_per_part)
    _load()
    with _torch.no_grad():
        to_input, to_trans = _torch.ops.fcos_core._deform_psroi_pooling_backward(
            out_grad, input, bbox, None if no_trans else trans, float(spatial_scale), *sizes, float(trans_std)
        )
        input_grad.add_(to_input)
        if not no_trans:
            trans_grad.add_(to_trans)


def _check_buffer(function, argument, buffer, shape):
    if tuple(buffer.shape) != tuple(shape):
        raise ValueError(
            "{}: expected {} of shape {}, got {}; it is written to, so nothing is broadcast".format(
                function, argument, list(shape), list(buffer.shape)
            )
        )


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
