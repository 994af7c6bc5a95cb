"""The module around the task-aligned head (arXiv:2108.07755)."""
from torch import nn

from fcos_core.modeling.rpn.levels import level_locations
from fcos_core.modeling.rpn.tood.head import TOODHead
from fcos_core.modeling.rpn.tood.inference import make_tood_postprocessor
from fcos_core.modeling.rpn.tood.loss import make_tood_loss_evaluator


class TOODModule(nn.Module):
    """Head, loss and post-processing.

    Args:
        cfg: see TOODHead, TOODLossComputation and make_tood_postprocessor.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(TOODModule, self).__init__()
        self.head = TOODHead(cfg, in_channels)
        self.box_selector_test = make_tood_postprocessor(cfg)
        self.loss_evaluator = make_tood_loss_evaluator(cfg)
        self.fpn_strides = list(cfg.MODEL.TOOD.FPN_STRIDES)

    def forward(self, images, features, targets=None):
        """Losses while training, detections otherwise.

        Args:
            images: ImageList; only its image_sizes are used.
            features: list of L tensors [N, C, H_l, W_l].
            targets: list of N BoxLists with field "labels"; needed while training.

        Returns:
            (None, {"loss_cls", "loss_reg"}) while training, else (list of N BoxLists, {}).
        """
        box_cls, box_regression = self.head(features)
        locations = [
            level_locations(feature.shape[-2], feature.shape[-1], stride, feature.device)
            for feature, stride in zip(features, self.fpn_strides)
        ]
        if self.training:
            losses = self.loss_evaluator(locations, box_cls, box_regression, targets)
            return None, dict(zip(("loss_cls", "loss_reg"), losses))
        return self.box_selector_test(locations, box_cls, box_regression, images.image_sizes), {}


def build_tood(cfg, in_channels):
    """The TOOD module that `cfg` describes, for a pyramid of `in_channels` channels."""
    return TOODModule(cfg, in_channels)
