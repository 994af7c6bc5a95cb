"""Group normalisation with ReLU of tensor operations of torch; see csrc/group_norm_relu/group_norm_relu.h."""

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
    memory_format_of,
    without_autocast,
)

_NAME = "group_norm_relu"


def group_norm_relu(input, weight, bias, num_groups, eps):
    """See `fcos_core.layers.group_norm_relu`: output, and mean and 1 / deviation [N, G] of the groups."""
    check_given(_NAME, input=input, weight=weight, bias=bias)
    return _GroupNormRelu.apply(input, weight, bias, num_groups, eps)


class _GroupNormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias, num_groups, eps):
        _check(input, weight, bias, num_groups)
        check(eps >= 0 and math.isfinite(eps), _NAME, "eps", "to be finite and at least 0", float(eps), "1e-5 is usual")
        ctx.num_groups = num_groups
        groups = _groups(input.to(compute_dtype(input)), num_groups)
        if groups.numel() == 0:
            mean = torch.zeros(groups.shape[:2], dtype=groups.dtype, device=groups.device)
            rstd = mean.clone()
        else:
            mean = groups.mean(2)
            rstd = ((groups - mean[:, :, None]).pow(2).mean(2) + eps).rsqrt()
        output = _affine(_normalised(groups, mean, rstd, input.shape), weight, bias).relu()
        ctx.save_for_backward(input, weight, bias, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        return _like(output, input), mean, rstd

    @staticmethod
    @differentiable_once(_NAME)
    def backward(ctx, grad, _, __):
        return _group_norm_relu_backward(grad, *ctx.saved_tensors, ctx.num_groups) + (None, None)


def _group_norm_relu_backward(grad, input, weight, bias, mean, rstd, num_groups):
    check_given(_NAME, grad=grad, input=input, weight=weight, bias=bias, mean=mean, rstd=rstd)
    _check(input, weight, bias, num_groups)
    check_floating(_NAME, "grad", grad)
    check_shape(_NAME, "grad", grad, grad.shape == input.shape, "[N, C, H, W], as input")
    check_same_device(_NAME, "grad", grad, "input", input)
    dtype = compute_dtype(input)
    for argument, moments in (("mean", mean), ("rstd", rstd)):
        advice = "pass the one that the forward gave"
        check(moments.dtype == dtype, _NAME, argument, "of dtype {}".format(dtype), moments.dtype, advice)
        check_shape(_NAME, argument, moments, moments.shape == (input.shape[0], num_groups), "[N, G]")
        check_same_device(_NAME, argument, moments, "input", input)
    if input.numel() == 0:
        return torch.empty_like(input), torch.zeros_like(weight), torch.zeros_like(bias)
    with torch.no_grad(), without_autocast(input):
        x = _normalised(_groups(input.to(dtype), num_groups), mean, rstd, input.shape)
        slope = grad.to(dtype).masked_fill(~(_affine(x, weight, bias) > 0), 0)
        by_x = _groups(slope * weight.to(dtype)[:, None, None], num_groups)
        groups = _groups(x, num_groups)
        # what mean and deviation take back
        by_x = by_x - by_x.mean(2, keepdim=True) - groups * (by_x * groups).mean(2, keepdim=True)
        grad_input = (by_x * rstd[:, :, None]).view(input.shape)
        grad_weight, grad_bias = (slope * x).sum((0, 2, 3)), slope.sum((0, 2, 3))
    return _like(grad_input, input), grad_weight.to(weight.dtype), grad_bias.to(bias.dtype)


def _check(input, weight, bias, num_groups):
    check_floating(_NAME, "input", input)
    check_shape(_NAME, "input", input, input.dim() == 4, "[N, C, H, W]")
    for argument, tensor in (("weight", weight), ("bias", bias)):
        check_floating(_NAME, argument, tensor)
        fits = tensor.dim() == 1 and tensor.shape[0] == input.shape[1]
        check_shape(_NAME, argument, tensor, fits, "[C], one per channel of input")
        check_same_device(_NAME, argument, tensor, "input", input)
    rule = "to divide the channels of input ({})".format(input.shape[1])
    fits = num_groups >= 1 and input.shape[1] % num_groups == 0
    check(fits, _NAME, "num_groups", rule, num_groups, "32 is usual")
    fits, advice = input.shape[0] * num_groups < 10**15, "normalise fewer images at a time"
    check(fits, _NAME, "input", "to have below 10^15 groups", list(input.shape), advice)


def _groups(x, num_groups):
    """[N, C, H, W] as [N, G, values of a group]."""
    num_images, channels, height, width = x.shape
    return x.contiguous().view(num_images, num_groups, channels // num_groups * height * width)


def _normalised(groups, mean, rstd, shape):
    return ((groups - mean[:, :, None]) * rstd[:, :, None]).view(shape)


def _affine(x, weight, bias):
    return x * weight.to(x.dtype)[:, None, None] + bias.to(x.dtype)[:, None, None]


def _like(values, input):
    """In the dtype and layout of the input."""
    return values.to(input.dtype).contiguous(memory_format=memory_format_of(input))
