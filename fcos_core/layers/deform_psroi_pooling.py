"""Deformable position-sensitive RoI pooling; the kernels and their contract are in csrc/deform_psroi_pooling.

Letters: N images, K RoIs, D output channels, G x G groups, P x P bins, A x A offsets per class.
"""

import torch
from torch import nn

from fcos_core.layers._library import load

__all__ = [
    "deform_psroi_pooling",
    "deform_roi_pooling",
    "DeformRoIPooling",
    "DeformRoIPoolingPack",
    "ModulatedDeformRoIPoolingPack",
]


def deform_psroi_pooling(
    input,
    rois,
    trans,
    spatial_scale,
    output_dim,
    group_size=1,
    pooled_size=7,
    part_size=None,
    sample_per_part=4,
    trans_std=0.1,
):
    """Average a grid of bins over each RoI, where every bin may be moved by an offset.

    A RoI is cut into P x P bins of ``sample_per_part ** 2`` bilinear samples each.  With groups, bin (ph, pw) of output
    channel d reads input channel ``(d * G + gh) * G + gw``, where ``gh = ph * G // P``: each part of an object has its
    own score map.

    Args:
        input: [N, D * G * G, H, W], any floating dtype; half precision is computed in float32.
        rois: [K, 5] image number, x1, y1, x2, y2 in pixels of the network input, rounded here to whole pixels, of which
            the last ones belong to the RoI.  Any floating dtype: keep float32 beside half features.
        trans: [K, 2 * num_classes, A, A], or None for bins on a regular grid.  Channel 2 * c moves the bins of class c
            in x and 2 * c + 1 in y, in units of ``trans_std`` times the width and height of the RoI; class c owns
            output channels ``c * D / num_classes`` and on.  Any floating dtype.
        spatial_scale (float): 1 / stride of the input.
        output_dim (int): D, a multiple of num_classes.
        group_size (int): G, 1 to 1024; 1: no groups.
        pooled_size (int): P, 1 to 1024.
        part_size (int): A, 1 to 1024; None: P.
        sample_per_part (int): samples per side of a bin, 1 to 256.
        trans_std (float): in [0, 1].

    Returns:
        [K, D, P, P] of input's dtype and memory format: the mean over those samples of a bin that lie at most half a
        cell outside of the input, 0 if none does.

    Raises:
        RuntimeError: shapes, dtypes, devices or numbers do not fit, or (on the CPU) an image number is not in 0..N-1.

    Note:
        Gradients to input and trans, once differentiable; rois get none.  Half gradients are summed in float32.  The
        result does not depend on the number of threads; on a GPU, gradients are summed in any order, so
        `torch.use_deterministic_algorithms` refuses the backward pass there.  RoIs with a coordinate that is
        not finite give NaN, and on a GPU, which is not synchronised, so do those of an image that does not exist.

    Reference:
        Dai et al., Deformable Convolutional Networks, arXiv:1703.06211, section 2.3.
    """
    load()
    part_size = pooled_size if part_size is None else part_size
    return torch.ops.fcos_core.deform_psroi_pooling(
        input,
        rois,
        trans,
        float(spatial_scale),
        output_dim,
        group_size,
        pooled_size,
        part_size,
        sample_per_part,
        float(trans_std),
    )[0]


def deform_roi_pooling(
    data,
    rois,
    offset,
    spatial_scale,
    out_size,
    out_channels,
    no_trans,
    group_size=1,
    part_size=None,
    sample_per_part=4,
    trans_std=0.0,
):
    """Old name and order of arguments of `deform_psroi_pooling`.

    Args:
        data, rois, offset: its input, rois and trans; offset is not looked at if no_trans.
        spatial_scale, out_channels: its spatial_scale and output_dim.
        out_size: its pooled_size, or a pair of equal ones.
        no_trans (bool): pool on a regular grid.
        group_size, part_size, sample_per_part, trans_std: as there.
    """
    return deform_psroi_pooling(
        data,
        rois,
        None if no_trans else offset,
        spatial_scale,
        out_channels,
        group_size,
        _side(out_size),
        part_size,
        sample_per_part,
        trans_std,
    )


def _side(out_size):
    """The one side of a size that may be given as (height, width)."""
    if isinstance(out_size, (tuple, list)):
        if len(out_size) != 2 or out_size[0] != out_size[1]:
            raise ValueError(
                "deform_roi_pooling: expected out_size to be one number or two equal ones, got {!r}; bins are as many "
                "in height as in width".format(out_size)
            )
        return out_size[0]
    return out_size


class DeformRoIPooling(nn.Module):
    """`deform_roi_pooling` with offsets from outside.

    Args:
        spatial_scale, out_size, out_channels, no_trans, group_size, part_size, sample_per_part, trans_std: see there.
    """

    def __init__(
        self,
        spatial_scale,
        out_size,
        out_channels,
        no_trans,
        group_size=1,
        part_size=None,
        sample_per_part=4,
        trans_std=0.0,
    ):
        super().__init__()
        self.spatial_scale = spatial_scale
        self.out_size = _side(out_size)
        self.out_channels = out_channels
        self.no_trans = no_trans
        self.group_size = group_size
        self.part_size = self.out_size if part_size is None else part_size
        self.sample_per_part = sample_per_part
        self.trans_std = trans_std

    def forward(self, data, rois, offset):
        """Pool data [N, D * G * G, H, W] over rois [K, 5], bins moved by offset [K, 2 * num_classes, A, A]."""
        return self._pool(data, rois, offset)

    def _pool(self, data, rois, offset=None):
        return deform_roi_pooling(
            data,
            rois,
            offset,
            self.spatial_scale,
            self.out_size,
            self.out_channels,
            offset is None or self.no_trans,
            self.group_size,
            self.part_size,
            self.sample_per_part,
            self.trans_std,
        )

    def extra_repr(self):
        names = "spatial_scale out_size out_channels no_trans group_size part_size sample_per_part trans_std".split()
        return ", ".join("{}={}".format(name, getattr(self, name)) for name in names)


class DeformRoIPoolingPack(DeformRoIPooling):
    """Deformable RoI pooling that learns its offsets from the RoI pooled on a regular grid.

    The parameters of `offset_fc` start such that there are no offsets.

    Args:
        spatial_scale, out_size, out_channels, no_trans, group_size, part_size, sample_per_part, trans_std: see
            `deform_roi_pooling`; with no_trans there are no parameters.
        deform_fc_channels (int): width of the hidden layers.
    """

    def __init__(
        self,
        spatial_scale,
        out_size,
        out_channels,
        no_trans,
        group_size=1,
        part_size=None,
        sample_per_part=4,
        trans_std=0.0,
        deform_fc_channels=1024,
    ):
        super().__init__(
            spatial_scale, out_size, out_channels, no_trans, group_size, part_size, sample_per_part, trans_std
        )
        self.deform_fc_channels = deform_fc_channels
        if not no_trans:
            width = deform_fc_channels
            self.offset_fc = nn.Sequential(
                nn.Linear(self._pooled_numbers(), width),
                nn.ReLU(inplace=True),
                nn.Linear(width, width),
                nn.ReLU(inplace=True),
                # Legacy: the ancestors made out_size ** 2 pairs also for another part_size, and misread them
                nn.Linear(width, 2 * self.part_size * self.part_size),
            )
            _start_at_zero(self.offset_fc[-1])

    def _pooled_numbers(self):
        return self.out_size * self.out_size * self.out_channels

    def _offsets(self, pooled):
        """Offsets [K, 2, A, A] from pooled [K, D, P, P]."""
        # reshape, because pooled is laid out as data is; with the number of columns, because K may be 0
        rows = pooled.reshape(pooled.shape[0], self._pooled_numbers())
        return self.offset_fc(rows).reshape(-1, 2, self.part_size, self.part_size)

    def forward(self, data, rois):
        """Pool data [N, D * G * G, H, W] over rois [K, 5] to [K, D, P, P]."""
        pooled = self._pool(data, rois)
        return pooled if self.no_trans else self._pool(data, rois, self._offsets(pooled))


class ModulatedDeformRoIPoolingPack(DeformRoIPoolingPack):
    """`DeformRoIPoolingPack` that also learns how much each bin counts, from 0 to 1; at first one half.

    Args:
        spatial_scale, out_size, out_channels, no_trans, group_size, part_size, sample_per_part, trans_std,
            deform_fc_channels: see `DeformRoIPoolingPack`.

    Reference:
        Zhu et al., Deformable ConvNets v2, arXiv:1811.11168, section 3.2.
    """

    def __init__(
        self,
        spatial_scale,
        out_size,
        out_channels,
        no_trans,
        group_size=1,
        part_size=None,
        sample_per_part=4,
        trans_std=0.0,
        deform_fc_channels=1024,
    ):
        super().__init__(
            spatial_scale,
            out_size,
            out_channels,
            no_trans,
            group_size,
            part_size,
            sample_per_part,
            trans_std,
            deform_fc_channels,
        )
        if not no_trans:
            self.mask_fc = nn.Sequential(
                nn.Linear(self._pooled_numbers(), deform_fc_channels),
                nn.ReLU(inplace=True),
                nn.Linear(deform_fc_channels, self.out_size * self.out_size),
                nn.Sigmoid(),
            )
            _start_at_zero(self.mask_fc[2])

    def forward(self, data, rois):
        """Pool data [N, D * G * G, H, W] over rois [K, 5] to [K, D, P, P]."""
        pooled = self._pool(data, rois)
        if self.no_trans:
            return pooled
        mask = self.mask_fc(pooled.reshape(pooled.shape[0], self._pooled_numbers()))
        moved = self._pool(data, rois, self._offsets(pooled))
        return moved * mask.reshape(-1, 1, self.out_size, self.out_size)


def _start_at_zero(linear):
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
