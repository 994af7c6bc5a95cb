"""MobileNetV2 without its classifier.

Reference: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381, table 2.
"""
import math

from torch import nn

# rows of table 2: expansion t, channels c, repeats n, stride s of the first repeat
_INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_CHANNELS = 32
# entries of `features` whose output goes to the pyramid: the last ones of strides 4, 8, 16 and 32
_RETURN_FEATURES = (3, 6, 13, 17)


def conv_bn(inp, oup, stride):
    """3x3 convolution, batch norm, ReLU6."""
    return nn.Sequential(nn.Conv2d(inp, oup, 3, stride, 1, bias=False), nn.BatchNorm2d(oup), nn.ReLU6(inplace=True))


def conv_1x1_bn(inp, oup):
    """1x1 convolution, batch norm, ReLU6."""
    return nn.Sequential(nn.Conv2d(inp, oup, 1, 1, 0, bias=False), nn.BatchNorm2d(oup), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter depthwise by 3x3, project by 1x1; plus the input if stride and width allow it.

    Args:
        inp, oup: input and output channels.
        stride: 1 or 2, of the depthwise convolution.
        expand_ratio: hidden channels per input channel; 1 leaves the expansion out.
    """

    def __init__(self, inp, oup, stride, expand_ratio):
        super().__init__()
        hidden = int(round(inp * expand_ratio))
        self.stride = stride
        self.use_res_connect = stride == 1 and inp == oup
        layers = []
        if expand_ratio != 1:
            layers += [nn.Conv2d(inp, hidden, 1, 1, 0, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, oup, 1, 1, 0, bias=False),
            nn.BatchNorm2d(oup),
        ]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        """[N, inp, H, W] -> [N, oup, ceil(H / stride), ceil(W / stride)]."""
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNetV2(nn.Module):
    """Feature extractor with outputs of stride 4, 8, 16 and 32.

    Args:
        cfg: MODEL.BACKBONE.FREEZE_CONV_BODY_AT is read: so many leading entries of `features` are not trained.
        n_class, input_size: accepted for old callers; they belong to the classifier, which is left out.
        width_mult: factor for all widths.

    Attributes:
        return_features_num_channels: widths of the four outputs, fine to coarse.

    Note:
        Legacy: freezing stops gradients only; the statistics of frozen batch norms go on adapting in training mode.
    """

    def __init__(self, cfg, n_class=1000, input_size=224, width_mult=1.0):
        super().__init__()
        channels = int(_STEM_CHANNELS * width_mult)
        layers = [conv_bn(3, channels, 2)]
        widths = [channels]
        for expand_ratio, base_width, repeats, first_stride in _INVERTED_RESIDUALS:
            width = int(base_width * width_mult)
            for i in range(repeats):
                layers.append(InvertedResidual(channels, width, first_stride if i == 0 else 1, expand_ratio))
                channels = width
                widths.append(width)
        self.features = nn.Sequential(*layers)
        self.return_features_indices = _RETURN_FEATURES
        self.return_features_num_channels = [widths[i] for i in _RETURN_FEATURES]
        self._initialize_weights()
        self._freeze_backbone(cfg.MODEL.BACKBONE.FREEZE_CONV_BODY_AT)

    def forward(self, x):
        """Images [N, 3, H, W] -> list of four maps, fine to coarse."""
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.return_features_indices:
                outputs.append(x)
        return outputs

    def _initialize_weights(self):
        # the layers are convolutions without bias and batch norms, which torch already starts at 1 and 0
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))

    def _freeze_backbone(self, freeze_at):
        for layer in self.features[: max(freeze_at, 0)]:
            for parameter in layer.parameters():
                parameter.requires_grad = False
