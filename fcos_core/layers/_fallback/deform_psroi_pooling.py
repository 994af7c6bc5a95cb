"""Deformable position-sensitive RoI pooling of tensor operations of torch; csrc/deform_psroi_pooling says what it is.

RoIs are taken in parts, which bounds the memory; the backward pass computes each part again and differentiates it by
autograd.
"""

import math

import torch

from fcos_core.layers._fallback.checks import (
    check,
    check_floating,
    check_given,
    check_same_device,
    check_shape,
    compute_dtype,
    differentiable_once,
    divided,
    memory_format_of,
    round_half_away,
    usable_images,
    without_autocast,
)

_NAME = "deform_psroi_pooling"
_MAX_SIZE, _MAX_SAMPLES = 1024, 256
_MAX_VALUES = 2**22  # numbers read for a part, from one of the four cells around each sample


def deform_psroi_pooling(
    input, rois, trans, spatial_scale, output_dim, group_size, pooled_size, part_size, sample_per_part, trans_std
):
    """See `fcos_core.layers.deform_psroi_pooling`; returns the output and, int32, the samples that count."""
    check_given(_NAME, input=input, rois=rois)
    numbers = (spatial_scale, output_dim, group_size, pooled_size, part_size, sample_per_part, trans_std)
    return _DeformPsroiPooling.apply(input, rois, trans, *numbers)


class _DeformPsroiPooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, rois, trans, *numbers):
        with without_autocast(input):
            problem = _Problem(input, rois, trans, *numbers)
            output, counts = problem.empty()
            for part in problem.parts():
                output[part], counts[part] = problem.compute(part, *problem.read(part))
        ctx.save_for_backward(input, rois, trans)
        ctx.numbers = numbers
        ctx.mark_non_differentiable(counts)
        return output.to(input.dtype).contiguous(memory_format=memory_format_of(input)), counts

    @staticmethod
    @differentiable_once(_NAME)
    def backward(ctx, grad, _):
        input, rois, trans = ctx.saved_tensors
        to_input, to_trans = _deform_psroi_pooling_backward(grad, input, rois, trans, *ctx.numbers)
        return (to_input, None, None if trans is None else to_trans) + (None,) * 7


def _deform_psroi_pooling_backward(grad, input, rois, trans, *numbers):
    check_given(_NAME, grad=grad, input=input, rois=rois)
    with without_autocast(input):
        problem = _Problem(input, rois, trans, *numbers)
        check_floating(_NAME, "grad", grad)
        check_same_device(_NAME, "grad", grad, "input", input)
        fits = tuple(grad.shape) == (rois.shape[0], problem.output_dim) + (problem.pooled_size,) * 2
        check_shape(_NAME, "grad", grad, fits, "[K, output_dim, pooled_size, pooled_size], as the output")
        g = grad.detach().to(input.dtype).to(problem.dtype)
        to_maps = torch.zeros_like(problem.maps)
        to_trans = None if trans is None else torch.zeros(trans.shape, dtype=problem.dtype, device=trans.device)
        for part in problem.parts():
            leaves = [None if leaf is None else leaf.detach() for leaf in problem.read(part)]
            for leaf in leaves:
                if leaf is not None:
                    leaf.requires_grad_()
            with torch.enable_grad():
                output = problem.compute(part, *leaves)[0]
            some = [leaf for leaf in leaves if leaf is not None]
            grads = torch.autograd.grad(output, some, g[part])
            to_maps += grads[0]
            if to_trans is not None:
                to_trans[part] = grads[1]
    to_input = problem.as_input(to_maps).to(input.dtype).contiguous(memory_format=memory_format_of(input))
    return to_input, rois.new_empty(0) if trans is None else to_trans.to(trans.dtype)


class _Problem:
    """Checked arguments in the compute dtype.

    Attributes:
        maps: the input as [N * classes * G * G * H * W, D / classes].
        trans: [K, 2 * classes, A, A] or None.
    """

    def __init__(self, input, rois, trans, *numbers):
        self.spatial_scale, self.output_dim, self.group_size, self.pooled_size = numbers[:4]
        self.part_size, self.samples, self.trans_std = numbers[4:]
        output_dim, group_size = self.output_dim, self.group_size
        self._check_numbers()
        self._check_tensors(input, rois, trans)
        self.dtype = compute_dtype(input)
        self.rois = rois.detach().to(self.dtype)
        self.exists, self.images = usable_images(self.rois.trunc(), input.shape[0])
        self._check_images(input.shape[0])
        self.trans = None if trans is None else trans.detach().to(self.dtype)
        self.classes = 1 if trans is None else trans.shape[1] // 2
        self.class_channels = output_dim // self.classes
        num_images, _, self.height, self.width = input.shape
        shape = (num_images, self.classes, self.class_channels, group_size**2, self.height * self.width)
        self.shape, self.num_pixels = shape, num_images * self.classes * shape[3] * shape[4]
        maps = input.detach().to(self.dtype).reshape(shape).permute(0, 1, 3, 4, 2)
        self.maps = maps.reshape(self.num_pixels, self.class_channels)

    def as_input(self, maps):
        """What has the shape of `maps` as [N, D * G * G, H, W]."""
        num_images, classes, channels, groups, pixels = self.shape
        maps = maps.view(num_images, classes, groups, pixels, channels).permute(0, 1, 4, 2, 3)
        return maps.reshape(num_images, classes * channels * groups, self.height, self.width)

    # ---- checks

    def _check_numbers(self):
        fits = math.isfinite(self.spatial_scale) and self.spatial_scale > 0
        advice = "it is 1 / stride of the input"
        check(fits, _NAME, "spatial_scale", "to be finite and above 0", float(self.spatial_scale), advice)
        advice = "it is the number of output channels"
        check(self.output_dim >= 0, _NAME, "output_dim", "to be at least 0", self.output_dim, advice)
        for argument, value, most, advice in (
            ("group_size", self.group_size, _MAX_SIZE, "1 pools without groups"),
            ("pooled_size", self.pooled_size, _MAX_SIZE, "7 is usual"),
            ("part_size", self.part_size, _MAX_SIZE, "it is usually pooled_size"),
            ("sample_per_part", self.samples, _MAX_SAMPLES, "4 is usual"),
        ):
            check(1 <= value <= most, _NAME, argument, "in 1..{}".format(most), value, advice)
        fits = 0 <= self.trans_std <= 1
        check(fits, _NAME, "trans_std", "in [0, 1]", float(self.trans_std), "the paper uses 0.1")

    def _check_tensors(self, input, rois, trans):
        check_floating(_NAME, "input", input)
        check_floating(_NAME, "rois", rois)
        groups = self.group_size**2
        shape = "[N, output_dim * group_size^2, H, W] with output_dim = {} and group_size = {}".format(
            self.output_dim, self.group_size
        )
        fits = input.dim() == 4 and input.shape[1] == self.output_dim * groups
        check_shape(_NAME, "input", input, fits, shape)
        fits = rois.dim() == 2 and rois.shape[1] == 5
        check_shape(_NAME, "rois", rois, fits, "[K, 5], image x1 y1 x2 y2")
        check_same_device(_NAME, "rois", rois, "input", input)
        if trans is not None:
            self._check_trans(input, rois, trans)
        height, width = input.shape[2:]
        fits = max(height, width) < 2**31 and input.shape[1] * height * width < 10**15
        rule = "to have H and W below 2^31, and below 10^15 elements an image"
        check(fits, _NAME, "input", rule, list(input.shape), "see the docstring of the function")
        number = rois.shape[0] * self.output_dim * self.pooled_size**2
        got = "{} rois of output_dim {} and pooled_size {}".format(rois.shape[0], self.output_dim, self.pooled_size)
        check(number < 10**15, _NAME, "output", "to have below 10^15 elements", got, "pool fewer rois at a time")

    def _check_trans(self, input, rois, trans):
        check_floating(_NAME, "trans", trans)
        check_same_device(_NAME, "trans", trans, "input", input)
        shape = "[K, 2 * num_classes, part_size, part_size] with K = {} and part_size = {}".format(
            rois.shape[0], self.part_size
        )
        fits = trans.dim() == 4 and trans.shape[1] > 0 and trans.shape[1] % 2 == 0
        fits = fits and (trans.shape[0],) + tuple(trans.shape[2:]) == (rois.shape[0],) + (self.part_size,) * 2
        check_shape(_NAME, "trans", trans, fits, shape)
        classes = trans.shape[1] // 2
        rule = "to be a multiple of num_classes ({}, half of the channels of trans)".format(classes)
        advice = "every class owns as many output channels"
        check(self.output_dim % classes == 0, _NAME, "output_dim", rule, self.output_dim, advice)

    def _check_images(self, num_images):
        # a GPU would have to be waited for
        if self.rois.device.type != "cpu" or self.exists.all():
            return
        row = int((~self.exists).nonzero(as_tuple=True)[0][0])
        got = "{:g} at row {}".format(float(self.rois[row, 0]), row)
        rule = "to start with an image number in 0..{}".format(num_images - 1)
        advice = "input holds fewer images, or the columns of rois are in another order"
        check(False, _NAME, "rois", rule, got, advice)

    # ---- computation

    def empty(self):
        """Output and counts to be filled."""
        bins = (self.pooled_size,) * 2
        output = torch.zeros((len(self.rois), self.output_dim) + bins, dtype=self.dtype, device=self.rois.device)
        counts = torch.zeros((len(self.rois), self.classes) + bins, dtype=torch.int32, device=self.rois.device)
        return output, counts

    def parts(self):
        """Slices of rois."""
        per_roi = self.classes * (self.pooled_size * self.samples) ** 2 * max(1, self.class_channels)
        step = max(1, _MAX_VALUES // per_roi)
        return [slice(first, min(first + step, len(self.rois))) for first in range(0, len(self.rois), step)]

    def read(self, part):
        """What a part is computed from, and differentiated to."""
        return [self.maps, None if self.trans is None else self.trans[part]]

    def compute(self, part, maps, trans):
        """Output [k, D, P, P] and counts int32 [k, classes, P, P] of some rois."""
        y, y_inside, y_undefined = self._positions(part, trans, along_x=False)  # [k, classes, P, P, S]
        x, x_inside, x_undefined = self._positions(part, trans, along_x=True)
        inside = y_inside[..., :, None] & x_inside[..., None, :]  # [k, classes, P, P, S, S]
        counts = inside.sum((4, 5))
        total = self._sums(part, maps, y, x, inside)  # [k, classes, P, P, D / classes]
        output = total / counts.clamp(min=1).to(total.dtype)[..., None]
        undefined = y_undefined | x_undefined | ~self.exists[part][:, None, None, None]
        output = output.masked_fill(undefined[..., None], math.nan)
        counts = counts.masked_fill(undefined, 0).int()
        output = output.permute(0, 1, 4, 2, 3).reshape((output.shape[0], self.output_dim) + (self.pooled_size,) * 2)
        return output, counts

    def _positions(self, part, trans, along_x):
        """Along one axis: positions moved into the map [k, classes, P, P, S], which count, and which bins are NaN."""
        low, high = (1, 3) if along_x else (2, 4)
        rois, p = self.rois[part], self.pooled_size
        start = round_half_away(rois[:, low]) * self.spatial_scale - 0.5
        extent = (round_half_away(rois[:, high]) + 1) * self.spatial_scale - 0.5 - start
        # 0, or NaN if one is not finite
        start = start + ((rois[:, low] - rois[:, low]) + (rois[:, high] - rois[:, high]))
        extent = torch.where(extent < 0.1, torch.full_like(extent, 0.1), extent)
        extent, start = extent[:, None, None, None], start[:, None, None, None]
        bin = divided(extent, p)
        index = torch.arange(p, device=rois.device).to(rois.dtype)
        first = (index[None, :] if along_x else index[:, None]) * bin + start
        first = first.expand(-1, self.classes, p, p)
        if trans is not None:
            part_of = [i * self.part_size // p for i in range(p)]
            moves = trans[:, 0::2] if along_x else trans[:, 1::2]
            first = first + moves[:, :, part_of][:, :, :, part_of] * self.trans_std * extent
        steps = torch.arange(self.samples, device=rois.device).to(rois.dtype)
        position = first[..., None] + steps * divided(bin, self.samples)[..., None]
        size = self.width if along_x else self.height
        inside = (position >= -0.5) & (position <= size - 0.5) & (size > 0)
        undefined = (position != position).any(-1)
        position = torch.where(inside, position, torch.zeros_like(position)).clamp(0, max(size - 1, 0))
        return position, inside, undefined

    def _sums(self, part, maps, y, x, inside):
        """Sums over the samples of a bin [k, classes, P, P, D / classes]."""
        if self.num_pixels == 0 or inside.numel() == 0:
            return maps.sum() * 0 + y.sum() * 0 + x.sum() * 0 + maps.new_zeros(inside.shape[:4] + maps.shape[1:])
        p = self.pooled_size
        group_of = torch.tensor([i * self.group_size // p for i in range(p)], device=maps.device)
        group = group_of[:, None] * self.group_size + group_of
        cls = torch.arange(self.classes, device=maps.device)[:, None, None]
        plane = (self.images[part][:, None, None, None] * self.classes + cls) * self.group_size**2 + group
        base = plane[..., None, None] * (self.height * self.width)
        total = None
        for rows, weight_y in _cells(y, self.height):
            for columns, weight_x in _cells(x, self.width):
                index = base + rows[..., :, None] * self.width + columns[..., None, :]
                weight = weight_y[..., :, None] * weight_x[..., None, :]
                weight = torch.where(inside, weight, torch.zeros_like(weight))
                value = maps.index_select(0, index.reshape(-1)).view(index.shape + maps.shape[1:])
                # a cell that no sample reads may hold anything
                reads = (weight != 0)[..., None]
                term = torch.where(reads, value, torch.zeros_like(value)) * weight[..., None]
                total = term.sum((4, 5)) if total is None else total + term.sum((4, 5))
        return total


def _cells(position, size):
    """The two cells beside a position and their weights; on a cell, the other one has no weight and no slope."""
    cell = position.detach().floor().clamp(max=size - 1)
    fraction = position - cell
    fraction = torch.where(fraction > 0, fraction, torch.zeros_like(fraction))
    return [(cell.long(), 1 - fraction), ((cell.long() + 1).clamp(max=size - 1), fraction)]
