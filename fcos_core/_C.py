"""The function names of the old compiled module, with its argument order, on top of `torch.ops.fcos_core`.

New code uses `fcos_core.layers`, whose functions differentiate.  These take their arguments by position, as ever.
"""

import torch as _torch

from fcos_core import layers as _layers
from fcos_core.layers._library import load as _load


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


def roi_align_forward(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio):
    """Pooled features [K, C, pooled_height, pooled_width] of input [N, C, H, W] at rois [K, 5]."""
    return _layers.roi_align(input, rois, (pooled_height, pooled_width), spatial_scale, sampling_ratio)


def roi_align_backward(
    grad, rois, spatial_scale, pooled_height, pooled_width, batch_size, channels, height, width, sampling_ratio
):
    """Gradient [batch_size, channels, height, width] of the input, given grad, the one of the pooled features."""
    _load()
    return _torch.ops.fcos_core._roi_align_backward(
        grad,
        rois,
        float(spatial_scale),
        pooled_height,
        pooled_width,
        batch_size,
        channels,
        height,
        width,
        sampling_ratio,
        False,
    )


def roi_pool_forward(input, rois, spatial_scale, pooled_height, pooled_width):
    """Pooled features [K, C, pooled_height, pooled_width] and where each comes from, int32, -1 for an empty bin."""
    _load()
    return _torch.ops.fcos_core.roi_pool(input, rois, float(spatial_scale), pooled_height, pooled_width)


def roi_pool_backward(
    grad, input, rois, argmax, spatial_scale, pooled_height, pooled_width, batch_size, channels, height, width
):
    """Gradient [batch_size, channels, height, width] of the input; input, spatial_scale and sizes are not needed."""
    _load()
    return _torch.ops.fcos_core._roi_pool_backward(grad, rois, argmax, batch_size, channels, height, width)


# The functions of deformable convolution write into tensors of the caller's; `columns`, `ones` and `im2col_step`, once
# scratch memory and its size, are not used.  Version 1 takes widths before heights, version 2 heights before widths.


def deform_conv_forward(
    input, weight, offset, output, columns, ones, kW, kH, dW, dH, padW, padH, dilationW, dilationH, group,
    deformable_group, im2col_step,
):  # fmt: skip
    """Version 1: writes output [N, O, Ho, Wo]; returns 1."""
    _check_kernel("deform_conv_forward", weight, kH, kW)
    numbers = ((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    _write("deform_conv_forward", output, _deform_conv(input, weight, offset, None, None, *numbers))
    return 1


def deform_conv_backward_input(
    input, offset, gradOutput, gradInput, gradOffset, weight, columns, kW, kH, dW, dH, padW, padH, dilationW, dilationH,
    group, deformable_group, im2col_step,
):  # fmt: skip
    """Version 1: adds to gradInput [N, C, H, W], writes gradOffset [N, 2 * D * K, Ho, Wo]; returns 1."""
    _check_kernel("deform_conv_backward_input", weight, kH, kW)
    numbers = ((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    grad_input, _, grad_offset, _, _ = _deform_conv_backward(gradOutput, input, weight, offset, None, False, *numbers)
    _write("deform_conv_backward_input", gradOffset, grad_offset)
    _add("deform_conv_backward_input", gradInput, grad_input)
    return 1


def deform_conv_backward_parameters(
    input, offset, gradOutput, gradWeight, columns, ones, kW, kH, dW, dH, padW, padH, dilationW, dilationH, group,
    deformable_group, scale, im2col_step,
):  # fmt: skip
    """Version 1: adds scale times the gradient of the weight to gradWeight [O, C / group, kH, kW]; returns 1."""
    _check_kernel("deform_conv_backward_parameters", gradWeight, kH, kW)
    numbers = ((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group)
    # that gradient does not depend on the weight itself
    weight = _torch.zeros_like(gradWeight)
    _, grad_weight, _, _, _ = _deform_conv_backward(gradOutput, input, weight, offset, None, False, *numbers)
    _add("deform_conv_backward_parameters", gradWeight, grad_weight, float(scale))
    return 1


def modulated_deform_conv_forward(
    input, weight, bias, ones, offset, mask, output, columns, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w,
    dilation_h, dilation_w, group, deformable_group, with_bias,
):  # fmt: skip
    """Version 2: writes output [N, O, Ho, Wo]; bias is looked at with_bias only."""
    _check_kernel("modulated_deform_conv_forward", weight, kernel_h, kernel_w)
    numbers = ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    bias = bias if with_bias else None
    _write("modulated_deform_conv_forward", output, _deform_conv(input, weight, offset, mask, bias, *numbers))


def modulated_deform_conv_backward(
    input, weight, bias, ones, offset, mask, columns, grad_input, grad_weight, grad_bias, grad_offset, grad_mask,
    grad_output, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group,
    with_bias,
):  # fmt: skip
    """Version 2: adds to grad_input, grad_weight and, with_bias, grad_bias; writes grad_offset and grad_mask."""
    _check_kernel("modulated_deform_conv_backward", weight, kernel_h, kernel_w)
    numbers = ((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group)
    results = _deform_conv_backward(grad_output, input, weight, offset, mask, bool(with_bias), *numbers)
    _add("modulated_deform_conv_backward", grad_input, results[0])
    _add("modulated_deform_conv_backward", grad_weight, results[1])
    _write("modulated_deform_conv_backward", grad_offset, results[2])
    _write("modulated_deform_conv_backward", grad_mask, results[3])
    if with_bias:
        _add("modulated_deform_conv_backward", grad_bias, results[4])


def _deform_conv(*arguments):
    _load()
    with _torch.no_grad():
        return _torch.ops.fcos_core.deform_conv(*arguments)


def _deform_conv_backward(*arguments):
    _load()
    with _torch.no_grad():
        return _torch.ops.fcos_core._deform_conv_backward(*arguments)


def _write(function, buffer, value):
    _check_buffer(function, "a buffer", buffer, value.shape)
    with _torch.no_grad():
        buffer.copy_(value)


def _add(function, buffer, value, scale=1.0):
    _check_buffer(function, "a buffer", buffer, value.shape)
    with _torch.no_grad():
        buffer.add_(value, alpha=scale)


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
    # torch would repeat a value along dimensions that it lacks
    if tuple(buffer.shape) != tuple(shape):
        raise ValueError(
            "{}: expected {} of shape {}, got {}; it is written to, so nothing is broadcast".format(
                function, argument, list(shape), list(buffer.shape)
            )
        )


def _check_kernel(function, weight, height, width):
    if weight.dim() != 4 or list(weight.shape[2:]) != [height, width]:
        raise ValueError(
            "{}: expected the kernel's height and width to be those of weight, got {} and {} for weight of shape {}; "
            "version 1 takes the width first".format(function, height, width, list(weight.shape))
        )


def _check_num_classes(function, logits, num_classes):
    if logits.dim() != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            "{}: expected num_classes to be the number of columns of logits, got {} for logits of shape {}; foreground "
            "classes only".format(function, num_classes, list(logits.shape))
        )
