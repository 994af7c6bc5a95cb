"""The GFL head and the module around it (arXiv:2006.04388)."""
from torch import nn

from fcos_core.layers import Scale
from fcos_core.modeling.rpn.anchor_generator import make_square_anchor_generator
from fcos_core.modeling.rpn.gfl.inference import make_gfl_postprocessor
from fcos_core.modeling.rpn.gfl.loss import make_gfl_loss_evaluator
from fcos_core.modeling.rpn.tower import conv_tower, init_convs, prior_bias


class GFLHead(nn.Module):
    """Class, which is also the quality of the box, and distributions of the four distances for each location.

    Args:
        cfg: reads MODEL.GFL.{NUM_CLASSES, ANCHOR_STRIDES, REG_MAX, NUM_CONVS, PRIOR_PROB, USE_DCN_IN_TOWER}.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(GFLHead, self).__init__()
        options = cfg.MODEL.GFL
        self.cls_tower = conv_tower(in_channels, options.NUM_CONVS, options.USE_DCN_IN_TOWER)
        self.bbox_tower = conv_tower(in_channels, options.NUM_CONVS, options.USE_DCN_IN_TOWER)
        self.cls_logits = nn.Conv2d(in_channels, options.NUM_CLASSES - 1, 3, stride=1, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, 4 * (options.REG_MAX + 1), 3, stride=1, padding=1)
        init_convs(self.cls_tower, self.bbox_tower, self.cls_logits, self.bbox_pred)
        nn.init.constant_(self.cls_logits.bias, prior_bias(options.PRIOR_PROB))
        self.scales = nn.ModuleList([Scale(init_value=1.0) for _ in options.ANCHOR_STRIDES])

    def forward(self, x):
        """Predict.

        Args:
            x: list of L tensors [N, in_channels, H_l, W_l].

        Returns:
            logits (list of [N, C, H_l, W_l]) and logits of the distances (list of [N, 4 * (REG_MAX + 1), H_l, W_l];
            channel side * (REG_MAX + 1) + distance in strides).
        """
        logits = [self.cls_logits(self.cls_tower(feature)) for feature in x]
        regression = [scale(self.bbox_pred(self.bbox_tower(feature))) for scale, feature in zip(self.scales, x)]
        return logits, regression


class GFLModule(nn.Module):
    """Head, anchors, loss and post-processing.

    Args:
        cfg: see GFLHead, GFLLossComputation and make_gfl_postprocessor.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(GFLModule, self).__init__()
        self.head = GFLHead(cfg, in_channels)
        self.box_selector_test = make_gfl_postprocessor(cfg)
        self.loss_evaluator = make_gfl_loss_evaluator(cfg)
        self.anchor_generator = make_square_anchor_generator(cfg, cfg.MODEL.GFL)

    def forward(self, images, features, targets=None):
        """Losses while training, detections otherwise.

        Args:
            images: ImageList; only its image_sizes are used.
            features: list of L tensors [N, C, H_l, W_l].
            targets: list of N BoxLists with field "labels"; needed while training.

        Returns:
            (None, {"loss_cls", "loss_reg", "loss_dfl"}) while training, else (list of N BoxLists, {}).
        """
        box_cls, box_regression = self.head(features)
        anchors = self.anchor_generator.level_anchors([feature.shape[-2:] for feature in features])
        if self.training:
            losses = self.loss_evaluator(box_cls, box_regression, targets, anchors)
            return None, dict(zip(("loss_cls", "loss_reg", "loss_dfl"), losses))
        locations = [((level[..., :2] + level[..., 2:]) / 2).reshape(-1, 2) for level in anchors]
        return self.box_selector_test(locations, box_cls, box_regression, images.image_sizes), {}


def build_gfl(cfg, in_channels):
    """The GFL module that `cfg` describes, for a pyramid of `in_channels` channels."""
    return GFLModule(cfg, in_channels)
