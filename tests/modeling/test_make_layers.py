"""Makers of convolutions, linear layers and group norm."""
import pytest
import torch
from torch import nn

from fcos_core.config import load_config
from fcos_core.modeling.make_layers import (
    conv_with_kaiming_uniform,
    get_group_gn,
    group_norm,
    group_norm_options,
    make_conv3x3,
    make_fc,
)


def test_groups_from_either_setting():
    assert get_group_gn(64, -1, 32) == 32
    assert get_group_gn(64, 16, -1) == 4


@pytest.mark.parametrize("dim,dim_per_gp,num_groups", [(64, -1, -1), (64, 8, 8), (48, -1, 32), (40, 16, -1)])
def test_impossible_groups(dim, dim_per_gp, num_groups):
    with pytest.raises(ValueError, match="get_group_gn: expected"):
        get_group_gn(dim, dim_per_gp, num_groups)


def test_group_norm_takes_its_settings_from_arguments():
    norm = group_norm(64)
    assert (norm.num_groups, norm.num_channels, norm.eps, norm.affine) == (32, 64, 1e-5, True)
    norm = group_norm(64, affine=False, divisor=2, num_groups=16, eps=1e-3)
    assert (norm.num_groups, norm.num_channels, norm.eps, norm.affine) == (8, 32, 1e-3, False)
    cfg, _ = load_config("", ["MODEL.GROUP_NORM.NUM_GROUPS", -1, "MODEL.GROUP_NORM.DIM_PER_GP", 4])
    assert group_norm(64, **group_norm_options(cfg)).num_groups == 16


@pytest.mark.parametrize("use_gn", [False, True])
@pytest.mark.parametrize("use_relu", [False, True])
def test_parts_and_bias(use_gn, use_relu):
    for layer in (
        conv_with_kaiming_uniform(use_gn, use_relu, {"num_groups": 4})(8, 16, 3),
        make_conv3x3(8, 16, use_gn=use_gn, use_relu=use_relu, gn_options={"num_groups": 4}),
    ):
        parts = list(layer) if isinstance(layer, nn.Sequential) else [layer]
        expected = [nn.Conv2d] + [nn.GroupNorm] * use_gn + [nn.ReLU] * use_relu
        assert [type(part) for part in parts] == expected
        assert (parts[0].bias is None) == use_gn
        if not use_gn:
            assert (parts[0].bias == 0).all()
        else:
            assert parts[1].num_groups == 4


@pytest.mark.parametrize(
    "kernel_size,stride,dilation,size", [(1, 1, 1, 11), (3, 1, 1, 11), (3, 2, 1, 6), (3, 1, 2, 11)]
)
def test_size_is_kept(kernel_size, stride, dilation, size):
    conv = conv_with_kaiming_uniform()(4, 6, kernel_size, stride, dilation)
    assert conv(torch.rand(1, 4, 11, 11)).shape == (1, 6, size, size)
    if kernel_size == 3:
        conv = make_conv3x3(4, 6, dilation, stride)
        assert conv(torch.rand(1, 4, 11, 11)).shape == (1, 6, size, size)


def test_initial_weights():
    fan_in, fan_out = 64 * 9, 128 * 9
    uniform = conv_with_kaiming_uniform()(64, 128, 3).weight
    bound = (3.0 / fan_in) ** 0.5  # kaiming-uniform with a = 1: variance 1 / fan_in
    assert 0.98 * bound < uniform.abs().max() <= bound
    assert abs(uniform.std() * fan_in**0.5 - 1) < 0.02
    assert abs(make_conv3x3(64, 128).weight.std() * (fan_out / 2.0) ** 0.5 - 1) < 0.02
    assert abs(make_conv3x3(64, 128, kaiming_init=False).weight.std() / 0.01 - 1) < 0.02


def test_fc():
    layer = make_fc(20, 32)
    assert layer(torch.rand(3, 20)).shape == (3, 32) and (layer.bias == 0).all()
    layer = make_fc(20, 32, use_gn=True, gn_options={"num_groups": 8})
    assert layer[0].bias is None and layer[1].num_groups == 8 and layer(torch.rand(3, 20)).shape == (3, 32)
