"""Anchors: boxes of fixed sizes and shapes around every location of a pyramid level.

Shape letters: H x W locations of a level, A anchors at each location.
"""
import numpy as np
import torch
from torch import nn

from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.box_ops import PIXEL


class BufferList(nn.Module):
    """Tensors that move and are saved with a module, under the names 0, 1, ..."""

    def __init__(self, buffers=None):
        super(BufferList, self).__init__()
        self.extend(buffers or [])

    def extend(self, buffers):
        """Append tensors."""
        for buffer in buffers:
            self.register_buffer(str(len(self)), buffer)
        return self

    def __len__(self):
        return len(self._buffers)

    def __iter__(self):
        return iter(self._buffers.values())


def generate_anchors(stride=16, sizes=(32, 64, 128, 256, 512), aspect_ratios=(0.5, 1, 2), shift=0.0):
    """Anchors of the first location of a level.

    Of each aspect ratio (height / width), outermost, a window of about stride x stride pixels is rounded to whole
    pixels and then scaled to each size.

    Args:
        stride: pixels between two locations.
        sizes: side of a square anchor, pixels.
        aspect_ratios: height / width.
        shift: added to the centre, (stride - 1) / 2, pixels.

    Returns:
        [A, 4] float32 xyxy pixels, A = len(aspect_ratios) * len(sizes).
    """
    ratios = np.array(aspect_ratios, np.float64)
    widths = np.round(np.sqrt(stride * stride / ratios))  # half to even, as the weights of published models expect
    heights = np.round(widths * ratios)
    scales = np.array(sizes, np.float64) / stride
    sides = np.stack((widths, heights), axis=1)[:, None, :] * scales[None, :, None]  # [ratio, size, (w, h)]
    reach = (sides.reshape(-1, 2) - PIXEL) / 2
    center = (stride - 1) / 2.0 + shift
    return torch.from_numpy(np.concatenate((center - reach, center + reach), axis=1).astype(np.float32))


class AnchorGenerator(nn.Module):
    """Anchors of all levels of a pyramid.

    Args:
        sizes: for each level a size or a tuple of sizes, pixels; with one stride only, all sizes of that level.
        aspect_ratios: height / width, the same for all levels.
        anchor_strides: stride of each level, pixels.
        straddle_thresh: see `add_visibility_to`.
        shift: see `generate_anchors`.

    Raises:
        ValueError: sizes and strides of different number.
    """

    def __init__(self, sizes=(128, 256, 512), aspect_ratios=(0.5, 1.0, 2.0), anchor_strides=(8, 16, 32),
                 straddle_thresh=0, shift=0.0):  # fmt: skip
        super(AnchorGenerator, self).__init__()
        if len(anchor_strides) == 1:
            sizes = (tuple(sizes),)
        if len(sizes) != len(anchor_strides):
            raise ValueError(
                "AnchorGenerator: expected as many sizes as strides, got {} and {}; give each level its size, or a "
                "tuple of sizes".format(len(sizes), len(anchor_strides))
            )
        self.strides = tuple(anchor_strides)
        # In the state dict, as ever: anchors belong to the weights that were trained with them.
        self.cell_anchors = BufferList(
            [
                generate_anchors(stride, size if isinstance(size, (tuple, list)) else (size,), aspect_ratios, shift)
                for stride, size in zip(anchor_strides, sizes)
            ]
        )
        self.straddle_thresh = straddle_thresh

    def num_anchors_per_location(self):
        """A of each level."""
        return [len(cell) for cell in self.cell_anchors]

    def level_anchors(self, grid_sizes):
        """All anchors, with the grid in their shape.

        Args:
            grid_sizes: (H, W) of each level.

        Returns:
            list of L tensors [H, W, A, 4] xyxy pixels, neither clipped nor filtered.
        """
        anchors = []
        for (height, width), stride, cell in zip(grid_sizes, self.strides, self.cell_anchors):
            xs = torch.arange(0, width * stride, stride, dtype=cell.dtype, device=cell.device)
            ys = torch.arange(0, height * stride, stride, dtype=cell.dtype, device=cell.device)
            x, y = xs[None, :].expand(height, width), ys[:, None].expand(height, width)
            anchors.append(torch.stack((x, y, x, y), dim=2)[:, :, None] + cell)
        return anchors

    def grid_anchors(self, grid_sizes):
        """`level_anchors` as flat lists: L tensors [H * W * A, 4]."""
        return [level.reshape(-1, 4) for level in self.level_anchors(grid_sizes)]

    def add_visibility_to(self, boxlist):
        """Add the field "visibility", bool [M]: at most straddle_thresh pixels lie outside; all, if it is negative."""
        width, height = boxlist.size
        x1, y1, x2, y2 = boxlist.bbox.unbind(1)
        if self.straddle_thresh >= 0:
            over = self.straddle_thresh
            visible = (x1 >= -over) & (y1 >= -over) & (x2 < width + over) & (y2 < height + over)
        else:
            visible = torch.ones_like(x1, dtype=torch.bool)
        boxlist.add_field("visibility", visible)

    def forward(self, image_list, feature_maps):
        """Anchors image by image, as two-stage code wants them; the heads of this package use `level_anchors`.

        Args:
            image_list: ImageList.
            feature_maps: list of L tensors [N, C, H, W].

        Returns:
            list of N lists of L BoxLists with field "visibility".
        """
        grids = self.grid_anchors([feature.shape[-2:] for feature in feature_maps])
        images = []
        for height, width in image_list.image_sizes:
            levels = [BoxList(grid, (width, height), mode="xyxy") for grid in grids]
            for level in levels:
                self.add_visibility_to(level)
            images.append(levels)
        return images


def level_boxlists(level, image_sizes):
    """Anchors of one level [H, W, A, 4] as the same boxes for each image: list of N BoxLists of H * W * A boxes.

    Args:
        image_sizes: list of N (height, width).
    """
    return [BoxList(level.reshape(-1, 4), (width, height), mode="xyxy") for height, width in image_sizes]


def level_of_boxlists(boxlists, per_location):
    """The inverse of `level_boxlists`: [H, W, A, 4], and the image sizes, list of N (height, width).

    The images share their anchors, as those of AnchorGenerator do; the first one's are taken.

    Args:
        boxlists: N BoxLists, row by row, at a location anchor by anchor.
        per_location: A.
    """
    anchors = boxlists[0].convert("xyxy").bbox.reshape(-1, per_location, 4)
    in_a_row = int((anchors[:, 0, 1] == anchors[0, 0, 1]).sum())  # of the same height
    return anchors.reshape(-1, in_a_row, per_location, 4), [(boxlist.size[1], boxlist.size[0]) for boxlist in boxlists]


def as_levels(anchors, per_location, image_sizes=None):
    """Anchors in the form that the heads work with, from that form or the one of `AnchorGenerator.forward`.

    Args:
        anchors: list of L tensors [H_l, W_l, A, 4], or list of N lists of L BoxLists.
        per_location: A.
        image_sizes: list of N (height, width), or None; BoxLists bring their own.

    Returns:
        list of L tensors [H_l, W_l, A, 4]; image sizes.
    """
    if isinstance(anchors[0], torch.Tensor):
        return anchors, image_sizes
    levels = [level_of_boxlists(image_lists, per_location) for image_lists in zip(*anchors)]
    return [level for level, _ in levels], levels[0][1] if image_sizes is None else image_sizes


def make_anchor_generator(config):
    """Anchors of MODEL.RPN: one size on each level with USE_FPN, else all sizes on the only level."""
    options = config.MODEL.RPN
    return AnchorGenerator(
        tuple(options.ANCHOR_SIZES),
        tuple(options.ASPECT_RATIOS),
        tuple(options.ANCHOR_STRIDE),
        options.STRADDLE_THRESH,
        _shift(config, 0.0),
    )


def make_anchor_generator_retinanet(config):
    """Anchors of MODEL.RETINANET."""
    return _octave_generator(config.MODEL.RETINANET, _shift(config, 0.0))


def make_anchor_generator_atss(config):
    """Anchors of MODEL.ATSS."""
    return _octave_generator(config.MODEL.ATSS, _shift(config, 0.5))


def make_square_anchor_generator(config, options):
    """One square anchor at each location, centred as those of ATSS.

    Args:
        config: MODEL.ANCHOR_SHIFT is read.
        options: section of the config with ANCHOR_SIZES and ANCHOR_STRIDES.
    """
    sizes = tuple((size,) for size in options.ANCHOR_SIZES)
    return AnchorGenerator(sizes, (1.0,), tuple(options.ANCHOR_STRIDES), shift=_shift(config, 0.5))


def _shift(config, usual):
    """Legacy: ATSS models were trained with anchors half a pixel to the right and below those of RetinaNet models."""
    return usual if config.MODEL.ANCHOR_SHIFT < 0 else config.MODEL.ANCHOR_SHIFT


def _octave_generator(options, shift):
    """Anchors of SCALES_PER_OCTAVE sizes, which divide an OCTAVE evenly, for each size of a section of the config."""
    steps = [options.OCTAVE ** (k / float(options.SCALES_PER_OCTAVE)) for k in range(options.SCALES_PER_OCTAVE)]
    sizes = tuple(tuple(size * step for step in steps) for size in options.ANCHOR_SIZES)
    return AnchorGenerator(
        sizes, tuple(options.ASPECT_RATIOS), tuple(options.ANCHOR_STRIDES), options.STRADDLE_THRESH, shift
    )
