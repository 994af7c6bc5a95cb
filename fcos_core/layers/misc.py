"""Old names of layers that once worked around torch's refusal of empty batches.

Every supported torch takes empty batches itself (test_misc checks it), so these are torch's own.  DFConv2d lives in
deform_conv.py.
"""
import torch
from torch.nn import BatchNorm2d, Conv2d, ConvTranspose2d
from torch.nn import functional as F

from fcos_core.layers.deform_conv import DFConv2d

__all__ = ["BatchNorm2d", "Conv2d", "ConvTranspose2d", "DFConv2d", "interpolate"]


def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None):
    """`torch.nn.functional.interpolate` with the arguments that the old function had."""
    return F.interpolate(input, size=size, scale_factor=scale_factor, mode=mode, align_corners=align_corners)


class _NewEmptyTensorOp(torch.autograd.Function):
    """An empty tensor of another shape that stays attached to the graph: ``_NewEmptyTensorOp.apply(x, shape)``."""

    @staticmethod
    def forward(ctx, x, new_shape):
        """Return uninitialised memory of shape `new_shape`, dtype and device of x."""
        ctx.shape = x.shape
        return x.new_empty(new_shape)

    @staticmethod
    def backward(ctx, grad):
        """Gradient of the shape of x, also uninitialised: both are meant to have no elements."""
        return grad.new_empty(ctx.shape), None
