"""Deformable convolution, version 1 and 2 (modulated); the kernels and their contract are in csrc/deform_conv.

A tap of the kernel reads the input beside its place in the grid, at a point that an offset moves; in version 2 a mask
weighs each tap.  Offsets and masks are usually predicted by a plain convolution of the same input, as in `DFConv2d`.

Letters: N images, C and O channels of input and output, K taps (kernel height * width), D deformable groups, Ho and Wo
height and width of the output.  Pairs of numbers are (y, x); a single number stands for both.
"""

import torch
from torch import nn
from torch.nn.modules.utils import _pair

from fcos_core.layers._library import load

__all__ = [
    "deform_conv",
    "modulated_deform_conv",
    "DeformConv",
    "ModulatedDeformConv",
    "ModulatedDeformConvPack",
    "DFConv2d",
]


def deform_conv(
    input, offset, weight, stride=1, padding=0, dilation=1, groups=1, deformable_groups=1, im2col_step=64
):
    """Deformable convolution, version 1: `modulated_deform_conv` without mask and bias.

    Args:
        input, offset, weight, stride, padding, dilation, groups, deformable_groups: see `modulated_deform_conv`.
        im2col_step: without effect; it once said how many images to take at a time, which memory now decides.

    Returns:
        [N, O, Ho, Wo].
    """
    return _call(input, offset, None, weight, None, stride, padding, dilation, groups, deformable_groups)


def modulated_deform_conv(
    input, offset, mask, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, deformable_groups=1
):
    """Deformable convolution, version 2.

    At output position (y, x), tap k = (i, j) reads the input at::

        y * stride_y - padding_y + i * dilation_y + offset[:, (d * K + k) * 2,     y, x]
        x * stride_x - padding_x + j * dilation_x + offset[:, (d * K + k) * 2 + 1, y, x]

    bilinearly between the four cells around that point, where d is the deformable group of the channel.  Cells outside
    the map count as 0; a point at or beyond -1, or at or beyond the height or width, reads 0.  What it reads is
    multiplied by mask[:, d * K + k, y, x]; the rest is a convolution.

    Args:
        input: [N, C, H, W], any floating dtype and memory format.
        offset: [N, D * K * 2, Ho, Wo] in cells of the input, pairs (y, x) for each tap.  Any floating dtype; points
            are computed in float32 (float64 for a float64 input), so float32 offsets beside a half input keep theirs.
        mask: [N, D * K, Ho, Wo], any floating dtype; None: 1 everywhere.
        weight: [O, C / groups, kernel height, kernel width], dtype of input.
        bias: [O], dtype of input, or None.
        stride, padding, dilation: number or pair.
        groups: splits the channels of input and output; divides C and O.
        deformable_groups: D, splits the channels of the input into runs with offsets of their own; divides C.

    Returns:
        [N, O, Ho, Wo], Ho = (H + 2 * padding_y - dilation_y * (kernel height - 1) - 1) // stride_y + 1, in the dtype
        and memory format of input; under autocast in autocast's dtype, as of any convolution.

    Raises:
        RuntimeError: shapes, dtypes, devices or numbers do not fit.

    Note:
        Gradients to all five tensors, once differentiable.  A NaN offset gives a NaN output.  The CPU gives the same
        bits for any number of threads; on a GPU the gradient of the input is summed in an order that varies, which
        ``torch.use_deterministic_algorithms`` refuses.  Scratch memory is bounded (csrc/deform_conv/deform_conv.h).
        On a GPU, float32 products follow ``torch.backends.cuda.matmul.allow_tf32``.

    Reference:
        Dai et al., arXiv:1703.06211, section 2.1; Zhu et al., arXiv:1811.11168, section 3.2.
    """
    return _call(input, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups)


def _call(input, offset, mask, weight, bias, stride, padding, dilation, groups, deformable_groups):
    load()
    return torch.ops.fcos_core.deform_conv(
        input,
        weight,
        offset,
        mask,
        bias,
        _pair(stride),
        _pair(padding),
        _pair(dilation),
        groups,
        deformable_groups,
    )


class _DeformConvBase(nn.Module):
    """Weight, bias and numbers of a deformable convolution."""

    def __init__(
        self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deformable_groups, bias
    ):
        super().__init__()
        for what, channels, number in (
            ("in_channels", in_channels, groups),
            ("out_channels", out_channels, groups),
            ("in_channels", in_channels, deformable_groups),
        ):
            if channels % number:
                raise ValueError(
                    "{}: expected {} to be a multiple of the number of groups, got {} and {}; groups split channels "
                    "evenly".format(type(self).__name__, what, channels, number)
                )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size)
        self.stride = _pair(stride)
        self.padding = _pair(padding)
        self.dilation = _pair(dilation)
        self.groups = groups
        self.deformable_groups = deformable_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self):
        """Weights uniform within 1 / sqrt(fan-in), biases 0."""
        bound = self.weight[0].numel() ** -0.5 if self.weight.numel() else 0.0
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self):
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
                 "deformable_groups")  # fmt: skip
        parts = ["{}={}".format(name, getattr(self, name)) for name in names]
        return ", ".join(parts + ["bias={}".format(self.bias is not None)])


class DeformConv(_DeformConvBase):
    """Deformable convolution, version 1, whose offsets are an input.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as of ``nn.Conv2d``.
        deformable_groups (int): runs of channels with offsets of their own.
        bias (bool): must be False.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deformable_groups=1,
        bias=False,
    ):
        if bias:
            raise ValueError("DeformConv: expected bias False, got True; ModulatedDeformConv has one")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deformable_groups, bias
        )

    def forward(self, input, offset):
        """input [N, C, H, W], offset [N, D * K * 2, Ho, Wo] -> [N, O, Ho, Wo]."""
        return deform_conv(
            input, offset, self.weight, self.stride, self.padding, self.dilation, self.groups, self.deformable_groups
        )


class ModulatedDeformConv(_DeformConvBase):
    """Deformable convolution, version 2, whose offsets and mask are inputs.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as of ``nn.Conv2d``.
        deformable_groups (int): runs of channels with offsets and masks of their own.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deformable_groups=1,
        bias=True,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deformable_groups, bias
        )
        self.with_bias = bool(bias)

    def forward(self, input, offset, mask):
        """input [N, C, H, W], offset [N, D * K * 2, Ho, Wo], mask [N, D * K, Ho, Wo] -> [N, O, Ho, Wo]."""
        return modulated_deform_conv(
            input,
            offset,
            mask,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deformable_groups,
        )


class ModulatedDeformConvPack(ModulatedDeformConv):
    """`ModulatedDeformConv` with the convolution that predicts offsets and mask, `conv_offset_mask`.

    That starts at 0: at first the layer is a plain convolution times the mask 1/2.

    Args: as of `ModulatedDeformConv`.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        kernel_size,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        deformable_groups=1,
        bias=True,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deformable_groups, bias
        )
        self.conv_offset_mask = nn.Conv2d(
            in_channels,
            3 * deformable_groups * self.kernel_size[0] * self.kernel_size[1],
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
        )
        self.init_offset()

    def init_offset(self):
        """Weights and biases of the predicting convolution 0."""
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, input):
        """[N, C, H, W] -> [N, O, Ho, Wo]."""
        return super().forward(input, *_split(self.conv_offset_mask(input)))


class DFConv2d(nn.Module):
    """Deformable convolution with the convolution that predicts its offsets (and mask); replaces an ``nn.Conv2d``.

    Parameters are named `offset.weight`, `offset.bias` (of the predicting convolution), `conv.weight` and `conv.bias`.

    Args:
        in_channels, out_channels, kernel_size, stride, groups, dilation, bias: as of ``nn.Conv2d``; groups are those of
            the deformable convolution only.
        with_modulated_dcn (bool): version 2 with, version 1 without mask.
        padding: number or pair; None: the dilation, so that a 3 x 3 kernel keeps the size of the map (divided by the
            stride).  Legacy: the ancestors had 1, which a dilated kernel made the map shrink with.
        deformable_groups (int): runs of channels with offsets of their own.  Legacy: the ancestors cut the prediction
            at channel 18 however many there were.

    Note:
        The predicting convolution starts kaiming-uniform with a = 1, not at 0 as in the papers; its biases at 0.
    """

    def __init__(
        self,
        in_channels,
        out_channels,
        with_modulated_dcn=True,
        kernel_size=3,
        stride=1,
        groups=1,
        padding=None,
        dilation=1,
        deformable_groups=1,
        bias=False,
    ):
        super().__init__()
        kernel_size = _pair(kernel_size)
        padding = dilation if padding is None else padding
        self.with_modulated_dcn = with_modulated_dcn
        numbers_per_tap = 3 if with_modulated_dcn else 2
        self.offset = nn.Conv2d(
            in_channels,
            numbers_per_tap * deformable_groups * kernel_size[0] * kernel_size[1],
            kernel_size,
            stride,
            padding,
            dilation,
        )
        nn.init.kaiming_uniform_(self.offset.weight, a=1)
        nn.init.zeros_(self.offset.bias)
        conv = ModulatedDeformConv if with_modulated_dcn else DeformConv
        self.conv = conv(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            deformable_groups,
            bias,
        )

    def forward(self, x):
        """[N, C, H, W] -> [N, O, Ho, Wo]."""
        predicted = self.offset(x)
        if not self.with_modulated_dcn:
            return self.conv(x, predicted)
        return self.conv(x, *_split(predicted))


def _split(predicted):
    """[N, 3 * D * K, Ho, Wo] -> offsets [N, 2 * D * K, Ho, Wo] and mask [N, D * K, Ho, Wo] in 0..1."""
    split = predicted.shape[1] // 3 * 2
    return predicted[:, :split], torch.sigmoid(predicted[:, split:])
