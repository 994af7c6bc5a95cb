"""RoIAlign; the kernels and their contract are in csrc/roi_align.

Letters: N images, C channels, K regions of interest (rois).
"""

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from fcos_core.layers._library import load

__all__ = ["roi_align", "ROIAlign"]


def roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned=False):
    """Average bilinear samples of a feature map on a grid over each region of interest.

    A roi is scaled to the map and cut into ``output_size`` bins; a bin is the mean of evenly spaced samples in it.
    Samples more than one pixel above or left of the map, or below or right of its end, count as 0.

    Args:
        input: [N, C, H, W] features, any floating dtype, contiguous or channels_last; others are copied.
        rois: [K, 5] image index, x1, y1, x2, y2, in pixels of the network input; any floating dtype, which need not be
            that of input.  Leave it float32 where features are half precision.
        output_size (int or (int, int)): height and width of the output, in bins.
        spatial_scale (float): size of the map over that of the network input, 1 / stride.
        sampling_ratio (int): samples of a bin along each axis; 0 or less adapts to the roi, ceil(size / bins).
        aligned (bool): shift rois by half a pixel, so that integer coordinates are corners of pixels and not their
            centres, and allow rois below one pixel.

    Returns:
        [K, C, height, width], dtype and layout of input.

    Raises:
        RuntimeError: shapes, dtypes, devices or numbers do not fit, or on the CPU an image index is out of range.

    Note:
        Gradient to input, none to rois; once differentiable.  Half precision is computed, and its gradient summed, in
        float32.  The result does not depend on the number of threads; on a GPU the gradient varies in the last bits,
        unless `torch.use_deterministic_algorithms` is on.
        A roi with a coordinate that is not finite, and on a GPU one whose image index is out of range, gives NaN and
        passes no gradient on.
        Legacy: ``aligned=False`` is how the detectors here were trained; rois are then at least one pixel wide.

    Reference:
        He et al., Mask R-CNN, arXiv:1703.06870, section 3.
    """
    load()
    height, width = _pair(output_size)
    return torch.ops.fcos_core.roi_align(
        input, rois, float(spatial_scale), int(height), int(width), int(sampling_ratio), bool(aligned)
    )


class ROIAlign(nn.Module):
    """`roi_align` with its numbers fixed.

    Args:
        output_size (int or (int, int)): height and width of the output, in bins.
        spatial_scale (float): size of the map over that of the network input.
        sampling_ratio (int): samples of a bin along each axis; 0 adapts to the roi.
        aligned (bool): shift rois by half a pixel.
    """

    def __init__(self, output_size, spatial_scale, sampling_ratio, aligned=False):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input, rois):
        """Return features [K, C, height, width] of input [N, C, H, W] at rois [K, 5]."""
        return roi_align(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned)

    def extra_repr(self):
        text = "output_size={}, spatial_scale={}, sampling_ratio={}".format(
            self.output_size, self.spatial_scale, self.sampling_ratio
        )
        return text + (", aligned=True" if self.aligned else "")


class _ROIAlign:
    """Old name of the differentiable function: ``_ROIAlign.apply``."""

    apply = staticmethod(roi_align)
