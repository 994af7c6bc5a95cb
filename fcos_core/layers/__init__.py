"""Operators and layers that know neither boxes lists nor configuration.

Compiled operators (deform_conv.py, nms.py, roi_align.py and so on) are loaded, and if need be built, at their first
call; everything else is plain torch.
"""

from fcos_core.layers.batch_norm import FrozenBatchNorm2d
from fcos_core.layers.deform_conv import (
    DeformConv,
    DFConv2d,
    ModulatedDeformConv,
    ModulatedDeformConvPack,
    deform_conv,
    modulated_deform_conv,
)
from fcos_core.layers.deform_psroi_pooling import (
    DeformRoIPooling,
    DeformRoIPoolingPack,
    ModulatedDeformRoIPoolingPack,
    deform_psroi_pooling,
    deform_roi_pooling,
)
from fcos_core.layers.group_norm_relu import GroupNormReLU, group_norm_relu
from fcos_core.layers.iou_loss import IOULoss
from fcos_core.layers.misc import BatchNorm2d, Conv2d, ConvTranspose2d, interpolate
from fcos_core.layers.nms import batched_nms, ml_nms, nms
from fcos_core.layers.roi_align import ROIAlign, roi_align
from fcos_core.layers.roi_pool import ROIPool, roi_pool
from fcos_core.layers.scale import Scale
from fcos_core.layers.sigmoid_focal_loss import SigmoidFocalLoss, sigmoid_focal_loss
from fcos_core.layers.smooth_l1_loss import smooth_l1_loss

__all__ = [
    "BatchNorm2d",
    "Conv2d",
    "ConvTranspose2d",
    "DFConv2d",
    "DeformConv",
    "DeformRoIPooling",
    "DeformRoIPoolingPack",
    "FrozenBatchNorm2d",
    "GroupNormReLU",
    "IOULoss",
    "ModulatedDeformConv",
    "ModulatedDeformConvPack",
    "ModulatedDeformRoIPoolingPack",
    "ROIAlign",
    "ROIPool",
    "Scale",
    "SigmoidFocalLoss",
    "batched_nms",
    "deform_conv",
    "deform_psroi_pooling",
    "deform_roi_pooling",
    "group_norm_relu",
    "interpolate",
    "ml_nms",
    "modulated_deform_conv",
    "nms",
    "roi_align",
    "roi_pool",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
