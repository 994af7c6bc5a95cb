"""The RetinaNet head and the module around it (arXiv:1708.02002)."""
from torch import nn

from fcos_core.modeling.box_coder import BoxCoder
from fcos_core.modeling.rpn.anchor_generator import make_anchor_generator_retinanet
from fcos_core.modeling.rpn.retinanet.inference import make_retinanet_postprocessor
from fcos_core.modeling.rpn.retinanet.loss import make_retinanet_loss_evaluator
from fcos_core.modeling.rpn.tower import conv_tower, init_convs, prior_bias


class RetinaNetHead(nn.Module):
    """Two towers without normalisation over each pyramid level, shared by all levels; class and box for each anchor.

    Args:
        cfg: reads MODEL.RETINANET.{NUM_CLASSES, ASPECT_RATIOS, SCALES_PER_OCTAVE, NUM_CONVS, PRIOR_PROB}.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(RetinaNetHead, self).__init__()
        options = cfg.MODEL.RETINANET
        num_anchors = len(options.ASPECT_RATIOS) * options.SCALES_PER_OCTAVE
        self.cls_tower = conv_tower(in_channels, options.NUM_CONVS, norm=False)
        self.bbox_tower = conv_tower(in_channels, options.NUM_CONVS, norm=False)
        self.cls_logits = nn.Conv2d(in_channels, num_anchors * (options.NUM_CLASSES - 1), 3, stride=1, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, stride=1, padding=1)
        init_convs(self.cls_tower, self.bbox_tower, self.cls_logits, self.bbox_pred)
        nn.init.constant_(self.cls_logits.bias, prior_bias(options.PRIOR_PROB))

    def forward(self, x):
        """Predict.

        Args:
            x: list of L tensors [N, in_channels, H_l, W_l].

        Returns:
            logits (list of [N, A * C, H_l, W_l]) and encoded boxes (list of [N, A * 4, H_l, W_l]).
        """
        logits = [self.cls_logits(self.cls_tower(feature)) for feature in x]
        regression = [self.bbox_pred(self.bbox_tower(feature)) for feature in x]
        return logits, regression


class RetinaNetModule(nn.Module):
    """Head, anchors, loss and post-processing.

    Args:
        cfg: see RetinaNetHead, make_retinanet_loss_evaluator, make_retinanet_postprocessor and
            make_anchor_generator_retinanet.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(RetinaNetModule, self).__init__()
        box_coder = BoxCoder(weights=(10.0, 10.0, 5.0, 5.0))
        # The order of these is the order of state_dict.
        self.anchor_generator = make_anchor_generator_retinanet(cfg)
        self.head = RetinaNetHead(cfg, in_channels)
        self.box_selector_test = make_retinanet_postprocessor(cfg, box_coder)
        self.loss_evaluator = make_retinanet_loss_evaluator(cfg, box_coder)

    def forward(self, images, features, targets=None):
        """Losses while training, detections otherwise.

        Args:
            images: ImageList; only its image_sizes are used.
            features: list of L tensors [N, C, H_l, W_l].
            targets: list of N BoxLists with field "labels"; needed while training.

        Returns:
            (None, {"loss_retina_cls", "loss_retina_reg"}) while training, else (list of N BoxLists, {}).
        """
        box_cls, box_regression = self.head(features)
        anchors = self.anchor_generator.level_anchors([feature.shape[-2:] for feature in features])
        if self.training:
            return self._forward_train(anchors, box_cls, box_regression, targets)
        return self._forward_test(anchors, box_cls, box_regression, images.image_sizes)

    def _forward_train(self, anchors, box_cls, box_regression, targets):
        losses = self.loss_evaluator(anchors, box_cls, box_regression, targets)
        return None, dict(zip(("loss_retina_cls", "loss_retina_reg"), losses))

    def _forward_test(self, anchors, box_cls, box_regression, image_sizes=None):
        return self.box_selector_test(anchors, box_cls, box_regression, image_sizes), {}


def build_retinanet(cfg, in_channels):
    """The RetinaNet module that `cfg` describes, for a pyramid of `in_channels` channels."""
    return RetinaNetModule(cfg, in_channels)
