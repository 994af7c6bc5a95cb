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


def _group_norm_relu(input, weight, bias, num_groups, eps):
    moments = input.new_empty((input.shape[0], num_groups), dtype=torch.promote_types(input.dtype, torch.float32))
    return _in_format_of(input), moments, torch.empty_like(moments)


def _group_norm_relu_backward(grad, input, weight, bias, mean, rstd, num_groups):
    return _in_format_of(input), torch.empty_like(weight), torch.empty_like(bias)


def _iou_loss(pred, target, weight, kind, reduction):
    shape = pred.shape[:1] if reduction == 0 else ()
    return pred.new_empty(shape, dtype=torch.promote_types(pred.dtype, torch.float32))


def _iou_loss_backward(grad, pred, target, weight, kind, reduction):
    return pred.new_empty(pred.shape)


def _deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, deformable_groups):
    # the operator refuses an offset that is not as large as the output
    return _in_format_of(input, (input.shape[0], weight.shape[0], *offset.shape[2:]))


def _deform_conv_backward(
    grad, input, weight, offset, mask, with_bias, stride, padding, dilation, groups, deformable_groups
):
    return (
        _in_format_of(input),
        _in_format_of(weight),
        _in_format_of(offset),
        offset.new_empty(0) if mask is None else _in_format_of(mask),
        weight.new_empty(weight.shape[0] if with_bias else 0),
    )


def _in_format_of(tensor, shape=None):
    # contiguous, or channels last if the tensor has such strides
    memory_format = torch._prims_common.suggest_memory_format(tensor)
    shape = tensor.shape if shape is None else shape
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)


def _deform_psroi_pooling(
    input,
    rois,
    trans,
    spatial_scale,
    output_dim,
    group_size,
    pooled_size,
    part_size,
    sample_per_part,
    trans_std,
):
    output = _in_format_of(input, (rois.shape[0], output_dim, pooled_size, pooled_size))
    num_classes = 1 if trans is None else trans.shape[1] // 2
    return output, rois.new_empty((rois.shape[0], num_classes, pooled_size, pooled_size), dtype=torch.int32)


def _deform_psroi_pooling_backward(grad, input, rois, trans, *numbers):
    return _in_format_of(input), rois.new_empty(0) if trans is None else trans.new_empty(trans.shape)

def _roi_align(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    return _in_format_of(input, (rois.shape[0], input.shape[1], pooled_height, pooled_width))


def _roi_align_backward(
    grad,
    rois,
    spatial_scale,
    pooled_height,
    pooled_width,
    batch_size,
    channels,
    height,
    width,
    sampling_ratio,
    aligned,
):
    return _in_format_of(grad, (batch_size, channels, height, width))


def _roi_pool(input, rois, spatial_scale, pooled_height, pooled_width):
    output = _in_format_of(input, (rois.shape[0], input.shape[1], pooled_height, pooled_width))
    return output, torch.empty_like(output, dtype=torch.int32)


def _roi_pool_backward(grad, rois, argmax, batch_size, channels, height, width):
    return _in_format_of(grad, (batch_size, channels, height, width))


_FAKES = {
    "deform_conv": _deform_conv,
    "_deform_conv_backward": _deform_conv_backward,
    "group_norm_relu": _group_norm_relu,
    "_group_norm_relu_backward": _group_norm_relu_backward,
    "iou_loss": _iou_loss,
    "_iou_loss_backward": _iou_loss_backward,
    "nms": _nms,
    "ml_nms": _ml_nms,
    "batched_nms": _batched_nms,
    "deform_psroi_pooling": _deform_psroi_pooling,
    "_deform_psroi_pooling_backward": _deform_psroi_pooling_backward,
    "roi_align": _roi_align,
    "_roi_align_backward": _roi_align_backward,
    "roi_pool": _roi_pool,
    "_roi_pool_backward": _roi_pool_backward,
    "sigmoid_focal_loss": _sigmoid_focal_loss,
    "_sigmoid_focal_loss_backward": _sigmoid_focal_loss_backward,
}
