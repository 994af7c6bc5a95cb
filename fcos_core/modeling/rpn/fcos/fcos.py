"""The FCOS head and the module around it (arXiv:1904.01355; improvements: arXiv:2006.09214)."""
import torch
from torch import nn

from fcos_core.layers import Scale
from fcos_core.modeling.rpn.fcos.inference import make_fcos_postprocessor
from fcos_core.modeling.rpn.fcos.loss import make_fcos_loss_evaluator
from fcos_core.modeling.rpn.levels import level_locations
from fcos_core.modeling.rpn.tower import conv_tower, init_convs, prior_bias


class FCOSHead(nn.Module):
    """Two towers over each pyramid level, shared by all levels, and three predictions per location.

    Args:
        cfg: reads MODEL.FCOS.{NUM_CLASSES, FPN_STRIDES, NORM_REG_TARGETS, CENTERNESS_ON_REG, NUM_CONVS, PRIOR_PROB,
            USE_DCN_IN_TOWER}.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(FCOSHead, self).__init__()
        num_classes = cfg.MODEL.FCOS.NUM_CLASSES - 1
        self.fpn_strides = list(cfg.MODEL.FCOS.FPN_STRIDES)
        self.norm_reg_targets = cfg.MODEL.FCOS.NORM_REG_TARGETS
        self.centerness_on_reg = cfg.MODEL.FCOS.CENTERNESS_ON_REG

        self.cls_tower = conv_tower(in_channels, cfg.MODEL.FCOS.NUM_CONVS, cfg.MODEL.FCOS.USE_DCN_IN_TOWER)
        self.bbox_tower = conv_tower(in_channels, cfg.MODEL.FCOS.NUM_CONVS, cfg.MODEL.FCOS.USE_DCN_IN_TOWER)
        self.cls_logits = nn.Conv2d(in_channels, num_classes, 3, stride=1, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, 4, 3, stride=1, padding=1)
        self.centerness = nn.Conv2d(in_channels, 1, 3, stride=1, padding=1)
        init_convs(self.cls_tower, self.bbox_tower, self.cls_logits, self.bbox_pred, self.centerness)
        nn.init.constant_(self.cls_logits.bias, prior_bias(cfg.MODEL.FCOS.PRIOR_PROB))
        self.scales = nn.ModuleList([Scale(init_value=1.0) for _ in self.fpn_strides])

    def forward(self, x):
        """Predict.

        Args:
            x: list of L tensors [N, in_channels, H_l, W_l].

        Returns:
            logits (list of [N, C, H_l, W_l]), distances (list of [N, 4, H_l, W_l]: left, top, right, bottom; pixels,
            but strides while training with NORM_REG_TARGETS) and centerness logits (list of [N, 1, H_l, W_l]).
        """
        logits, regression, centerness = [], [], []
        for level, feature in enumerate(x):
            cls_tower = self.cls_tower(feature)
            box_tower = self.bbox_tower(feature)
            logits.append(self.cls_logits(cls_tower))
            centerness.append(self.centerness(box_tower if self.centerness_on_reg else cls_tower))
            regression.append(self._distances(level, self.bbox_pred(box_tower)))
        return logits, regression, centerness

    def _distances(self, level, prediction):
        scaled = self.scales[level](prediction)
        if scaled.dtype in (torch.float16, torch.bfloat16):
            scaled = scaled.float()  # exp leaves the range of float16 at 11, distances its precision at 2048
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
            losses = self.loss_evaluator(locations, box_cls, box_regression, centerness, targets)
            return None, dict(zip(("loss_cls", "loss_reg", "loss_centerness"), losses))
        return self.box_selector_test(locations, box_cls, box_regression, centerness, images.image_sizes), {}

    def compute_locations(self, features):
        """Locations of each level: list of L tensors [H_l * W_l, 2] (x, y), pixels."""
        return [
            self.compute_locations_per_level(feature.shape[-2], feature.shape[-1], stride, feature.device)
            for feature, stride in zip(features, self.fpn_strides)
        ]

    def compute_locations_per_level(self, h, w, stride, device):
        """See levels.level_locations."""
        return level_locations(h, w, stride, device)


def build_fcos(cfg, in_channels):
    """The FCOS module that `cfg` describes, for a pyramid of `in_channels` channels."""
    return FCOSModule(cfg, in_channels)
