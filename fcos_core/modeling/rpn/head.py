"""The network part that FCOS and ATSS share."""
from torch import nn

from fcos_core.layers import Scale
from fcos_core.modeling.rpn.tower import conv_tower, init_convs, prior_bias


class CenternessHead(nn.Module):
    """Two towers over each pyramid level, shared by all levels; class, box and centerness for each anchor.

    Args:
        in_channels: channels of the pyramid.
        num_classes: foreground classes C.
        num_levels: levels L of the pyramid.
        num_anchors: predictions A at each location.
        num_convs: convolutions of each tower.
        use_dcn: make the last convolution of each tower deformable.
        prior_prob: initial foreground probability.
        centerness_on_reg: predict centerness from the regression tower instead of the classification tower.
    """

    def __init__(self, in_channels, num_classes, num_levels, num_anchors, num_convs, use_dcn, prior_prob,
                 centerness_on_reg):  # fmt: skip
        super(CenternessHead, self).__init__()
        self.centerness_on_reg = centerness_on_reg
        # The order of these is the order of state_dict and of the optimizer's parameter groups.
        self.cls_tower = conv_tower(in_channels, num_convs, use_dcn)
        self.bbox_tower = conv_tower(in_channels, num_convs, use_dcn)
        self.cls_logits = nn.Conv2d(in_channels, num_anchors * num_classes, 3, stride=1, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, stride=1, padding=1)
        self.centerness = nn.Conv2d(in_channels, num_anchors * 1, 3, stride=1, padding=1)
        init_convs(self.cls_tower, self.bbox_tower, self.cls_logits, self.bbox_pred, self.centerness)
        nn.init.constant_(self.cls_logits.bias, prior_bias(prior_prob))
        self.scales = nn.ModuleList([Scale(init_value=1.0) for _ in range(num_levels)])

    def forward(self, x):
        """Predict.

        Args:
            x: list of L tensors [N, in_channels, H_l, W_l].

        Returns:
            logits (list of [N, A * C, H_l, W_l]), regression (list of [N, A * 4, H_l, W_l], see `regression`) and
            centerness logits (list of [N, A, H_l, W_l]).
        """
        logits, regression, centerness = [], [], []
        for level, feature in enumerate(x):
            cls_tower = self.cls_tower(feature)
            box_tower = self.bbox_tower(feature)
            logits.append(self.cls_logits(cls_tower))
            centerness.append(self.centerness(box_tower if self.centerness_on_reg else cls_tower))
            regression.append(self.regression(level, self.scales[level](self.bbox_pred(box_tower))))
        return logits, regression, centerness

    def regression(self, level, scaled):
        """From the scaled output of `bbox_pred` on a level to what the head returns; subclasses say how."""
        raise NotImplementedError("CenternessHead.regression: a subclass says what its regression means")
