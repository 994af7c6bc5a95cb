"""Group normalisation followed by ReLU; the kernels and their contract are in csrc/group_norm_relu.

Letters: N images, C channels, G groups.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fcos_core.layers._library import load

__all__ = ["GroupNormReLU", "group_norm_relu"]


def group_norm_relu(input, num_groups, weight, bias, eps=1e-5):
    """max(0, GroupNorm(input)) in one operator.

    Worth it on a GPU in channels_last: torch normalises groups in contiguous maps only, and copies others in and out.
    Elsewhere the operator is composed of torch's and gains nothing; `GroupNormReLU` chooses.

    Args:
        input: [N, C, H, W], any floating dtype; half precision is computed in float32.
        num_groups (int): G, which divides C.
        weight, bias: [C], any floating dtype.
        eps (float): added to the variance.

    Returns:
        [N, C, H, W], dtype and memory format of input, under autocast too.

    Raises:
        RuntimeError: shapes, dtypes, devices or numbers do not fit.

    Note:
        Gradients to input, weight and bias, once differentiable.  The same bits each time.

    Reference:
        Wu and He, Group Normalization, arXiv:1803.08494.
    """
    load()
    return torch.ops.fcos_core.group_norm_relu(input, weight, bias, num_groups, float(eps))[0]


class GroupNormReLU(nn.GroupNorm):
    """`nn.GroupNorm` followed by ReLU, with the parameters and the state of the first.

    Through `group_norm_relu` for maps in channels_last on a GPU, through torch's own operators otherwise.
    """

    def forward(self, input):
        """Return a tensor like input [N, C, H, W]."""
        channels_last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if input.is_cuda and channels_last and not input.is_contiguous() and self.affine:
            return group_norm_relu(input, self.num_groups, self.weight, self.bias, self.eps)
        return F.relu(super().forward(input))
