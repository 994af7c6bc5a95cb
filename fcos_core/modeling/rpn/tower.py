"""The convolutional tower and the initial values that the dense heads share."""
import math

from torch import nn

from fcos_core.layers import DFConv2d, GroupNormReLU


def conv_tower(channels, num_convs, deformable_last=False, norm=True):
    """num_convs times 3x3 convolution (with bias), GroupNorm(32), ReLU; the width stays `channels`.

    Args:
        channels: width of the input and of every layer.
        num_convs: number of convolutions.
        deformable_last: make the last one deformable (version 2).
        norm: with GroupNorm.

    Returns:
        nn.Sequential whose children are numbered conv, norm, relu, conv, ...: the numbers are the parameter names of
        checkpoints.
    """
    layers = []
    for i in range(num_convs):
        if deformable_last and i == num_convs - 1:
            conv = DFConv2d(channels, channels, bias=True)
        else:
            conv = nn.Conv2d(channels, channels, 3, stride=1, padding=1)
        # the place of the ReLU stays, because it counts
        layers += [conv, GroupNormReLU(32, channels), nn.Identity()] if norm else [conv, nn.ReLU()]
    return nn.Sequential(*layers)


def init_convs(*modules):
    """Weights of every plain convolution in `modules` ~ N(0, 0.01^2), biases 0.

    Of a DFConv2d that is the one that predicts its offsets; the deformable one keeps its own initial values.
    """
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)


def prior_bias(prior_prob):
    """Bias with which sigmoid gives `prior_prob` for every class at the start (focal loss, arXiv:1708.02002, 4.1)."""
    return -math.log((1 - prior_prob) / prior_prob)
