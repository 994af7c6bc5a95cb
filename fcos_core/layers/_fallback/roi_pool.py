"""RoI max pooling of tensor operations of torch; csrc/roi_pool/roi_pool.h says what it computes."""

import math

import torch

from fcos_core.layers._fallback.checks import (
    check,
    check_floating,
    check_given,
    check_images,
    check_output_size,
    check_rois,
    check_same_device,
    check_shape,
    check_spatial_scale,
    compute_dtype,
    differentiable_once,
    divided,
    memory_format_of,
    round_half_away,
    usable_images,
)

_NAME = "roi_pool"
_MAX_SIDE = 2**24
_MAX_BINS = 4096


def roi_pool(input, rois, spatial_scale, pooled_height, pooled_width):
    """See `fcos_core.layers.roi_pool`; returns the output and, int32, the place of each maximum (-1: none)."""
    check_given(_NAME, input=input, rois=rois)
    return _RoiPool.apply(input, rois, spatial_scale, pooled_height, pooled_width)


class _RoiPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, rois, spatial_scale, pooled_height, pooled_width):
        check_floating(_NAME, "input", input)
        check_shape(_NAME, "input", input, input.dim() == 4, "[N, C, H, W]")
        check_rois(_NAME, rois, "input", input)
        _check_map(input.shape)
        check_spatial_scale(_NAME, spatial_scale)
        check_output_size(_NAME, pooled_height, pooled_width, _MAX_BINS)
        check_images(_NAME, rois, input.shape[0])
        ctx.shape, ctx.layout = input.shape, memory_format_of(input)
        output, argmax = _pool(input, rois, ctx.layout, spatial_scale, (pooled_height, pooled_width))
        ctx.save_for_backward(rois, argmax)
        ctx.mark_non_differentiable(argmax)
        return output, argmax

    @staticmethod
    @differentiable_once(_NAME)
    def backward(ctx, grad, _):
        grad_input = _roi_pool_backward(grad, *ctx.saved_tensors, *ctx.shape)
        return (grad_input.contiguous(memory_format=ctx.layout),) + (None,) * 4


def _pool(input, rois, layout, spatial_scale, pooled):
    num_images, channels, height, width = input.shape
    shape = (rois.shape[0], channels) + pooled
    output = torch.zeros(shape, dtype=input.dtype, device=input.device).contiguous(memory_format=layout)
    argmax = torch.full(shape, -1, dtype=torch.int32, device=input.device).contiguous(memory_format=layout)
    if output.numel() == 0:
        return output, argmax
    rois = rois.detach().to(compute_dtype(input))
    exists, images = usable_images(rois, num_images)
    top, bottom, y_finite = _ranges(rois[:, 2], rois[:, 4], spatial_scale, pooled[0], height)
    left, right, x_finite = _ranges(rois[:, 1], rois[:, 3], spatial_scale, pooled[1], width)
    usable = exists & y_finite & x_finite
    for k, image in enumerate(images.tolist() if height * width > 0 else []):
        output[k], argmax[k] = _pool_one(input[image], top[k], bottom[k], left[k], right[k])
    output[~usable] = math.nan
    argmax[~usable] = -1
    return output, argmax


def _ranges(low, high, scale, bins, pixels):
    """Pixels [begin, end) of each bin along an axis, int64 [K, bins], and whether a roi is finite there, bool [K]."""
    start = round_half_away(low * scale)
    side = round_half_away(high * scale) - start + 1
    finite = (side - side == 0) & (start - start == 0)
    # any numbers serve where the roi is not used
    start = start.masked_fill(~finite, 0)
    bin = divided(side.masked_fill(~finite, 1).clamp(min=1), bins)
    index = torch.arange(bins + 1, device=low.device).to(low.dtype)
    edges = index * bin[:, None]
    begin = (start[:, None] + edges[:, :-1].floor()).clamp(0, pixels).long()
    end = (start[:, None] + edges[:, 1:].ceil()).clamp(0, pixels).long()
    return begin, end, finite


def _pool_one(features, top, bottom, left, right):
    """Maxima and places [C, bins, bins] of one map [C, H, W]."""
    channels, height, width = features.shape
    y = top[:, None] + torch.arange(max(1, int((bottom - top).max())), device=top.device)  # [bins, pixels]
    x = left[:, None] + torch.arange(max(1, int((right - left).max())), device=top.device)
    inside = (y < bottom[:, None])[:, None, :, None] & (x < right[:, None])[None, :, None, :]
    y_read, x_read = y.clamp(max=height - 1), x.clamp(max=width - 1)
    values = features.detach()[:, y_read.reshape(-1)][:, :, x_read.reshape(-1)].to(compute_dtype(features))
    values = values.view((channels,) + tuple(y.shape) + tuple(x.shape)).permute(0, 1, 3, 2, 4)
    # the first pixel of a bin is inside if any is, so among equal ones none of these is taken
    values = values.masked_fill(~inside, -math.inf)
    largest, at = values.flatten(3).max(3)
    place = (y_read[:, None, :, None] * width + x_read[None, :, None, :]).flatten(2)
    place = place.expand((channels,) + tuple(place.shape)).gather(3, at[..., None])[..., 0]
    empty = ~inside.flatten(2).any(2)
    return largest.masked_fill(empty, 0).to(features.dtype), place.masked_fill(empty, -1).int()


def _roi_pool_backward(grad, rois, argmax, batch_size, channels, height, width):
    check_given(_NAME, grad=grad, rois=rois, argmax=argmax)
    check_floating(_NAME, "grad", grad)
    check_rois(_NAME, rois, "grad", grad)
    shape = (batch_size, channels, height, width)
    _check_map(shape)
    fits = grad.dim() == 4 and grad.shape[0] == rois.shape[0] and grad.shape[1] == channels
    check_shape(_NAME, "grad", grad, fits, "[K, C, pooled_height, pooled_width], as the output")
    check_output_size(_NAME, grad.shape[2], grad.shape[3], _MAX_BINS)
    advice = "pass the one that the forward gave"
    check(argmax.dtype == torch.int32, _NAME, "argmax", "of dtype torch.int32", argmax.dtype, advice)
    check_shape(_NAME, "argmax", argmax, argmax.shape == grad.shape, "as grad")
    check_same_device(_NAME, "argmax", argmax, "grad", grad)
    check_images(_NAME, rois, batch_size)
    pixels = height * width
    if argmax.device.type == "cpu" and argmax.numel() > 0:
        least, most = int(argmax.min()), int(argmax.max())
        rule, got = "in -1..{}".format(pixels - 1), "{}..{}".format(least, most)
        check(least >= -1 and most < pixels, _NAME, "argmax", rule, got, advice)
    grad_input = torch.zeros(batch_size * channels * pixels, dtype=compute_dtype(grad), device=grad.device)
    if grad.numel() > 0 and grad_input.numel() > 0:
        with torch.no_grad():
            exists, images = usable_images(rois, batch_size)
            plane = images[:, None] * channels + torch.arange(channels, device=grad.device)
            place = argmax.long() + plane[:, :, None, None] * pixels
            passes = (argmax >= 0) & (argmax < pixels) & exists[:, None, None, None]
            grad_input.scatter_add_(0, place[passes], grad[passes].to(grad_input.dtype))
    return grad_input.view(shape).to(grad.dtype).contiguous(memory_format=memory_format_of(grad))


def _check_map(shape):
    fits = min(shape) >= 0 and max(shape[2:]) <= _MAX_SIDE and shape[2] * shape[3] < 2**31
    rule = "with sides of at most {} and less than 2^31 pixels".format(_MAX_SIDE)
    check(fits, _NAME, "the map", rule, list(shape), "argmax counts pixels in int32")
