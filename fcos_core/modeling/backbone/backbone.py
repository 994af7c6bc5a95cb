"""The table of backbones and `build_backbone`.

Every builder takes a cfg and returns a Sequential with the modules `body` and, if there is a pyramid, `fpn`, and with
the attribute `out_channels`.
"""
from collections import OrderedDict

from torch import nn

from fcos_core.modeling import registry
from fcos_core.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from fcos_core.modeling.backbone.library import build_library_body
from fcos_core.modeling.backbone.mobilenet import MobileNetV2
from fcos_core.modeling.backbone.resnet import ResNet
from fcos_core.modeling.make_layers import conv_with_kaiming_uniform, group_norm_options


@registry.BACKBONES.register("R-50-C4")
@registry.BACKBONES.register("R-50-C5")
@registry.BACKBONES.register("R-101-C4")
@registry.BACKBONES.register("R-101-C5")
def build_resnet_backbone(cfg):
    """ResNet whose only output is C4 (stride 16) or C5 (stride 32)."""
    body = ResNet(cfg)
    return _join(body.out_channels_per_stage[-1], body=body)


@registry.BACKBONES.register("R-50-FPN")
@registry.BACKBONES.register("R-101-FPN")
@registry.BACKBONES.register("R-152-FPN")
def build_resnet_fpn_backbone(cfg):
    """ResNet with pyramid P2 to P6 (strides 4 to 64), P6 a subsampled P5."""
    body = ResNet(cfg)
    return _join(_width(cfg), body=body, fpn=_make_fpn(cfg, body.out_channels_per_stage, LastLevelMaxPool()))


@registry.BACKBONES.register("R-18-FPN-RETINANET")
@registry.BACKBONES.register("R-34-FPN-RETINANET")
@registry.BACKBONES.register("R-50-FPN-RETINANET")
@registry.BACKBONES.register("R-101-FPN-RETINANET")
@registry.BACKBONES.register("R-152-FPN-RETINANET")
def build_resnet_fpn_p3p7_backbone(cfg):
    """ResNet with pyramid P3 to P7 (strides 8 to 128); P6 from C5 if MODEL.RETINANET.USE_C5, else from P5."""
    body = ResNet(cfg)
    widths = body.out_channels_per_stage
    p6_channels = widths[-1] if cfg.MODEL.RETINANET.USE_C5 else _width(cfg)
    return _join(_width(cfg), body=body, fpn=_make_fpn(cfg, [0] + widths[1:], _last_levels(cfg, p6_channels)))


@registry.BACKBONES.register("MNV2-FPN-RETINANET")
def build_mnv2_fpn_backbone(cfg):
    """MobileNetV2 with pyramid P3 to P7 (strides 8 to 128); P6 always from P5."""
    body = MobileNetV2(cfg)
    widths = body.return_features_num_channels
    return _join(_width(cfg), body=body, fpn=_make_fpn(cfg, [0] + widths[1:], _last_levels(cfg, _width(cfg))))


def build_library_fpn_p3p7_backbone(cfg):
    """Network of timm or torchvision with pyramid P3 to P7 (strides 8 to 128); P6 as in the ResNets."""
    body = build_library_body(cfg)
    widths = body.out_channels_per_stage
    p6_channels = widths[-1] if cfg.MODEL.RETINANET.USE_C5 else _width(cfg)
    return _join(_width(cfg), body=body, fpn=_make_fpn(cfg, [0] + widths, _last_levels(cfg, p6_channels)))


def build_backbone(cfg):
    """Build the backbone that MODEL.BACKBONE.CONV_BODY names: one of the table, "timm/NAME" or "torchvision/NAME".

    Returns:
        Module with an int attribute `out_channels`.  It maps images [N, 3, H, W] to maps [N, out_channels, H_l, W_l],
        fine to coarse: a tuple for pyramids (P3 to P7 for the ``-RETINANET`` names and those of libraries), a list of
        one map for C4 and C5.

    Raises:
        ValueError: unknown name; the message lists the known ones.
        See `library.build_library_body` for names of libraries.
    """
    name = cfg.MODEL.BACKBONE.CONV_BODY
    if "/" in name:
        return build_library_fpn_p3p7_backbone(cfg)
    if name not in registry.BACKBONES:
        raise ValueError(
            f"build_backbone: expected MODEL.BACKBONE.CONV_BODY to be one of {', '.join(sorted(registry.BACKBONES))}, "
            f"timm/NAME or torchvision/NAME, got {name!r}"
        )
    return registry.BACKBONES[name](cfg)


def _width(cfg):
    return cfg.MODEL.RESNETS.BACKBONE_OUT_CHANNELS


def _last_levels(cfg, p6_channels):
    return LastLevelP6P7(p6_channels, _width(cfg), cfg.MODEL.FPN.RELU_BEFORE_P7)


def _make_fpn(cfg, in_channels_list, top_blocks):
    conv_block = conv_with_kaiming_uniform(cfg.MODEL.FPN.USE_GN, cfg.MODEL.FPN.USE_RELU, group_norm_options(cfg))
    return FPN(in_channels_list, _width(cfg), conv_block, top_blocks)


def _join(out_channels, **modules):
    # keyword order is module order, which is the order of state_dict
    backbone = nn.Sequential(OrderedDict(modules))
    backbone.out_channels = out_channels
    return backbone
