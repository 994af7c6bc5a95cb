"""Argument checks of the operators, as csrc/check.h and csrc/rois.h word them, and what the operators share.

Messages: ``<function>: expected <argument> <rule>, got <value>; <what to do>``.
"""

import contextlib
import functools
import math

import torch

_FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGRAL = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check(condition, function, argument, rule, got, advice):
    """Raise RuntimeError unless the condition holds; a float is written as C's %g does."""
    if not condition:
        got = "{:g}".format(got) if isinstance(got, float) else got
        raise RuntimeError("{}: expected {} {}, got {}; {}".format(function, argument, rule, got, advice))


def check_given(function, **tensors):
    """Refuse what is no tensor."""
    for argument, tensor in tensors.items():
        kind = "None" if tensor is None else type(tensor).__name__
        check(isinstance(tensor, torch.Tensor), function, argument, "to be a tensor", kind, "pass a torch.Tensor")


def check_floating(function, argument, tensor):
    """Refuse other dtypes than the floating ones that the operators take."""
    check_given(function, **{argument: tensor})
    rule = "of dtype float64, float32, float16 or bfloat16"
    check(tensor.dtype in _FLOATING, function, argument, rule, tensor.dtype, "convert with .float()")


def check_integral(function, argument, tensor):
    """Refuse other dtypes than integers."""
    check_given(function, **{argument: tensor})
    check(
        tensor.dtype in _INTEGRAL, function, argument, "of an integer dtype", tensor.dtype, "convert with .long()"
    )


def check_same_device(function, argument, tensor, other_argument, other):
    """Refuse a tensor that is elsewhere than another one."""
    rule = "on the device of {} ({})".format(other_argument, other.device)
    check(tensor.device == other.device, function, argument, rule, tensor.device, "move one of them with .to(device)")


def check_grad_of_losses(function, grad, argument, tensor, is_sum, shape, text):
    """Refuse a gradient of losses of `tensor`: one number if they were summed, else of `shape`, `text` in the docs."""
    check_floating(function, "grad", grad)
    check_same_device(function, "grad", grad, argument, tensor)
    if is_sum:
        check_shape(function, "grad", grad, grad.numel() == 1, "[], one number")
    else:
        check_shape(function, "grad", grad, grad.shape == shape, text)


def check_shape(function, argument, tensor, fits, shape):
    """Refuse a shape; `shape` is how the docs write the right one, such as "[M, 4]"."""
    check_given(function, **{argument: tensor})
    got = list(tensor.shape)
    check(fits, function, argument, "of shape {}".format(shape), got, "see the docstring of the function")


# ---- regions of interest: (image, x1, y1, x2, y2), corners in pixels of the network input


def check_rois(function, rois, other_argument, other):
    """Refuse rois that are not [K, 5] beside another tensor."""
    check_floating(function, "rois", rois)
    fits = rois.dim() == 2 and rois.shape[1] == 5
    check_shape(function, "rois", rois, fits, "[K, 5] (image, x1, y1, x2, y2)")
    check_same_device(function, "rois", rois, other_argument, other)


def check_images(function, rois, num_images):
    """Refuse an image number outside 0..num_images - 1 on the CPU; reading it would keep a GPU waiting."""
    if rois.device.type != "cpu":
        return
    bad = ~((rois[:, 0] >= 0) & (rois[:, 0] < num_images))
    if bad.any():
        row = int(bad.nonzero(as_tuple=True)[0][0])
        check(
            False,
            function,
            "the first column of rois",
            "in 0..{}, numbers of images".format(num_images - 1),
            "{:g} at row {}".format(float(rois[row, 0]), row),
            "rois are (image, x1, y1, x2, y2)",
        )


def check_spatial_scale(function, spatial_scale):
    """Refuse a scale that is not finite and above 0."""
    check(
        spatial_scale > 0 and math.isfinite(spatial_scale),
        function,
        "spatial_scale",
        "to be finite and above 0",
        spatial_scale,
        "it is the size of the map over that of the image, 1 / stride",
    )


def check_output_size(function, height, width, most):
    """Refuse numbers of bins outside 1..most."""
    for side in (height, width):
        advice = "7 is usual for boxes, 14 for masks"
        rule = "in 1..{}".format(most)
        check(1 <= side <= most, function, "both sides of output_size", rule, side, advice)


def usable_images(rois, num_images):
    """bool [K], whether the image of a roi exists, and int64 [K], its number (0 if it does not)."""
    exists = (rois[:, 0] >= 0) & (rois[:, 0] < num_images)
    return exists, torch.where(exists, rois[:, 0], torch.zeros_like(rois[:, 0])).long()


# ---- what the computations share


def compute_dtype(tensor):
    """Return float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def divided(x, number):
    """`x / number` as IEEE has it; on a GPU torch multiplies by the reciprocal of a Python number."""
    return x / torch.full_like(x, number)


def round_half_away(x):
    """Round to whole numbers, halves away from 0; torch.round takes them to the even neighbour."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5).to(x.dtype)


def memory_format_of(tensor):
    """Return channels_last if the strides of a tensor of four dimensions are those, as csrc's calls judge it."""
    if tensor.dim() != 4 or tensor.stride(1) == 0:
        return torch.contiguous_format
    least = 0
    for dim in (1, 3, 2, 0):
        stride = tensor.stride(dim)
        if tensor.shape[dim] == 0 or stride < least or (dim == 0 and least == tensor.stride(1)):
            return torch.contiguous_format
        least = stride * max(tensor.shape[dim], 1)
    return torch.channels_last


def autocast_dtype(tensor):
    """Return the dtype of autocast on the device of a tensor, or None where it is off."""
    kind = tensor.device.type
    if hasattr(torch, "get_autocast_dtype"):  # 2.4 and later
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if kind == "cuda":
        if not torch.is_autocast_enabled():
            return None
        return torch.get_autocast_gpu_dtype() if hasattr(torch, "get_autocast_gpu_dtype") else torch.float16
    if kind == "cpu" and hasattr(torch, "is_autocast_cpu_enabled") and torch.is_autocast_cpu_enabled():
        return torch.get_autocast_cpu_dtype()
    return None


def without_autocast(tensor):
    """A context in which what is computed keeps its dtype."""
    if autocast_dtype(tensor) is None:
        return contextlib.nullcontext()
    if hasattr(torch, "autocast"):  # 1.10 and later
        return torch.autocast(tensor.device.type, enabled=False)
    return torch.cuda.amp.autocast(enabled=False)


def differentiable_once(function):
    """Decorate the backward of a torch.autograd.Function that stands for an operator, called `function`.

    It is computed without a graph; its own derivative raises instead of being silently left out.
    """

    def decorate(backward):
        @functools.wraps(backward)
        def wrapped(ctx, *grads):
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return results
            origins = [t for t in grads + tuple(ctx.saved_tensors) if t is not None and t.requires_grad]
            return tuple(t if t is None else _RefusedSecond.apply(function, t, *origins) for t in results)

        return wrapped

    return decorate


class _RefusedSecond(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, result, *origins):
        ctx.function = function
        return result.view_as(result)

    @staticmethod
    def backward(ctx, grad):
        advice = "the op is differentiable once, drop create_graph=True"
        check(False, ctx.function, "one", "backward pass", "a second one through its gradient", advice)
