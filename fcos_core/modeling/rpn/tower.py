"""The convolutional tower and the initial values that the dense heads share."""
import math

from torch import nn


def conv_tower(channels, num_convs, deformable_last=False):
    """num_convs times 3x3 convolution (with bias), GroupNorm(32), ReLU; the width stays `channels`.

    Returns:
        nn.Sequential whose children are numbered conv, norm, relu, conv, ...: the numbers are the parameter names of
        checkpoints.

    Raises:
        ValueError: deformable_last, as long as this version has no deformable convolution.
    """
    if deformable_last:
        raise ValueError(
            "conv_tower: expected USE_DCN_IN_TOWER False, got True; this version has no deformable convolution yet, "
            "set MODEL.FCOS.USE_DCN_IN_TOWER False or take a configuration without dcnv2 in its name"
        )
    layers = []
    for _ in range(num_convs):
        layers += [nn.Conv2d(channels, channels, 3, stride=1, padding=1), nn.GroupNorm(32, channels), nn.ReLU()]
    return nn.Sequential(*layers)


def init_convs(*modules):
    """Weights of every convolution in `modules` ~ N(0, 0.01^2), biases 0."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)


def prior_bias(prior_prob):
    """Bias with which sigmoid gives `prior_prob` for every class at the start (focal loss, arXiv:1708.02002, 4.1)."""
    return -math.log((1 - prior_prob) / prior_prob)
