"""ResNet and ResNeXt bodies.

References: He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385, table 1; Xie et al., Aggregated
Residual Transformations, arXiv:1611.05431; Wu and He, Group Normalization, arXiv:1803.08494; Zhu et al., Deformable
ConvNets v2, arXiv:1811.11168.

Three normalisations: FixedBatchNorm (constant statistics, for pretrained weights), GN (GroupNorm) and BatchNorm
(trained, for training from scratch).  Stage k = 0..3 is module layer1..layer4, of stride 4, 8, 16, 32.
"""
from collections import namedtuple
from functools import partial

from torch import nn
from torch.nn import functional as F

from fcos_core.config.not_carried import TWO_STAGE, module_getattr
from fcos_core.layers.batch_norm import FrozenBatchNorm2d
from fcos_core.layers.deform_conv import DFConv2d
from fcos_core.modeling.make_layers import group_norm, group_norm_options

# index: 1..4; block_count: blocks of the stage; return_features: whether its output is one of the body's
StageSpec = namedtuple("StageSpec", ["index", "block_count", "return_features"])


def _stages(block_counts, returned):
    return tuple(StageSpec(index, count, index in returned) for index, count in enumerate(block_counts, 1))


ResNet50StagesTo5 = _stages((3, 4, 6, 3), returned=(4,))
ResNet50StagesTo4 = _stages((3, 4, 6), returned=(3,))
ResNet101StagesTo5 = _stages((3, 4, 23, 3), returned=(4,))
ResNet101StagesTo4 = _stages((3, 4, 23), returned=(3,))
ResNet18FPNStagesTo5 = _stages((2, 2, 2, 2), returned=(1, 2, 3, 4))
ResNet34FPNStagesTo5 = _stages((3, 4, 6, 3), returned=(1, 2, 3, 4))
ResNet50FPNStagesTo5 = _stages((3, 4, 6, 3), returned=(1, 2, 3, 4))
ResNet101FPNStagesTo5 = _stages((3, 4, 23, 3), returned=(1, 2, 3, 4))
ResNet152FPNStagesTo5 = _stages((3, 8, 36, 3), returned=(1, 2, 3, 4))


class BaseStem(nn.Module):
    """First layers: 7x7 convolution of stride 2, normalisation, ReLU, 3x3 max pool of stride 2.

    Args:
        cfg: MODEL.RESNETS.STEM_OUT_CHANNELS is read.
        norm_func: channels -> normalisation module.
    """

    def __init__(self, cfg, norm_func):
        super().__init__()
        out_channels = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS
        self.conv1 = _conv(3, out_channels, 7, 2)
        self.bn1 = norm_func(out_channels)

    def forward(self, x):
        """Images [N, 3, H, W] -> [N, STEM_OUT_CHANNELS, ceil(H / 4), ceil(W / 4)]."""
        x = F.relu_(self.bn1(self.conv1(x)))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class StemWithFixedBatchNorm(BaseStem):
    """Stem with constant statistics."""

    def __init__(self, cfg):
        super().__init__(cfg, norm_func=FrozenBatchNorm2d)


class StemWithGN(BaseStem):
    """Stem with GroupNorm, set up by MODEL.GROUP_NORM."""

    def __init__(self, cfg):
        super().__init__(cfg, norm_func=partial(group_norm, **group_norm_options(cfg)))


class StemWithBatchNorm(BaseStem):
    """Stem with trained batch norm."""

    def __init__(self, cfg):
        super().__init__(cfg, norm_func=nn.BatchNorm2d)


class Bottleneck(nn.Module):
    """1x1 to the bottleneck width, 3x3, 1x1 to the output width, plus the (projected) input, ReLU.

    Args:
        in_channels, bottleneck_channels, out_channels: widths.
        num_groups: groups of the 3x3 convolution (ResNeXt).
        stride_in_1x1: put the stride into the first convolution, otherwise into the 3x3.
        stride: 1 or 2; a dilated block has stride 1 whatever this says.
        dilation: of the 3x3 convolution.
        norm_func: channels -> normalisation module.
        dcn_config: dict with "stage_with_dcn", "with_modulated_dcn" and "deformable_groups"; None: not deformable.
    """

    def __init__(self, in_channels, bottleneck_channels, out_channels, num_groups, stride_in_1x1, stride, dilation,
                 norm_func, dcn_config):  # fmt: skip
        super().__init__()
        if dilation > 1:
            stride = 1
        self.downsample = _shortcut(in_channels, out_channels, stride, norm_func)
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = _conv(in_channels, bottleneck_channels, 1, stride_1x1)
        self.bn1 = norm_func(bottleneck_channels)
        self.conv2 = _conv2(bottleneck_channels, stride_3x3, dilation, num_groups, dcn_config)
        self.bn2 = norm_func(bottleneck_channels)
        self.conv3 = _conv(bottleneck_channels, out_channels, 1)
        self.bn3 = norm_func(out_channels)

    def forward(self, x):
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        out = F.relu_(self.bn1(self.conv1(x)))
        out = F.relu_(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu_(out + (x if self.downsample is None else self.downsample(x)))


class BottleneckWithFixedBatchNorm(Bottleneck):
    """Bottleneck with constant statistics."""

    def __init__(self, in_channels, bottleneck_channels, out_channels, num_groups=1, stride_in_1x1=True, stride=1,
                 dilation=1, dcn_config=None):  # fmt: skip
        super().__init__(in_channels, bottleneck_channels, out_channels, num_groups, stride_in_1x1, stride, dilation,
                         norm_func=FrozenBatchNorm2d, dcn_config=dcn_config)  # fmt: skip


class BottleneckWithGN(Bottleneck):
    """Bottleneck with GroupNorm; gn_options: keyword arguments of `group_norm`."""

    def __init__(self, in_channels, bottleneck_channels, out_channels, num_groups=1, stride_in_1x1=True, stride=1,
                 dilation=1, dcn_config=None, gn_options=None):  # fmt: skip
        super().__init__(in_channels, bottleneck_channels, out_channels, num_groups, stride_in_1x1, stride, dilation,
                         norm_func=partial(group_norm, **(gn_options or {})), dcn_config=dcn_config)  # fmt: skip


class BottleneckWithBatchNorm(Bottleneck):
    """Bottleneck with trained batch norm."""

    def __init__(self, in_channels, bottleneck_channels, out_channels, num_groups=1, stride_in_1x1=True, stride=1,
                 dilation=1, dcn_config=None):  # fmt: skip
        super().__init__(in_channels, bottleneck_channels, out_channels, num_groups, stride_in_1x1, stride, dilation,
                         norm_func=nn.BatchNorm2d, dcn_config=dcn_config)  # fmt: skip


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus the (projected) input, ReLU: the block of ResNet-18 and -34.

    Args:
        in_channels, out_channels: widths.
        stride: 1 or 2, of the first convolution; a dilated block has stride 1 whatever this says.
        dilation: of both convolutions.
        norm_func: channels -> normalisation module.
    """

    def __init__(self, in_channels, out_channels, stride, dilation, norm_func):
        super().__init__()
        if dilation > 1:
            stride = 1
        self.downsample = _shortcut(in_channels, out_channels, stride, norm_func)
        self.conv1 = _conv(in_channels, out_channels, 3, stride, dilation)
        self.bn1 = norm_func(out_channels)
        self.conv2 = _conv(out_channels, out_channels, 3, 1, dilation)
        self.bn2 = norm_func(out_channels)

    def forward(self, x):
        """[N, in_channels, H, W] -> [N, out_channels, ceil(H / stride), ceil(W / stride)]."""
        out = F.relu_(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu_(out + (x if self.downsample is None else self.downsample(x)))


def _conv(in_channels, out_channels, kernel_size, stride=1, dilation=1, groups=1):
    """Convolution without bias that keeps the size (divided by the stride), kaiming-uniform with a = 1."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return conv


def _conv2(channels, stride, dilation, groups, dcn_config):
    """The 3x3 convolution of a bottleneck, the one that may be deformable."""
    if not (dcn_config and dcn_config.get("stage_with_dcn")):
        return _conv(channels, channels, 3, stride, dilation, groups)
    return DFConv2d(
        channels,
        channels,
        with_modulated_dcn=dcn_config.get("with_modulated_dcn", False),
        stride=stride,
        groups=groups,
        padding=dilation,
        dilation=dilation,
        deformable_groups=dcn_config.get("deformable_groups", 1),
    )


def _shortcut(in_channels, out_channels, stride, norm_func):
    """Projection of a block's input when its width changes, else None."""
    if in_channels == out_channels:
        return None
    return nn.Sequential(_conv(in_channels, out_channels, 1, stride), norm_func(out_channels))


_STEM_MODULES = {
    "StemWithFixedBatchNorm": StemWithFixedBatchNorm,
    "StemWithGN": StemWithGN,
    "StemWithBatchNorm": StemWithBatchNorm,
}

_TRANSFORMATION_MODULES = {
    "BottleneckWithFixedBatchNorm": BottleneckWithFixedBatchNorm,
    "BottleneckWithGN": BottleneckWithGN,
    "BottleneckWithBatchNorm": BottleneckWithBatchNorm,
}

_STAGE_SPECS = {
    "R-50-C4": ResNet50StagesTo4,
    "R-50-C5": ResNet50StagesTo5,
    "R-101-C4": ResNet101StagesTo4,
    "R-101-C5": ResNet101StagesTo5,
    "R-50-FPN": ResNet50FPNStagesTo5,
    "R-101-FPN": ResNet101FPNStagesTo5,
    "R-152-FPN": ResNet152FPNStagesTo5,
    "R-18-FPN-RETINANET": ResNet18FPNStagesTo5,
    "R-34-FPN-RETINANET": ResNet34FPNStagesTo5,
    "R-50-FPN-RETINANET": ResNet50FPNStagesTo5,
    "R-101-FPN-RETINANET": ResNet101FPNStagesTo5,
    "R-152-FPN-RETINANET": ResNet152FPNStagesTo5,
}

# bodies of BasicBlocks; all others consist of bottlenecks
_BASIC_BLOCK_BODIES = ("R-18-FPN-RETINANET", "R-34-FPN-RETINANET")
# The default of MODEL.RESNETS.RES2_OUT_CHANNELS is the width of the bottleneck bodies; in bodies of basic blocks it
# stands for the width that the paper gives to those.
_BOTTLENECK_RES2_CHANNELS, _BASIC_RES2_CHANNELS = 256, 64


class ResNet(nn.Module):
    """Stem and stages of a ResNet or ResNeXt.

    The bottleneck width of stage k (from 0) is NUM_GROUPS * WIDTH_PER_GROUP * 2^k, its output RES2_OUT_CHANNELS * 2^k.
    Bodies of basic blocks (R-18, R-34) have RES2_OUT_CHANNELS * 2^k throughout, where the default 256 stands for the 64
    of the paper.

    Args:
        cfg: MODEL.BACKBONE.CONV_BODY and FREEZE_CONV_BODY_AT, MODEL.RESNETS.* and MODEL.GROUP_NORM.* are read.
            RES5_DILATION > 1 dilates the last stage instead of striding it.

    Attributes:
        out_channels_per_stage: list with the width of each returned map, fine to coarse.

    Raises:
        ValueError: unknown names (the message lists the known ones), FREEZE_CONV_BODY_AT beyond the last stage.
    """

    def __init__(self, cfg):
        super().__init__()
        body = cfg.MODEL.BACKBONE.CONV_BODY
        options = cfg.MODEL.RESNETS
        stage_specs = _look_up(_STAGE_SPECS, body, "MODEL.BACKBONE.CONV_BODY")
        self.stem = _look_up(_STEM_MODULES, options.STEM_FUNC, "MODEL.RESNETS.STEM_FUNC")(cfg)
        make_block = _basic_block_maker(cfg) if body in _BASIC_BLOCK_BODIES else _bottleneck_maker(cfg)

        in_channels = options.STEM_OUT_CHANNELS
        self.stages = []  # names
        self.return_features = {}
        self.out_channels_per_stage = []
        for spec in stage_specs:
            name = f"layer{spec.index}"
            factor = 2 ** (spec.index - 1)
            out_channels = res2_out_channels(cfg) * factor
            stage = _make_stage(
                make_block,
                in_channels,
                options.NUM_GROUPS * options.WIDTH_PER_GROUP * factor,
                out_channels,
                spec.block_count,
                options.NUM_GROUPS,
                options.STRIDE_IN_1X1,
                first_stride=1 if spec.index == 1 else 2,
                dilation=options.RES5_DILATION if spec.index == 4 else 1,
                dcn_config={
                    "stage_with_dcn": options.STAGE_WITH_DCN[spec.index - 1],
                    "with_modulated_dcn": options.WITH_MODULATED_DCN,
                    "deformable_groups": options.DEFORMABLE_GROUPS,
                },
            )
            self.add_module(name, stage)
            self.stages.append(name)
            self.return_features[name] = spec.return_features
            if spec.return_features:
                self.out_channels_per_stage.append(out_channels)
            in_channels = out_channels
        self._frozen = []
        self._freeze_backbone(cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT)

    def forward(self, x):
        """Images [N, 3, H, W] -> list of the maps of the returned stages, fine to coarse."""
        outputs = []
        x = self.stem(x)
        for name in self.stages:
            x = getattr(self, name)(x)
            if self.return_features[name]:
                outputs.append(x)
        return outputs

    def train(self, mode=True):
        """Switch the mode; frozen parts stay in evaluation mode, which freezes their batch-norm statistics as well."""
        super().train(mode)
        for name in self._frozen:
            getattr(self, name).eval()
        return self

    def _freeze_backbone(self, freeze_at):
        parts = ["stem"] + self.stages
        if freeze_at > len(parts):
            raise ValueError(
                f"ResNet: expected MODEL.BACKBONE.FREEZE_CONV_BODY_AT of at most {len(parts)}, the number of parts of "
                f"this body, got {freeze_at}"
            )
        self._frozen = parts[: max(freeze_at, 0)]
        for name in self._frozen:
            for parameter in getattr(self, name).parameters():
                parameter.requires_grad = False


def res2_out_channels(cfg):
    """Width of the first stage; stage k (from 0) is 2^k times as wide."""
    channels = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS
    if cfg.MODEL.BACKBONE.CONV_BODY in _BASIC_BLOCK_BODIES and channels == _BOTTLENECK_RES2_CHANNELS:
        return _BASIC_RES2_CHANNELS
    return channels


def _make_stage(transformation_module, in_channels, bottleneck_channels, out_channels, block_count, num_groups,
                stride_in_1x1, first_stride, dilation=1, dcn_config=None):  # fmt: skip
    """Sequence of blocks; the first one changes width and stride."""
    blocks = []
    for i in range(block_count):
        blocks.append(
            transformation_module(
                in_channels if i == 0 else out_channels,
                bottleneck_channels,
                out_channels,
                num_groups,
                stride_in_1x1,
                first_stride if i == 0 else 1,
                dilation=dilation,
                dcn_config=dcn_config,
            )
        )
    return nn.Sequential(*blocks)


def _bottleneck_maker(cfg):
    block = _look_up(_TRANSFORMATION_MODULES, cfg.MODEL.RESNETS.TRANS_FUNC, "MODEL.RESNETS.TRANS_FUNC")
    return partial(block, gn_options=group_norm_options(cfg)) if block is BottleneckWithGN else block


def _basic_block_maker(cfg):
    """Maker of BasicBlocks with the arguments of a bottleneck and the normalisation that TRANS_FUNC names."""
    norms = {
        "BottleneckWithFixedBatchNorm": FrozenBatchNorm2d,
        "BottleneckWithGN": partial(group_norm, **group_norm_options(cfg)),
        "BottleneckWithBatchNorm": nn.BatchNorm2d,
    }
    norm_func = _look_up(norms, cfg.MODEL.RESNETS.TRANS_FUNC, "MODEL.RESNETS.TRANS_FUNC")
    if cfg.MODEL.RESNETS.NUM_GROUPS != 1 or any(cfg.MODEL.RESNETS.STAGE_WITH_DCN):
        raise ValueError(
            "ResNet: expected MODEL.RESNETS.NUM_GROUPS 1 and no STAGE_WITH_DCN for a body of basic blocks, got "
            f"{cfg.MODEL.RESNETS.NUM_GROUPS} and {cfg.MODEL.RESNETS.STAGE_WITH_DCN}; take an R-50 body for these"
        )

    def make(in_channels, bottleneck_channels, out_channels, num_groups, stride_in_1x1, stride, dilation, dcn_config):
        return BasicBlock(in_channels, out_channels, stride, dilation, norm_func)

    return make


def _look_up(table, name, key):
    if name not in table:
        raise ValueError(f"ResNet: expected {key} to be one of {', '.join(sorted(table))}, got {name!r}")
    return table[name]


__getattr__ = module_getattr(__name__, {"ResNetHead": TWO_STAGE})
