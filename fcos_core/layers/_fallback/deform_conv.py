"""Deformable convolution of tensor operations of torch; csrc/deform_conv/deform_conv.h says what it computes.

Output positions are taken in parts, so that the columns of one part bound the memory; the backward pass computes each
part again and differentiates it by autograd.
"""

import torch

from fcos_core.layers._fallback.checks import (
    autocast_dtype,
    check,
    check_floating,
    check_given,
    check_same_device,
    check_shape,
    compute_dtype,
    differentiable_once,
    memory_format_of,
    without_autocast,
)

_NAME = "deform_conv"
_LARGEST = 2**20  # stride, padding, dilation, numbers of groups
_LIMIT = 2**30
_MAX_COLUMNS = 2**22  # numbers in the columns of a part


def deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, deformable_groups):
    """See `fcos_core.layers.modulated_deform_conv`; mask and bias may be None."""
    check_given(_NAME, input=input, weight=weight, offset=offset)
    dtype = autocast_dtype(input)
    if dtype is not None:  # like a convolution; offset and mask stay as they are
        input, weight, bias = (_cast(tensor, dtype) for tensor in (input, weight, bias))
    return _DeformConv.apply(
        input, weight, offset, mask, bias, tuple(stride), tuple(padding), tuple(dilation), groups, deformable_groups
    )


def _cast(tensor, dtype):
    keeps = tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64
    return tensor if keeps else tensor.to(dtype)


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, offset, mask, bias, *numbers):
        with without_autocast(input):
            problem = _Problem(input, weight, offset, mask, bias, numbers)
            output = problem.empty_output()
            for part in problem.parts():
                output[part.image].flatten(1)[:, part.positions] = part.compute(*problem.read(part))
        ctx.save_for_backward(input, weight, offset, mask)
        ctx.numbers, ctx.with_bias = numbers, bias is not None
        return output.to(input.dtype).contiguous(memory_format=memory_format_of(input))

    @staticmethod
    @differentiable_once(_NAME)
    def backward(ctx, grad):
        input, weight, offset, mask = ctx.saved_tensors
        grads = _deform_conv_backward(grad, input, weight, offset, mask, ctx.with_bias, *ctx.numbers)
        return grads[:3] + (grads[3] if mask is not None else None, grads[4] if ctx.with_bias else None) + (None,) * 5


def _deform_conv_backward(
    grad, input, weight, offset, mask, with_bias, stride, padding, dilation, groups, deformable_groups
):
    check_given(_NAME, grad=grad, input=input, weight=weight, offset=offset)
    numbers = (tuple(stride), tuple(padding), tuple(dilation), groups, deformable_groups)
    with without_autocast(input):
        problem = _Problem(input, weight, offset, mask, None, numbers)
        check_floating(_NAME, "grad", grad)
        check_same_device(_NAME, "grad", grad, "input", input)
        check_shape(_NAME, "grad", grad, tuple(grad.shape) == problem.out_shape, str(list(problem.out_shape)))
        g = grad.detach().to(problem.dtype)
        sums = [torch.zeros_like(tensor) for tensor in problem.tensors]
        for part in problem.parts():
            with torch.enable_grad():
                leaves = [tensor.detach().requires_grad_() for tensor in problem.read(part)]
                output = part.compute(*leaves)
            # a map without cells depends on nothing
            weights = g[part.image].flatten(1)[:, part.positions]
            grads = torch.autograd.grad(output, leaves, weights, allow_unused=True)
            problem.add(part, grads, sums)
        to_bias = g.sum((0, 2, 3)).to(weight.dtype) if with_bias else weight.new_empty(0)
    results = [_as_is(total, like) for total, like in zip(sums, (input, weight, offset, mask))]
    results += [offset.new_empty(0)] * (mask is None) + [to_bias]
    return tuple(results)


def _as_is(total, like):
    """A gradient in dtype and memory format of what it belongs to."""
    return total.view(like.shape).to(like.dtype).contiguous(memory_format=memory_format_of(like))


class _Problem:
    """Checked arguments in the compute dtype, cut into parts.

    Attributes:
        tensors: input [N, C, H * W], weight [O, C / groups, K], offset [N, D, K, 2, positions] and, if there is one,
            mask [N, D, K, positions].
    """

    def __init__(self, input, weight, offset, mask, bias, numbers):
        self.stride, self.padding, self.dilation, self.groups, self.deformable_groups = numbers
        self._check_features(input, weight)
        self.size, self.kernel = tuple(input.shape[2:]), tuple(weight.shape[2:])
        self.out_size = (self._out_size(0), self._out_size(1))
        positions = self.out_size[0] * self.out_size[1]
        rule = "to have fewer than 2^30 positions"
        check(positions < _LIMIT, _NAME, "output", rule, positions, "split the map")
        self.out_shape = (input.shape[0], weight.shape[0]) + self.out_size
        taps = self.kernel[0] * self.kernel[1]
        self._check_sampling("offset", offset, input, self.deformable_groups * taps * 2)
        if mask is not None:
            self._check_sampling("mask", mask, input, self.deformable_groups * taps)
        if bias is not None:
            self._check_like_features("bias", bias, input)
            fits = bias.dim() == 1 and bias.shape[0] == weight.shape[0]
            check_shape(_NAME, "bias", bias, fits, "[O], one per channel of output")
        self.dtype, self.bias = compute_dtype(input), bias
        groups = (input.shape[0], self.deformable_groups, taps)
        views = [
            (input, tuple(input.shape[:2]) + (self.size[0] * self.size[1],)),
            (weight, tuple(weight.shape[:2]) + (taps,)),
            (offset, groups + (2, positions)),
        ]
        views += [(mask, groups + (positions,))] * (mask is not None)
        self.tensors = [tensor.detach().to(self.dtype).reshape(shape) for tensor, shape in views]

    def _check_features(self, input, weight):
        check_floating(_NAME, "input", input)
        check_shape(_NAME, "input", input, input.dim() == 4, "[N, C, H, W]")
        check_shape(_NAME, "weight", weight, weight.dim() == 4, "[O, C / groups, kernel height, width]")
        self._check_like_features("weight", weight, input)
        for argument, pair, least in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
        ):
            fits = len(pair) == 2 and min(pair) >= least and max(pair) <= _LARGEST
            rule = "to be two numbers in {}..{}".format(least, _LARGEST)
            check(fits, _NAME, argument, rule, list(pair), "the first is for y, the second for x")
        channels, outputs = input.shape[1], weight.shape[0]
        self._check_groups("groups", self.groups, "the channels of input", channels)
        self._check_groups("groups", self.groups, "the channels of output", outputs)
        self._check_groups("deformable_groups", self.deformable_groups, "the channels of input", channels)
        rule = "with {} channels in dimension 1, {} of input / {} groups".format(
            channels // self.groups, channels, self.groups
        )
        fits = weight.shape[1] == channels // self.groups
        check(fits, _NAME, "weight", rule, list(weight.shape), "see the docstring of the function")
        for argument, tensor, rule, advice in (
            ("input", input, "of fewer than 2^30 cells", "split the map"),
            ("weight", weight, "of fewer than 2^30 taps", "this is no kernel"),
        ):
            height, width = tensor.shape[2:]
            fits = max(height, width) < _LIMIT and height * width < _LIMIT
            check(fits, _NAME, argument, rule, list(tensor.shape), advice)

    @staticmethod
    def _check_groups(argument, groups, what, channels):
        rule = "to divide {} ({})".format(what, channels)
        check(1 <= groups <= _LARGEST and channels % groups == 0, _NAME, argument, rule, groups, "1 is no grouping")

    @staticmethod
    def _check_like_features(argument, tensor, input):
        check_given(_NAME, **{argument: tensor})
        rule = "of the dtype of input ({})".format(input.dtype)
        check(tensor.dtype == input.dtype, _NAME, argument, rule, tensor.dtype, "convert one of them with .to(dtype)")
        check_same_device(_NAME, argument, tensor, "input", input)

    def _check_sampling(self, argument, tensor, input, count):
        check_floating(_NAME, argument, tensor)
        check_same_device(_NAME, argument, tensor, "input", input)
        expected = (input.shape[0], count) + self.out_size
        check_shape(_NAME, argument, tensor, tuple(tensor.shape) == expected, str(list(expected)))

    def _out_size(self, axis):
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        padded = self.size[axis] + 2 * self.padding[axis]
        what = "padded input width" if axis else "padded input height"
        rule = "to be at least the extent of the kernel ({})".format(reach)
        fits = self.kernel[axis] >= 1 and padded >= reach
        check(fits, _NAME, what, rule, padded, "use more padding or less dilation")
        return (padded - reach) // self.stride[axis] + 1

    def empty_output(self):
        """An output in the compute dtype."""
        return torch.zeros(self.out_shape, dtype=self.dtype, device=self.tensors[0].device)

    def parts(self):
        """List of _Part."""
        positions = self.out_size[0] * self.out_size[1]
        channels, taps = max(1, self.tensors[0].shape[1]), self.kernel[0] * self.kernel[1]
        step = max(1, _MAX_COLUMNS // (channels * taps))
        return [
            _Part(self, image, slice(first, min(first + step, positions)))
            for image in range(self.out_shape[0])
            for first in range(0, positions, step)
        ]

    def read(self, part):
        """What a part is computed from."""
        input, weight, offset = self.tensors[:3]
        some = [tensor[part.image][..., part.positions] for tensor in self.tensors[2:]]
        return [input[part.image], weight] + some

    @staticmethod
    def add(part, grads, sums):
        """Add the gradients of what `read` returned; None is 0."""
        places = [sums[0][part.image], sums[1]] + [total[part.image][..., part.positions] for total in sums[2:]]
        for place, grad in zip(places, grads):
            if grad is not None:
                place += grad


class _Part:
    """Some output positions of one image."""

    def __init__(self, problem, image, positions):
        self.problem, self.image, self.positions = problem, image, positions

    def compute(self, input, weight, offset, mask=None):
        """Output [O, positions] of input [C, H * W], weight [O, C / groups, K], offset [D, K, 2, positions], mask."""
        p = self.problem
        y, x = self._points(offset)  # [D, K, positions]
        groups = (p.deformable_groups, input.shape[0] // p.deformable_groups)
        cells = input.view(groups + input.shape[1:]).permute(0, 2, 1)  # [D, H * W, C / D]
        columns = [
            _sample(cells[d], y[d], x[d], p.size, None if mask is None else mask[d]) for d in range(p.deformable_groups)
        ]
        columns = torch.cat(columns, 2)  # [K, positions, C]
        taps, positions, channels = columns.shape
        columns = columns.view(taps, positions, p.groups, channels // p.groups).permute(2, 1, 0, 3)
        columns = columns.reshape(p.groups, positions, taps * weight.shape[1])
        outputs = weight.shape[0]
        matrix = weight.view(p.groups, outputs // p.groups, weight.shape[1], taps).permute(0, 3, 2, 1)
        matrix = matrix.reshape(p.groups, taps * weight.shape[1], outputs // p.groups)
        output = torch.bmm(columns, matrix).permute(0, 2, 1).reshape(outputs, positions)
        return output if p.bias is None else output + p.bias.detach().to(output.dtype)[:, None]

    def _points(self, offset):
        p = self.problem
        at = torch.arange(self.positions.start, self.positions.stop, device=offset.device)
        out_x = at % p.out_size[1]
        # exact: a division of integers is what old torch warns about
        out_y = ((at - out_x).double() / p.out_size[1]).round().long()
        tap = torch.arange(p.kernel[0] * p.kernel[1], device=offset.device)
        tap_x = tap % p.kernel[1]
        tap_y = ((tap - tap_x).double() / p.kernel[1]).round().long()
        y = out_y[None] * p.stride[0] - p.padding[0] + tap_y[:, None] * p.dilation[0]
        x = out_x[None] * p.stride[1] - p.padding[1] + tap_x[:, None] * p.dilation[1]
        return y.to(offset.dtype) + offset[:, :, 0], x.to(offset.dtype) + offset[:, :, 1]


def _sample(cells, y, x, size, mask):
    """Columns [K, positions, C] of cells [H * W, C] at points [K, positions], times mask [K, positions]."""
    height, width = size
    inside = (y > -1) & (x > -1) & (y < height) & (x < width)  # false for NaN
    undefined = (y != y) | (x != x)
    zero = torch.zeros_like(y)
    # no gradient where nothing is read
    y_safe, x_safe = torch.where(inside, y, zero), torch.where(inside, x, zero)
    top, left = y_safe.detach().floor(), x_safe.detach().floor()
    # the slope on a line of cells is that towards larger coordinates
    below, right = y_safe - top, x_safe - left
    blend = None
    for dy, weight_y in ((0, 1 - below), (1, below)):
        for dx, weight_x in ((0, 1 - right), (1, right)):
            row, column = top.long() + dy, left.long() + dx
            exists = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = torch.where(exists, row * width + column, torch.zeros_like(row))
            weight = torch.where(exists, weight_y * weight_x, zero)
            if cells.shape[0] == 0:
                continue
            value = cells.index_select(0, index.reshape(-1)).view(index.shape + cells.shape[1:])
            # a cell that is not read may hold anything
            term = torch.where(exists[..., None], value * weight[..., None], torch.zeros_like(value))
            blend = term if blend is None else blend + term
    if blend is None:
        blend = zero[..., None].expand(zero.shape + cells.shape[1:]) + cells.sum() * 0
    if mask is not None:
        blend = blend * mask[..., None]
    if undefined.any():
        # a NaN point gives NaN, and so do its gradients
        nan = torch.where(undefined, y + x, zero)
        blend = torch.where(undefined[..., None], (nan * nan)[..., None].expand_as(blend), blend)
    return blend
