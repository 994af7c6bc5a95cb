"""A learned scalar factor."""
import torch
from torch import nn


class Scale(nn.Module):
    """Multiply by one learned number, of shape [1] in the state dict.

    FCOS has one per pyramid level, so that a head shared over levels can predict distances of different magnitude.

    Reference:
        Tian et al., FCOS, arXiv:1904.01355, section 3.2.
    """

    def __init__(self, init_value=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([float(init_value)]))

    def forward(self, input):
        """Return input * scale, same shape."""
        return input * self.scale
