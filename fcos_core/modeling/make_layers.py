"""Convolutions, linear layers and group normalisation with the initialisation that detection heads use."""
from torch import nn


def group_norm_options(cfg):
    """Keyword arguments for `group_norm` from MODEL.GROUP_NORM of a configuration."""
    options = cfg.MODEL.GROUP_NORM
    return {"num_groups": options.NUM_GROUPS, "eps": options.EPSILON, "dim_per_gp": options.DIM_PER_GP}


def get_group_gn(dim, dim_per_gp, num_groups):
    """Number of groups for `dim` channels, given either the channels of a group or the number of groups.

    Args:
        dim: channels.
        dim_per_gp: channels of a group, or -1.
        num_groups: number of groups, or -1; exactly one of the two is given.

    Raises:
        ValueError: none or both are given, or the channels cannot be divided that way.
    """
    if (dim_per_gp > 0) == (num_groups > 0):
        raise ValueError(
            "get_group_gn: expected exactly one of MODEL.GROUP_NORM.DIM_PER_GP and NUM_GROUPS to be positive, "
            f"got {dim_per_gp} and {num_groups}; set the other one to -1"
        )
    divisor = dim_per_gp if dim_per_gp > 0 else num_groups
    if dim % divisor:
        raise ValueError(
            f"get_group_gn: expected a number of channels divisible by {divisor}, got {dim}; "
            "change the width or MODEL.GROUP_NORM"
        )
    return dim // dim_per_gp if dim_per_gp > 0 else num_groups


def group_norm(out_channels, affine=True, divisor=1, num_groups=32, eps=1e-5, dim_per_gp=-1):
    """GroupNorm over `out_channels // divisor` channels.

    Args:
        out_channels: channels before the division.
        affine: learn a factor and a shift per channel.
        divisor: divides channels, groups and channels of a group alike (for a part of a split layer).
        num_groups, dim_per_gp: see `get_group_gn`.
        eps: added to the variance.

    Note:
        The older packages took the last three from the global configuration; here `group_norm_options` hands them over.
    """
    channels = out_channels // divisor
    groups = get_group_gn(channels, dim_per_gp // divisor, num_groups // divisor)
    return nn.GroupNorm(groups, channels, eps, affine)


def make_conv3x3(
    in_channels, out_channels, dilation=1, stride=1, use_gn=False, use_relu=False, kaiming_init=True, gn_options=None
):
    """3x3 convolution that keeps the size (divided by the stride), optionally with GroupNorm and ReLU.

    Args:
        use_gn: add GroupNorm; the convolution then has no bias.
        kaiming_init: normal by fan-out (He et al., arXiv:1502.01852), otherwise normal with std 0.01.
        gn_options: keyword arguments of `group_norm`.

    Returns:
        The convolution, or a Sequential of convolution, GroupNorm, ReLU.
    """
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=not use_gn)
    if kaiming_init:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.normal_(conv.weight, std=0.01)
    return _with_norm_and_relu(conv, out_channels, use_gn, use_relu, gn_options)


def make_fc(dim_in, hidden_dim, use_gn=False, gn_options=None):
    """Linear layer, kaiming-uniform with a = 1, optionally followed by GroupNorm (it then has no bias)."""
    linear = nn.Linear(dim_in, hidden_dim, bias=not use_gn)
    nn.init.kaiming_uniform_(linear.weight, a=1)
    return _with_norm_and_relu(linear, hidden_dim, use_gn, False, gn_options)


def conv_with_kaiming_uniform(use_gn=False, use_relu=False, gn_options=None):
    """Maker of convolutions initialised kaiming-uniform with a = 1, bias 0.

    Args:
        use_gn: add GroupNorm; the convolution then has no bias.
        use_relu: add ReLU.
        gn_options: keyword arguments of `group_norm`.

    Returns:
        make_conv(in_channels, out_channels, kernel_size, stride=1, dilation=1) -> module that keeps the size for odd
        kernels (divided by the stride).
    """

    def make_conv(in_channels, out_channels, kernel_size, stride=1, dilation=1):
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=dilation * (kernel_size - 1) // 2,
            dilation=dilation,
            bias=not use_gn,
        )
        nn.init.kaiming_uniform_(conv.weight, a=1)
        return _with_norm_and_relu(conv, out_channels, use_gn, use_relu, gn_options)

    return make_conv


def _with_norm_and_relu(layer, out_channels, use_gn, use_relu, gn_options):
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    modules = [layer]
    if use_gn:
        modules.append(group_norm(out_channels, **(gn_options or {})))
    if use_relu:
        modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules) if len(modules) > 1 else layer
