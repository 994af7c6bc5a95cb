"""Boxes relative to anchors, as networks predict them.

Widths are inclusive (box_ops.PIXEL).  Leading dimensions ("...") are arbitrary and broadcast.
"""
import math

import torch

from fcos_core.structures.box_ops import PIXEL

# Largest log of a ratio of sides that is decoded: 1000 / 16, more than any object and no overflow.
MAX_LOG_RATIO = math.log(1000.0 / 16)


class BoxCoder(object):
    """Offsets of the centre in units of the anchor, and logarithms of the ratios of the sides.

    Legacy: the centre is x1 + width / 2 and x2 lies width - 1 beyond x1, so a decoded box is not symmetric about its
    centre; `CenteredBoxCoder` is.

    Args:
        weights: factors of dx, dy, dw, dh.
        bbox_xform_clip: largest dw and dh that are decoded.

    Reference: Girshick et al., R-CNN, arXiv:1311.2524, appendix C.
    """

    def __init__(self, weights, bbox_xform_clip=MAX_LOG_RATIO):
        self.weights = weights
        self.bbox_xform_clip = bbox_xform_clip

    def encode(self, reference_boxes, proposals):
        """[..., 4] xyxy boxes relative to [..., 4] xyxy anchors -> [..., 4] dx, dy, dw, dh."""
        center, side = self._center_and_side(reference_boxes)
        anchor_center, anchor_side = self._center_and_side(proposals)
        xy_weights, wh_weights = self._weights_like(side)
        offset = xy_weights * (center - anchor_center) / anchor_side
        return torch.cat((offset, wh_weights * torch.log(side / anchor_side)), dim=-1)

    def decode(self, rel_codes, boxes):
        """[..., 4 * k] codes relative to [..., 4] xyxy anchors -> [..., 4 * k] xyxy boxes."""
        codes = rel_codes.reshape(rel_codes.shape[:-1] + (-1, 4))
        anchor_center, anchor_side = self._center_and_side(boxes.to(codes.dtype)[..., None, :])
        xy_weights, wh_weights = self._weights_like(codes)
        center = codes[..., :2] / xy_weights * anchor_side + anchor_center
        side = torch.exp((codes[..., 2:] / wh_weights).clamp(max=self.bbox_xform_clip)) * anchor_side
        return self._corners(center, side).reshape(rel_codes.shape)

    def _weights_like(self, tensor):
        """Factors of the offsets and of the logarithms: [2] each, or numbers where both are the same."""
        (wx, wy), (ww, wh) = self.weights[:2], self.weights[2:]
        offset = wx if wx == wy else tensor.new_tensor([wx, wy])
        return offset, ww if ww == wh else tensor.new_tensor([ww, wh])

    @staticmethod
    def _center_and_side(boxes):
        side = boxes[..., 2:] - boxes[..., :2] + PIXEL
        return boxes[..., :2] + 0.5 * side, side

    @staticmethod
    def _corners(center, side):
        return torch.cat((center - 0.5 * side, center + 0.5 * side - PIXEL), dim=-1)


class CenteredBoxCoder(BoxCoder):
    """`BoxCoder` whose centre is the middle of the corners, (x1 + x2) / 2."""

    @staticmethod
    def _center_and_side(boxes):
        return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2] + PIXEL

    @staticmethod
    def _corners(center, side):
        reach = (side - PIXEL) / 2
        return torch.cat((center - reach, center + reach), dim=-1)


class PointBoxCoder(object):
    """Distances from the centre of the anchor to the four sides.

    Args:
        sides_per_anchor: a distance of one anchor side is encoded as this.
    """

    def __init__(self, sides_per_anchor):
        self.factor = sides_per_anchor

    def encode(self, reference_boxes, proposals):
        """[..., 4] xyxy boxes relative to [..., 4] xyxy anchors -> [..., 4] left, top, right, bottom."""
        center, side = CenteredBoxCoder._center_and_side(proposals)
        sides = torch.cat((side, side), dim=-1)
        distances = torch.cat((center - reference_boxes[..., :2], reference_boxes[..., 2:] - center), dim=-1)
        return self.factor * distances / sides

    def decode(self, rel_codes, boxes):
        """[..., 4] codes relative to [..., 4] xyxy anchors -> [..., 4] xyxy boxes."""
        center, side = CenteredBoxCoder._center_and_side(boxes.to(rel_codes.dtype))
        reach = rel_codes / self.factor * torch.cat((side, side), dim=-1)
        return torch.cat((center - reach[..., :2], center + reach[..., 2:]), dim=-1)
