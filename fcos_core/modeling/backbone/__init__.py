"""Backbones: an image batch in, feature maps of several strides out."""
from fcos_core.modeling.backbone.backbone import build_backbone

__all__ = ["build_backbone"]
