"""The ATSS head and the module around it (arXiv:1912.02424)."""
import torch
from torch import nn

from fcos_core.modeling.box_coder import CenteredBoxCoder, PointBoxCoder
from fcos_core.modeling.rpn.anchor_generator import make_anchor_generator_atss
from fcos_core.modeling.rpn.atss.inference import make_atss_postprocessor
from fcos_core.modeling.rpn.atss.loss import make_atss_loss_evaluator
from fcos_core.modeling.rpn.head import CenternessHead

REGRESSION_TYPES = ("BOX", "POINT")


class BoxCoder(object):
    """How ATSS predicts boxes.

    Args:
        cfg: reads MODEL.ATSS.{REGRESSION_TYPE, ANCHOR_SIZES, ANCHOR_STRIDES}.

    Raises:
        ValueError: unknown REGRESSION_TYPE.
    """

    def __init__(self, cfg):
        options = cfg.MODEL.ATSS
        if options.REGRESSION_TYPE not in REGRESSION_TYPES:
            raise ValueError(
                "BoxCoder: expected MODEL.ATSS.REGRESSION_TYPE BOX or POINT, got {}; correct it".format(
                    options.REGRESSION_TYPE
                )
            )
        if options.REGRESSION_TYPE == "POINT":
            self._coder = PointBoxCoder(options.ANCHOR_SIZES[0] / float(options.ANCHOR_STRIDES[0]))
        else:
            self._coder = CenteredBoxCoder((10.0, 10.0, 5.0, 5.0))

    def encode(self, gt_boxes, anchors):
        """[..., 4] xyxy boxes relative to [..., 4] xyxy anchors -> [..., 4]."""
        return self._coder.encode(gt_boxes, anchors)

    def decode(self, preds, anchors):
        """The inverse: [..., 4] relative to [..., 4] xyxy anchors -> [..., 4] xyxy boxes."""
        return self._coder.decode(preds, anchors)


class ATSSHead(CenternessHead):
    """Class, encoded box and centerness for each of A anchors at each location.

    Args:
        cfg: reads MODEL.ATSS.{NUM_CLASSES, ANCHOR_STRIDES, ASPECT_RATIOS, SCALES_PER_OCTAVE, NUM_CONVS, PRIOR_PROB,
            REGRESSION_TYPE, USE_DCN_IN_TOWER}.
        in_channels: channels of the pyramid.

    Raises:
        ValueError: REGRESSION_TYPE "POINT" with several anchors at a location.
    """

    def __init__(self, cfg, in_channels):
        options = cfg.MODEL.ATSS
        num_anchors = len(options.ASPECT_RATIOS) * options.SCALES_PER_OCTAVE
        point = options.REGRESSION_TYPE == "POINT"
        if point and num_anchors != 1:
            raise ValueError(
                "ATSSHead: expected one anchor at each location with MODEL.ATSS.REGRESSION_TYPE POINT, got {}; set "
                "ASPECT_RATIOS (1.0,) and SCALES_PER_OCTAVE 1, or REGRESSION_TYPE BOX".format(num_anchors)
            )
        super(ATSSHead, self).__init__(
            in_channels,
            num_classes=options.NUM_CLASSES - 1,
            num_levels=len(options.ANCHOR_STRIDES),
            num_anchors=num_anchors,
            num_convs=options.NUM_CONVS,
            use_dcn=options.USE_DCN_IN_TOWER,
            prior_prob=options.PRIOR_PROB,
            centerness_on_reg=True,
        )
        self._point = point
        if point:
            nn.init.constant_(self.bbox_pred.bias, 4)  # distances of half an anchor

    def regression(self, level, scaled):
        """Encoded boxes, [N, A * 4, H_l, W_l]; distances cannot be negative."""
        return torch.relu(scaled) if self._point else scaled


class ATSSModule(nn.Module):
    """Head, anchors, loss and post-processing.

    Args:
        cfg: see ATSSHead, BoxCoder, ATSSLossComputation, make_atss_postprocessor and make_anchor_generator_atss.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(ATSSModule, self).__init__()
        box_coder = BoxCoder(cfg)
        # The order of these is the order of state_dict.
        self.head = ATSSHead(cfg, in_channels)
        self.box_selector_test = make_atss_postprocessor(cfg, box_coder)
        self.loss_evaluator = make_atss_loss_evaluator(cfg, box_coder)
        self.anchor_generator = make_anchor_generator_atss(cfg)

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
        anchors = self.anchor_generator.level_anchors([feature.shape[-2:] for feature in features])
        if self.training:
            return self._forward_train(box_cls, box_regression, centerness, targets, anchors)
        return self._forward_test(box_cls, box_regression, centerness, anchors, images.image_sizes)

    def _forward_train(self, box_cls, box_regression, centerness, targets, anchors):
        losses = self.loss_evaluator(box_cls, box_regression, centerness, targets, anchors)
        return None, dict(zip(("loss_cls", "loss_reg", "loss_centerness"), losses))

    def _forward_test(self, box_cls, box_regression, centerness, anchors, image_sizes=None):
        return self.box_selector_test(box_cls, box_regression, centerness, anchors, image_sizes), {}


def build_atss(cfg, in_channels):
    """The ATSS module that `cfg` describes, for a pyramid of `in_channels` channels."""
    return ATSSModule(cfg, in_channels)
