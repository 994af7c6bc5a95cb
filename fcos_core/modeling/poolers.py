"""Features of boxes from the level of a pyramid that fits their size: for heads that look at boxes again.

Reference: Lin et al., Feature Pyramid Networks, arXiv:1612.03144, equation 1.
"""
import math

import torch
from torch import nn

from fcos_core.layers import ROIAlign
from fcos_core.modeling.utils import cat


class LevelMapper(object):
    """Level of each box by its area: floor(canonical_level + log2(sqrt(area) / canonical_scale)).

    Args:
        k_min, k_max: first and last level, log2 of their strides.
        canonical_scale, canonical_level: a box of that side, pixels, belongs to that level.
        eps: added under the logarithm, so that a box of exactly that side belongs there in spite of rounding.
    """

    def __init__(self, k_min, k_max, canonical_scale=224, canonical_level=4, eps=1e-6):
        self.k_min = k_min
        self.k_max = k_max
        self.s0 = canonical_scale
        self.lvl0 = canonical_level
        self.eps = eps

    def __call__(self, boxlists):
        """Levels of all boxes of a list of BoxLists, counted from 0 for k_min: [K] int64."""
        sides = torch.sqrt(cat([boxlist.area() for boxlist in boxlists]))
        levels = torch.floor(self.lvl0 + torch.log2(sides / self.s0 + self.eps))
        return levels.clamp(min=self.k_min, max=self.k_max).to(torch.int64) - int(self.k_min)


class Pooler(nn.Module):
    """RoIAlign on the level that fits each box.

    Args:
        output_size: (height, width) of the features, bins.
        scales: 1 / stride of each level, fine to coarse; powers of two.
        sampling_ratio: see layers.roi_align.
    """

    def __init__(self, output_size, scales, sampling_ratio):
        super(Pooler, self).__init__()
        self.poolers = nn.ModuleList([ROIAlign(output_size, scale, sampling_ratio) for scale in scales])
        self.output_size = output_size
        self.map_levels = LevelMapper(-math.log2(scales[0]), -math.log2(scales[-1]))

    def convert_to_roi_format(self, boxes):
        """Boxes of N images as [K, 5]: number of the image, then xyxy."""
        boxes = [boxlist.convert("xyxy").bbox for boxlist in boxes]
        numbers = [box.new_full((len(box), 1), image) for image, box in enumerate(boxes)]
        return torch.cat((cat(numbers), cat(boxes)), dim=1)

    def forward(self, x, boxes):
        """Features of boxes.

        Args:
            x: list of maps [N, C, H_l, W_l], one for each scale.
            boxes: list of N BoxLists.

        Returns:
            [K, C, height, width] for the K boxes of all images, in their order.
        """
        rois = self.convert_to_roi_format(boxes)
        if len(self.poolers) == 1:
            return self.poolers[0](x[0], rois)
        levels = self.map_levels(boxes)
        height, width = (self.output_size,) * 2 if isinstance(self.output_size, int) else self.output_size
        result = x[0].new_zeros((len(rois), x[0].shape[1], height, width))
        for level, (feature, pooler) in enumerate(zip(x, self.poolers)):
            index = torch.nonzero(levels == level, as_tuple=True)[0]
            result = result.index_put((index,), pooler(feature, rois[index]).to(result.dtype))
        return result


def make_pooler(cfg, head_name):
    """The Pooler that the section MODEL.<head_name> describes by POOLER_RESOLUTION, _SCALES and _SAMPLING_RATIO."""
    options = cfg.MODEL[head_name]
    resolution = options.POOLER_RESOLUTION
    return Pooler((resolution, resolution), options.POOLER_SCALES, options.POOLER_SAMPLING_RATIO)
