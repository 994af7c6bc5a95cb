"""RoIAlign of tensor operations of torch; csrc/roi_align/roi_align.h says what it computes.

Pooling is linear in the features: a sparse matrix [K * bins, N * H * W], with a column for each pixel, times the map
[N * H * W, C].  The gradient is its transpose times the gradient of the output.  The matrix is the product of the
weights along y and along x, each a short list of pixels per bin.
"""

import math
import warnings

import torch

from fcos_core.layers._fallback.checks import (
    check,
    check_floating,
    check_given,
    check_images,
    check_output_size,
    check_rois,
    check_shape,
    check_spatial_scale,
    compute_dtype,
    differentiable_once,
    divided,
    memory_format_of,
    usable_images,
    without_autocast,
)

_NAME = "roi_align"
_MAX_SIDE = 2**24  # float32 counts pixels exactly up to here
_MAX_BINS = 4096
_MAX_RATIO = 1024
_MAX_POSITIONS = 2**22
_MAX_ENTRIES = 2**22  # of the matrix, at a time


def roi_align(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    """See `fcos_core.layers.roi_align`."""
    check_given(_NAME, input=input, rois=rois)
    return _RoiAlign.apply(input, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned)


class _RoiAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, rois, *numbers):
        check_floating(_NAME, "input", input)
        check_shape(_NAME, "input", input, input.dim() == 4, "[N, C, H, W]")
        check_rois(_NAME, rois, "input", input)
        _check_numbers(input.shape, numbers)
        check_images(_NAME, rois, input.shape[0])
        ctx.save_for_backward(rois)
        ctx.shape, ctx.numbers, ctx.layout = input.shape, numbers, memory_format_of(input)
        with without_autocast(input):
            return _pool(input, rois, ctx.layout, *numbers)

    @staticmethod
    @differentiable_once(_NAME)
    def backward(ctx, grad):
        scale, height, width, ratio, aligned = ctx.numbers
        grad_input = _roi_align_backward(grad, ctx.saved_tensors[0], scale, height, width, *ctx.shape, ratio, aligned)
        return (grad_input.contiguous(memory_format=ctx.layout),) + (None,) * 6


def _pool(input, rois, layout, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
    num_images, channels, height, width = input.shape
    bins = pooled_height * pooled_width
    dtype = compute_dtype(input)
    rows = torch.zeros((rois.shape[0] * bins, channels), dtype=dtype, device=input.device)
    size = (pooled_height, pooled_width)
    matrices = _Matrices(rois, dtype, input.shape, spatial_scale, size, sampling_ratio, aligned)
    if rows.numel() > 0:
        pixels = input.permute(0, 2, 3, 1).reshape(-1, channels).to(dtype)
        for first, last, matrix in matrices:
            rows[first * bins : last * bins] = torch.sparse.mm(matrix, pixels)
        rows.view(rois.shape[0], -1)[~matrices.usable] = math.nan
    output = rows.view(rois.shape[0], pooled_height, pooled_width, channels).permute(0, 3, 1, 2)
    return output.to(input.dtype).contiguous(memory_format=layout)


def _roi_align_backward(
    grad, rois, spatial_scale, pooled_height, pooled_width, batch_size, channels, height, width, sampling_ratio, aligned
):
    check_given(_NAME, grad=grad, rois=rois)
    check_floating(_NAME, "grad", grad)
    check_rois(_NAME, rois, "grad", grad)
    shape = (batch_size, channels, height, width)
    _check_numbers(shape, (spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned))
    expected = (rois.shape[0], channels, pooled_height, pooled_width)
    fits = tuple(grad.shape) == expected
    check_shape(_NAME, "grad", grad, fits, "[K, C, pooled_height, pooled_width], as the output")
    check_images(_NAME, rois, batch_size)
    dtype = compute_dtype(grad)
    pixels = torch.zeros((batch_size * height * width, channels), dtype=dtype, device=grad.device)
    bins = pooled_height * pooled_width
    if grad.numel() > 0 and pixels.numel() > 0:
        with torch.no_grad(), without_autocast(grad):
            rows = grad.permute(0, 2, 3, 1).reshape(-1, channels).to(dtype)
            size = (pooled_height, pooled_width)
            matrices = _Matrices(rois, dtype, shape, spatial_scale, size, sampling_ratio, aligned)
            for first, last, matrix in matrices:
                pixels += torch.sparse.mm(matrix.t(), rows[first * bins : last * bins])
    grad_input = pixels.view(batch_size, height, width, channels).permute(0, 3, 1, 2).to(grad.dtype)
    return grad_input.contiguous(memory_format=memory_format_of(grad))


def _check_numbers(shape, numbers):
    spatial_scale, pooled_height, pooled_width, sampling_ratio, _ = numbers
    fits = min(shape) >= 0 and max(shape[2:]) <= _MAX_SIDE
    rule = "with sides of at most {} pixels".format(_MAX_SIDE)
    check(fits, _NAME, "the map", rule, list(shape), "larger positions do not fit into float32")
    check_spatial_scale(_NAME, spatial_scale)
    check_output_size(_NAME, pooled_height, pooled_width, _MAX_BINS)
    rule = "at most {}".format(_MAX_RATIO)
    advice = "2 is usual, 0 adapts to the size of the roi"
    check(sampling_ratio <= _MAX_RATIO, _NAME, "sampling_ratio", rule, sampling_ratio, advice)


class _Matrices:
    """The matrix in parts: iterates over (first roi, last roi + 1, sparse [rois * bins, N * H * W]).

    Attributes:
        usable: bool [K]; a roi of no image or with a coordinate that is not finite has no entry.
    """

    def __init__(self, rois, dtype, shape, spatial_scale, pooled, sampling_ratio, aligned):
        self.rois = rois.detach().to(dtype)
        self.shape, self.pooled = shape, pooled
        self.numbers = (spatial_scale, aligned, sampling_ratio)
        exists, self.image = usable_images(self.rois, shape[0])
        # overflows in float32 are not finite either
        scaled = self.rois[:, 1:] * spatial_scale
        size = scaled[:, 2:] - scaled[:, :2]
        self.usable = exists & ((scaled - scaled == 0).all(1) & (size - size == 0).all(1))

    def __iter__(self):
        num_rois = self.rois.shape[0] if self.shape[2] * self.shape[3] > 0 else 0
        step = max(1, _MAX_ENTRIES // max(1, self._most(0) * self._most(1)))
        for first in range(0, num_rois, step):
            last = min(first + step, num_rois)
            yield first, last, self._part(first, last)

    def _most(self, axis):
        """Most weights of a roi along an axis."""
        by_pixels = self.shape[2 + axis] + 2 * self.pooled[axis]
        ratio = self.numbers[2]
        return min(by_pixels, 2 * self.pooled[axis] * ratio) if ratio > 0 else by_pixels

    def _part(self, first, last):
        rois, usable = self.rois[first:last], self.usable[first:last]
        y = _Axis(rois[:, 2], rois[:, 4], usable, self.pooled[0], self.shape[2], *self.numbers)
        x = _Axis(rois[:, 1], rois[:, 3], usable, self.pooled[1], self.shape[3], *self.numbers)
        # each weight of y meets all those of x of its roi
        of_x = torch.bincount(x.roi, minlength=last - first)
        start_of_x = of_x.cumsum(0) - of_x
        repeats = of_x[y.roi]
        i = torch.repeat_interleave(repeats)
        start = repeats.cumsum(0) - repeats
        j = torch.arange(i.shape[0], device=i.device) - start[i] + start_of_x[y.roi[i]]
        roi = y.roi[i]
        row = (roi * self.pooled[0] + y.bin[i]) * self.pooled[1] + x.bin[j]
        column = (self.image[first:last][roi] * self.shape[2] + y.pixel[i]) * self.shape[3] + x.pixel[j]
        size = ((last - first) * self.pooled[0] * self.pooled[1], self.shape[0] * self.shape[2] * self.shape[3])
        with warnings.catch_warnings():
            # torch advises to have the indices checked, which are right here
            warnings.filterwarnings("ignore", "Sparse invariant checks")
            return torch.sparse_coo_tensor(torch.stack([row, column]), y.weight[i] * x.weight[j], size)


class _Axis:
    """Weights along one axis, those of a roi together: roi, bin, pixel (int64 [E]) and weight [E]."""

    def __init__(self, low, high, usable, bins, pixels, scale, aligned, ratio):
        shift = 0.5 if aligned else 0.0
        start = low * scale - shift
        size = (high * scale - shift) - start
        if not aligned:
            size = size.clamp(min=1)
        length = divided(size, bins)
        if ratio > 0:
            samples = torch.full_like(length, ratio)
        else:
            samples = length.ceil().clamp(0, _MAX_POSITIONS // bins)
        samples = torch.where(usable, samples, torch.zeros_like(samples))
        step = length / samples.clamp(min=1)
        begin, end = self._range(start, step, samples * bins, pixels)
        count = (end - begin).clamp(min=0)
        roi = torch.repeat_interleave(count)
        offset = count.cumsum(0) - count
        point = torch.arange(roi.shape[0], device=roi.device) - offset[roi] + begin[roi]
        position = start[roi] + (point.to(low.dtype) + 0.5) * step[roi]
        # in float64, where the quotient cannot reach the next whole number by rounding
        bin = ((point.double() + 0.5) / samples[roi].double()).floor().long()
        inside = (position >= -1) & (position <= pixels)
        roi, bin, position = roi[inside], bin[inside], position[inside].clamp(min=0)
        floor = position.long()
        border = floor >= pixels - 1
        pixel = floor.clamp(max=pixels - 1)
        upper = (position - floor.to(low.dtype)).masked_fill(border, 0)
        share = 1 / samples[roi].to(low.dtype)
        key = torch.cat([pixel, (pixel + 1).clamp(max=pixels - 1)]) + pixels * (bin + bins * roi).repeat(2)
        weight = torch.cat([(1 - upper) * share, upper * share])
        # points that share a pixel are added up
        key, inverse = torch.unique(key, return_inverse=True)
        self.weight = torch.zeros(key.shape, dtype=low.dtype, device=low.device).index_add_(0, inverse, weight)
        self.pixel = key % pixels
        self.bin, self.roi = _divmod(key - self.pixel, pixels, bins)

    @staticmethod
    def _range(start, step, positions, pixels):
        """The points [begin, end) of all `positions` that may lie on the map, two more than do to be safe."""
        falls = ~(step > 0)
        safe = torch.where(falls, torch.ones_like(step), step)
        first = ((-1 - start) / safe - 2.5).masked_fill(falls, 0).clamp(min=0)
        last = torch.where(falls, positions, (pixels - start) / safe + 2.5)
        end = torch.min(last, positions).clamp(min=0)
        # what is not finite belongs to no usable roi, whose positions are 0
        end = torch.where(positions > 0, end, torch.zeros_like(end))
        return torch.min(first, end).floor().long(), end.floor().long()


def _divmod(multiple, pixels, bins):
    """bin and roi from pixels * (bin + bins * roi), without a division of integers, which old torch warns about."""
    number = (multiple.double() / pixels).round().long()
    bin = number % bins
    return bin, ((number - bin).double() / bins).round().long()
