"""A one-stage detector: backbone, then dense head.  The class keeps the name by which research code knows it."""
from torch import nn

from fcos_core.modeling.backbone import build_backbone
from fcos_core.modeling.rpn.rpn import build_rpn
from fcos_core.structures.image_list import to_image_list


class GeneralizedRCNN(nn.Module):
    """Backbone and dense head.

    Args:
        cfg: see build_backbone and build_rpn.
    """

    def __init__(self, cfg):
        super(GeneralizedRCNN, self).__init__()
        self.backbone = build_backbone(cfg)
        self.rpn = build_rpn(cfg, self.backbone.out_channels)

    def forward(self, images, targets=None):
        """Losses while training, detections otherwise.

        Args:
            images: ImageList, tensor [N, 3, H, W] or list of tensors [3, H, W].
            targets: list of N BoxLists with field "labels"; needed while training.

        Returns:
            dict of scalar losses while training, else a list of N BoxLists in the coordinates of the images.

        Raises:
            ValueError: training without targets.
        """
        if self.training and targets is None:
            raise ValueError(
                "GeneralizedRCNN: expected targets in training mode, got None; "
                "pass one BoxList per image or call eval()"
            )
        images = to_image_list(images)
        detections, losses = self.rpn(images, self.backbone(images.tensors), targets)
        return losses if self.training else detections
