"""The task-aligned head (arXiv:2108.07755, section 3.1).

Shape letters: N images, F channels of the pyramid, T layers that both tasks share, H x W locations of a level.
"""
import torch
import torch.nn.functional as F
from torch import nn

from fcos_core.layers import Scale
from fcos_core.modeling.rpn.losses import full_precision
from fcos_core.modeling.rpn.tower import conv_tower, init_convs, prior_bias

# log(p) is kept below this, so that the logit of p stays finite: 1 - 1e-7 is the largest score in float32.
_MAX_LOG = -1e-7


class TaskDecomposition(nn.Module):
    """Features of one task from those that both share: each layer weighed by attention, then reduced.

    Args:
        channels: F.
        num_layers: T.
    """

    def __init__(self, channels, num_layers):
        super(TaskDecomposition, self).__init__()
        hidden = max(channels * num_layers // 8, 1)
        self.attention = nn.Sequential(
            nn.Conv2d(channels * num_layers, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, num_layers, 1), nn.Sigmoid()
        )
        self.reduction = nn.Conv2d(channels * num_layers, channels, 1, bias=False)
        self.norm = nn.GroupNorm(32, channels)
        nn.init.normal_(self.attention[0].weight, std=0.001)
        nn.init.normal_(self.attention[2].weight, std=0.001)
        nn.init.normal_(self.reduction.weight, std=0.01)
        for layer in (self.attention[0], self.attention[2]):
            nn.init.zeros_(layer.bias)

    def forward(self, features, pooled):
        """Args: features [N, T * F, H, W], pooled [N, T * F, 1, 1]; returns [N, F, H, W]."""
        num_images, _, height, width = features.shape
        weights = self.attention(pooled).view(num_images, 1, -1, 1)  # [N, 1, T, 1]
        kernel = self.reduction.weight.view(1, self.reduction.out_channels, weights.shape[2], -1)  # [1, F, T, F]
        # Weighing the kernel instead of the features leaves out a map of T * F channels.
        kernel = (kernel * weights).flatten(2)  # [N, F, T * F]
        reduced = torch.bmm(kernel.to(features.dtype), features.flatten(2))
        return F.relu(self.norm(reduced.view(num_images, -1, height, width)))


class TOODHead(nn.Module):
    """Class, which is also the quality of the box, and distances to its sides, both aligned by what the tasks share.

    Args:
        cfg: reads MODEL.TOOD.{NUM_CLASSES, FPN_STRIDES, NUM_CONVS, PRIOR_PROB}.
        in_channels: channels of the pyramid.
    """

    def __init__(self, cfg, in_channels):
        super(TOODHead, self).__init__()
        options = cfg.MODEL.TOOD
        shared = in_channels * options.NUM_CONVS
        hidden = max(in_channels // 4, 1)
        self.shared_tower = conv_tower(in_channels, options.NUM_CONVS)
        self.cls_decomposition = TaskDecomposition(in_channels, options.NUM_CONVS)
        self.bbox_decomposition = TaskDecomposition(in_channels, options.NUM_CONVS)
        self.cls_logits = nn.Conv2d(in_channels, options.NUM_CLASSES - 1, 3, stride=1, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, 4, 3, stride=1, padding=1)
        self.cls_alignment = nn.Sequential(nn.Conv2d(shared, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 3, padding=1))
        self.bbox_alignment = nn.Sequential(nn.Conv2d(shared, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 8, 3, padding=1))
        init_convs(self.shared_tower, self.cls_logits, self.bbox_pred, self.cls_alignment, self.bbox_alignment)
        for layer in (self.bbox_alignment[0], self.bbox_alignment[2]):
            nn.init.normal_(layer.weight, std=0.001)
        for layer in (self.cls_logits, self.cls_alignment[2]):  # the score is the geometric mean of both
            nn.init.constant_(layer.bias, prior_bias(options.PRIOR_PROB))
        self.scales = nn.ModuleList([Scale(init_value=1.0) for _ in options.FPN_STRIDES])

    def forward(self, x):
        """Predict.

        Args:
            x: list of L tensors [N, in_channels, H_l, W_l].

        Returns:
            logits of the aligned scores (list of [N, C, H_l, W_l]) and aligned distances left, top, right and bottom in
            strides (list of [N, 4, H_l, W_l]; negative where the location is outside its box), at least float32.
        """
        logits, distances = [], []
        for level, feature in enumerate(x):
            shared = self._shared_features(feature)
            pooled = F.adaptive_avg_pool2d(shared, 1)
            scores = self.cls_logits(self.cls_decomposition(shared, pooled))
            logits.append(aligned_logits(full_precision(scores), full_precision(self.cls_alignment(shared))))
            boxes = self.scales[level](self.bbox_pred(self.bbox_decomposition(shared, pooled)))
            boxes = torch.exp(full_precision(boxes))  # exp leaves the range of float16 at 11
            distances.append(aligned_distances(boxes, full_precision(self.bbox_alignment(shared))))
        return logits, distances

    def _shared_features(self, feature):
        """Outputs of all layers of the tower: [N, T * F, H, W]."""
        outputs = []
        for number, module in enumerate(self.shared_tower):
            feature = module(feature)
            if number % 3 == 2:  # convolution, normalisation and the place of the ReLU make a layer
                outputs.append(feature)
        return torch.cat(outputs, dim=1)


def aligned_logits(logits, alignment):
    """Logit of sqrt(P * M), P = sigmoid(logits), M = sigmoid(alignment).

    Args:
        logits: [N, C, H, W].
        alignment: [N, 1, H, W].
    """
    log_score = (F.logsigmoid(logits) + F.logsigmoid(alignment)) / 2
    log_score = log_score.clamp(max=_MAX_LOG)
    return log_score - torch.log(-torch.expm1(log_score))


def aligned_distances(distances, offsets):
    """Each side taken from a place nearby that predicts it better, by bilinear interpolation.

    A side is the coordinate of the box that the place predicts.  Places beyond the map count as its border; where the
    four sides do not make a box, those of the location itself stay.

    Args:
        distances: [N, 4, H, W] positive left, top, right, bottom, in strides.
        offsets: [N, 8, H, W]: (dy, dx) in cells for each side.

    Returns:
        [N, 4, H, W] distances from the location, in strides.
    """
    num_images, _, height, width = distances.shape
    y = torch.arange(height, dtype=distances.dtype, device=distances.device)[:, None].expand(height, width)
    x = torch.arange(width, dtype=distances.dtype, device=distances.device)[None, :].expand(height, width)
    here = torch.stack((x, y, x, y))  # [4, H, W]
    sign = torch.arange(4, device=distances.device)[:, None, None].ge(2).to(distances.dtype) * 2 - 1  # - - + +
    sides = here + sign * distances
    dy, dx = offsets.view(num_images, 4, 2, height, width).unbind(2)
    # grid_sample wants -1 at the first and 1 at the last cell
    grid = torch.stack(((x + dx) * (2.0 / max(width - 1, 1)) - 1, (y + dy) * (2.0 / max(height - 1, 1)) - 1), dim=-1)
    moved = F.grid_sample(
        sides.reshape(-1, 1, height, width),
        grid.view(-1, height, width, 2),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    ).view_as(sides)
    is_box = ((moved[:, 2] >= moved[:, 0]) & (moved[:, 3] >= moved[:, 1]))[:, None]
    return torch.where(is_box, (moved - here) * sign, distances)
