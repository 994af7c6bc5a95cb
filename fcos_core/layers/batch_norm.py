"""Batch normalisation with constant statistics."""
import torch
from torch import nn


class FrozenBatchNorm2d(nn.Module):
    """Affine map per channel from constant weight, bias, mean and variance (four buffers, nothing to train).

    ``y = (x - running_mean) / sqrt(running_var) * weight + bias``

    Args:
        n: number of channels.

    Note:
        Legacy: no epsilon; weights converted from Caffe2 have it folded in.
    """

    def __init__(self, n):
        super().__init__()
        self.register_buffer("weight", torch.ones(n))
        self.register_buffer("bias", torch.zeros(n))
        self.register_buffer("running_mean", torch.zeros(n))
        self.register_buffer("running_var", torch.ones(n))

    def forward(self, x):
        """Normalise x [N, C, H, W]; dtype and memory format are kept."""
        scale = self.weight * self.running_var.rsqrt()
        shift = self.bias - self.running_mean * scale
        # cast [C] numbers, not the map: under autocast a float32 factor would turn the whole map into float32
        scale = scale.to(x.dtype).reshape(1, -1, 1, 1)
        shift = shift.to(x.dtype).reshape(1, -1, 1, 1)
        return torch.addcmul(shift, x, scale)  # one pass over the map, and nothing saved for backward

    def extra_repr(self):
        return str(self.weight.numel())
