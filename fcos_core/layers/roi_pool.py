"""RoI max pooling; the kernels and their contract are in csrc/roi_pool.

Letters: N images, C channels, K regions of interest (rois).
"""

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from fcos_core.layers._library import load

__all__ = ["roi_pool", "ROIPool"]


def roi_pool(input, rois, output_size, spatial_scale):
    """Maxima of a feature map in the bins of each region of interest.

    The corners of a roi are scaled to the map and rounded (halves away from 0) to its first and last pixel; the pixels
    between are cut into ``output_size`` bins, which overlap where the division leaves a rest.

    Args:
        input: [N, C, H, W] features, any floating dtype, contiguous or channels_last; others are copied.
        rois: [K, 5] image index, x1, y1, x2, y2, in pixels of the network input; any floating dtype, which need not be
            that of input.  Leave it float32 where features are half precision.
        output_size (int or (int, int)): height and width of the output, in bins.
        spatial_scale (float): size of the map over that of the network input, 1 / stride.

    Returns:
        [K, C, height, width], dtype and layout of input; a bin without a pixel on the map is 0.

    Raises:
        RuntimeError: shapes, dtypes, devices or numbers do not fit, or on the CPU an image index is out of range.

    Note:
        Gradient to input, none to rois; once differentiable.  It goes to the first of equal maxima, in the order of
        rows, and is summed in float32 for half precision.  On a GPU it varies in the last bits, unless
        `torch.use_deterministic_algorithms` is on.  NaN counts as larger than any number.
        A roi with a coordinate that is not finite, and on a GPU one whose image index is out of range, gives NaN and
        passes no gradient on.
        Legacy: pixels are counted inclusively, so a side is ``x2 - x1 + 1`` pixels long, and at least 1.

    Reference:
        Girshick, Fast R-CNN, arXiv:1504.08083, section 2.1.
    """
    load()
    height, width = _pair(output_size)
    return torch.ops.fcos_core.roi_pool(input, rois, float(spatial_scale), int(height), int(width))[0]


class ROIPool(nn.Module):
    """`roi_pool` with its numbers fixed.

    Args:
        output_size (int or (int, int)): height and width of the output, in bins.
        spatial_scale (float): size of the map over that of the network input.
    """

    def __init__(self, output_size, spatial_scale):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input, rois):
        """Return features [K, C, height, width] of input [N, C, H, W] at rois [K, 5]."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self):
        return "output_size={}, spatial_scale={}".format(self.output_size, self.spatial_scale)


class _ROIPool:
    """Old name of the differentiable function: ``_ROIPool.apply``."""

    apply = staticmethod(roi_pool)
