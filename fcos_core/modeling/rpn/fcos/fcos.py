"""The FCOS head and the module around it (arXiv:1904.01355; improvements: arXiv:2006.09214)."""
import torch
from torch import nn

from fcos_core.modeling.rpn.fcos.inference import make_fcos_postprocessor
from fcos_core.modeling.rpn.fcos.loss import make_fcos_loss_evaluator
from fcos_core.modeling.rpn.head import CenternessHead
from fcos_core.modeling.rpn.levels import level_locations
from fcos_core.modeling.rpn.losses import full_precision


class FCOSHead(CenternessHead):
    """Class, distances to the four sides of the box, and centerness for each location.

    The regression is in pixels, but in strides while training with NORM_REG_TARGETS.

    Args:
        cfg: reads MODEL.FCOS.{NUM_CLASSES, FPN_STRIDES, NORM_REG_TARGETS, CENTERNESS_ON_REG, NUM_CONVS, PRIOR_PROB,
            USE_DCN_IN_TOWER}.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        options = cfg.MODEL.FCOS
        super(FCOSHead, self).__init__(
            in_channels,
            num_classes=options.NUM_CLASSES - 1,
            num_levels=len(options.FPN_STRIDES),
            num_anchors=1,
            num_convs=options.NUM_CONVS,
            use_dcn=options.USE_DCN_IN_TOWER,
            prior_prob=options.PRIOR_PROB,
            centerness_on_reg=options.CENTERNESS_ON_REG,
        )
        self.fpn_strides = list(options.FPN_STRIDES)
        self.norm_reg_targets = options.NORM_REG_TARGETS

    def regression(self, level, scaled):
        """Distances left, top, right and bottom, [N, 4, H_l, W_l]."""
        scaled = full_precision(scaled)  # exp leaves the range of float16 at 11, distances its precision at 2048
        if not self.norm_reg_targets:
            return torch.exp(scaled)
        distances = torch.relu(scaled)
        return distances if self.training else distances * self.fpn_strides[level]


class FCOSModule(nn.Module):
    """Head, loss and post-processing.

    Args:
        cfg: see FCOSHead, FCOSLossComputation and make_fcos_postprocessor.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(FCOSModule, self).__init__()
        self.head = FCOSHead(cfg, in_channels)
        self.box_selector_test = make_fcos_postprocessor(cfg)
        self.loss_evaluator = make_fcos_loss_evaluator(cfg)
        self.fpn_strides = list(cfg.MODEL.FCOS.FPN_STRIDES)
        self.location_offset = cfg.MODEL.FCOS.LOCATION_OFFSET

    def forward(self, images, features, targets=None):
        """Losses while training, detections otherwise.

        Args:
            images: ImageList; only its image_sizes are used.
            features: list of L tensors [N, C, H_l, W_l].
            targets: list of N BoxLists with field "labels"; needed while training.

        Returns:
            (None, {"loss_cls", "loss_reg", "loss_centerness"}) while training, else (list of N BoxLists, {}).
        """
        box_cls, box_regression, centerness = self.head(features)
        locations = self.compute_locations(features)
        if self.training:
            return self._forward_train(locations, box_cls, box_regression, centerness, targets)
        return self._forward_test(locations, box_cls, box_regression, centerness, images.image_sizes)

    def _forward_train(self, locations, box_cls, box_regression, centerness, targets):
        losses = self.loss_evaluator(locations, box_cls, box_regression, centerness, targets)
        return None, dict(zip(("loss_cls", "loss_reg", "loss_centerness"), losses))

    def _forward_test(self, locations, box_cls, box_regression, centerness, image_sizes):
        return self.box_selector_test(locations, box_cls, box_regression, centerness, image_sizes), {}

    def compute_locations(self, features):
        """Locations of each level: list of L tensors [H_l * W_l, 2] (x, y), pixels."""
        return [
            self.compute_locations_per_level(feature.shape[-2], feature.shape[-1], stride, feature.device)
            for feature, stride in zip(features, self.fpn_strides)
        ]

    def compute_locations_per_level(self, h, w, stride, device):
        """See levels.level_locations."""
        return level_locations(h, w, stride, device, self.location_offset)


def build_fcos(cfg, in_channels):
    """The FCOS module that `cfg` describes, for a pyramid of `in_channels` channels."""
    return FCOSModule(cfg, in_channels)
