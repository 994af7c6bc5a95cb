"""The operators of tensor operations of torch, for a machine that cannot compile: slower, the same results.

One file per operator, with the name that it has everywhere; what each computes stands in `csrc/<op>/<op>.h`.  They run
on any device and any torch from 1.7 on.  They are plain functions, not operators of the dispatcher: torch.compile
needs a compiler anyhow, and registering from Python is possible from torch 1.12 on only.
"""

import torch

from fcos_core.layers._fallback import (
    deform_conv,
    deform_psroi_pooling,
    group_norm_relu,
    iou_loss,
    nms,
    roi_align,
    roi_pool,
    sigmoid_focal_loss,
)

# name in torch.ops.fcos_core -> function with the arguments of its schema
OPERATORS = {
    "deform_conv": deform_conv.deform_conv,
    "_deform_conv_backward": deform_conv._deform_conv_backward,
    "deform_psroi_pooling": deform_psroi_pooling.deform_psroi_pooling,
    "_deform_psroi_pooling_backward": deform_psroi_pooling._deform_psroi_pooling_backward,
    "group_norm_relu": group_norm_relu.group_norm_relu,
    "_group_norm_relu_backward": group_norm_relu._group_norm_relu_backward,
    "iou_loss": iou_loss.iou_loss,
    "_iou_loss_backward": iou_loss._iou_loss_backward,
    "nms": nms.nms,
    "ml_nms": nms.ml_nms,
    "batched_nms": nms.batched_nms,
    "roi_align": roi_align.roi_align,
    "_roi_align_backward": roi_align._roi_align_backward,
    "roi_pool": roi_pool.roi_pool,
    "_roi_pool_backward": roi_pool._roi_pool_backward,
    "sigmoid_focal_loss": sigmoid_focal_loss.sigmoid_focal_loss,
    "_sigmoid_focal_loss_backward": sigmoid_focal_loss._sigmoid_focal_loss_backward,
}


def install():
    """Put the functions where the library would have registered its operators."""
    for name, function in OPERATORS.items():
        setattr(torch.ops.fcos_core, name, function)
    torch.ops.fcos_core._built_with_cuda = lambda: False
