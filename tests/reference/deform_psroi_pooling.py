"""Deformable position-sensitive RoI pooling, slow and obvious, in float64; and the inputs that tests share.

One sample after the other, each interpolated from its four cells, and torch's autograd for the gradients: nothing of
the products of row and column weights that the kernels work with.
"""

import math
from typing import NamedTuple, Optional

import torch


class Sample(NamedTuple):
    """input [N, D * G * G, H, W], rois [K, 5], trans [K, 2 * num_classes, A, A] or None, and the numbers of the op."""

    name: str
    input: torch.Tensor
    rois: torch.Tensor
    trans: Optional[torch.Tensor]
    spatial_scale: float
    output_dim: int
    group_size: int
    pooled_size: int
    part_size: int
    sample_per_part: int
    trans_std: float

    @property
    def arguments(self):
        """What the op takes, in order."""
        return tuple(self)[1:]

    @property
    def numbers(self):
        """The arguments behind the tensors."""
        return tuple(self)[4:]


def round_half_away(x):
    return math.copysign(math.floor(abs(x) + 0.5), x)


def bilinear(image, x, y):
    """image [C, H, W] at a position inside of it (tensors of no dimension) -> [C]."""
    x0, y0 = math.floor(x.item()), math.floor(y.item())
    x1, y1 = math.ceil(x.item()), math.ceil(y.item())
    right, below = x - x0, y - y0
    above = image[:, y0, x0] * (1 - right) + image[:, y0, x1] * right
    return above * (1 - below) + (image[:, y1, x0] * (1 - right) + image[:, y1, x1] * right) * below


def deform_psroi_pooling(
    input,
    rois,
    trans,
    spatial_scale,
    output_dim,
    group_size,
    pooled_size,
    part_size,
    sample_per_part,
    trans_std,
):
    """Output [K, D, P, P] float64, differentiable, and counts int64 [K, num_classes, P, P]; arguments as the op's."""
    input = input.double()
    trans = None if trans is None else trans.double()
    num_images, _, height, width = input.shape
    num_classes = 1 if trans is None else trans.shape[1] // 2
    class_channels = output_dim // num_classes
    scores = input.reshape(num_images, output_dim, group_size, group_size, height, width)
    # rather than a plain 0, so that autograd knows of both inputs in any case
    zero = 0 * (input.sum() + (0 if trans is None else trans.sum()))
    bins, counts = [], []
    has_cells = height > 0 and width > 0
    for k, roi in enumerate(rois.double().tolist()):
        image = int(roi[0])
        left, top = (round_half_away(v) * spatial_scale - 0.5 for v in roi[1:3])
        right, bottom = ((round_half_away(v) + 1) * spatial_scale - 0.5 for v in roi[3:5])
        roi_width, roi_height = max(right - left, 0.1), max(bottom - top, 0.1)
        for c in range(num_classes):
            channels = slice(c * class_channels, (c + 1) * class_channels)
            for ph in range(pooled_size):
                for pw in range(pooled_size):
                    x = torch.tensor(left + pw * roi_width / pooled_size, dtype=torch.float64)
                    y = torch.tensor(top + ph * roi_height / pooled_size, dtype=torch.float64)
                    if trans is not None:
                        part = (ph * part_size // pooled_size, pw * part_size // pooled_size)
                        x = x + trans[k, 2 * c][part] * trans_std * roi_width
                        y = y + trans[k, 2 * c + 1][part] * trans_std * roi_height
                    gh, gw = (p * group_size // pooled_size for p in (ph, pw))
                    values = []
                    for iy in range(sample_per_part):
                        for ix in range(sample_per_part):
                            sample_x = x + ix * roi_width / pooled_size / sample_per_part
                            sample_y = y + iy * roi_height / pooled_size / sample_per_part
                            in_x, in_y = -0.5 <= sample_x <= width - 0.5, -0.5 <= sample_y <= height - 0.5
                            if not (has_cells and in_x and in_y):
                                continue
                            values.append(
                                bilinear(
                                    scores[image, channels, gh, gw],
                                    sample_x.clamp(0, width - 1),
                                    sample_y.clamp(0, height - 1),
                                )
                            )
                    counts.append(len(values))
                    bins.append(zero + (sum(values) / len(values) if values else input.new_zeros(class_channels)))
    grid = (len(rois), num_classes, pooled_size, pooled_size)
    counts = torch.tensor(counts, dtype=torch.int64).reshape(grid)
    if not bins:
        return input.new_zeros((0, output_dim, pooled_size, pooled_size)) + zero, counts
    output = torch.stack(bins).reshape(grid + (class_channels,))
    return output.permute(0, 1, 4, 2, 3).reshape(len(rois), output_dim, pooled_size, pooled_size), counts


def random_inputs(
    num_images=2,
    output_dim=6,
    group_size=1,
    size=(13, 17),
    num_rois=4,
    num_classes=1,
    part_size=3,
    spatial_scale=0.117,
    seed=0,
):
    """input, rois inside of it or overlapping its border, trans; all float32."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator)

    input = uniform(-1, 1, num_images, output_dim * group_size**2, *size)
    height, width = (side / spatial_scale for side in size)
    extent = uniform(0.1, 0.7, num_rois, 2) * torch.tensor([width, height])
    corner = uniform(-0.2, 0.7, num_rois, 2) * torch.tensor([width, height])
    image = torch.randint(0, max(1, num_images), (num_rois, 1), generator=generator).float()
    rois = torch.cat([image, corner, corner + extent], 1)
    return input, rois, uniform(-1, 1, num_rois, 2 * num_classes, part_size, part_size)


def sample_inputs(device="cpu", dtype=torch.float32, requires_grad=False, rois_dtype=None, trans_dtype=None):
    """List of Sample: typical, groups, classes, borders, whole positions, none of everything, layouts.

    rois_dtype and trans_dtype are dtype unless given.
    """
    input, rois, trans = random_inputs()
    grouped = random_inputs(output_dim=2, group_size=3, num_classes=2, seed=1)
    uneven = random_inputs(output_dim=6, group_size=2, num_classes=3, part_size=2, num_rois=2, seed=2)
    border = torch.tensor(
        [
            [0.0, -40, -40, -10, -10],  # just outside, but reached by offsets
            [1, -900, -900, -800, -800],  # far outside
            [1, -30, -30, 170, 140],  # around the input
            [0, 60, 50, 20, 30],  # ends before it begins
            [0, 60, 50, 60, 50],  # one pixel
            [1, 1e9, -1e9, 2e9, 1e9],
            [0.0, -3e38, -3e38, 3e38, 3e38],
        ]
    )
    many_trans = random_inputs(num_rois=7, seed=3)[2]
    # scale 1/2 and whole numbers of cells a bin: every position is exact, most are halves or whole
    whole = torch.tensor([[0.0, 1, 1, 8, 8], [1, 3, 5, 10, 12], [0, 0, 0, 31, 23], [1, 25, 17, 40, 32]])
    halves = torch.tensor([[0.0, 0.5, 1.5, 20.5, 21.5], [0, -0.5, -1.5, 20.49, 21.51], [1, 2.5, 2.5, 2.5, 9.5]])
    common = (0.117, 6, 1, 3, 3, 2, 0.3)
    cases = [
        ("typical", input, rois, trans) + common,
        ("regular grid", input, rois, None) + common,
        ("offsets of weight 0", input, rois, trans, 0.117, 6, 1, 3, 3, 2, 0.0),
        ("groups", *grouped, 0.117, 2, 3, 3, 3, 2, 0.1),
        ("groups and parts that do not divide", *uneven, 0.117, 6, 2, 5, 2, 3, 0.1),
        ("one bin of one sample", input, rois, trans[:, :, :1, :1], 0.117, 6, 1, 1, 1, 1, 0.1),
        ("usual sizes", input, rois[:2], random_inputs(num_rois=2, part_size=7)[2], 0.117, 6, 1, 7, 7, 4, 0.1),
        ("border", input, border, many_trans) + common,
        ("whole positions", input, whole, None, 0.5, 6, 1, 2, 2, 4, 0.0),
        ("whole positions and offsets", input, whole, torch.zeros(4, 2, 2, 2), 0.5, 6, 1, 2, 2, 4, 0.5),
        ("rounding of rois", input, halves, trans[:3], 0.117, 6, 1, 3, 3, 2, 0.1),
        ("one cell", input[:, :, :1, :1], rois * 0.1 // 1, trans) + common,
        ("one row", input[:, :, :1], rois, trans) + common,
        ("no roi", input, rois[:0], trans[:0]) + common,
        ("no image", input[:0], rois[:0], trans[:0]) + common,
        ("no channel", input[:, :0], rois, trans, 0.117, 0, 1, 3, 3, 2, 0.3),
        # the first sample of these RoIs is at -0.5, which is the last position of no cells too
        ("no cell", input[:, :, :0], rois * 0, None) + common,
        ("channels last", input.contiguous(memory_format=torch.channels_last), rois, trans) + common,
        (
            "channels last with groups",
            uneven[0].contiguous(memory_format=torch.channels_last),
            *uneven[1:],
            0.117,
            6,
            2,
            5,
            2,
            3,
            0.1,
        ),
        ("not contiguous", input.transpose(2, 3), rois.t().contiguous().t(), trans.transpose(2, 3)) + common,
    ]
    samples = []
    for name, x, r, t, *numbers in cases:
        # to() keeps strides, and leaves are needed for the gradients
        x = x.to(device, dtype).detach().requires_grad_(requires_grad)
        largest = torch.finfo(rois_dtype or dtype).max
        r = r.double().clamp(-largest, largest).to(device, rois_dtype or dtype)
        if t is not None:
            t = t.to(device, trans_dtype or dtype).detach().requires_grad_(requires_grad)
        samples.append(Sample(name, x, r, t, *numbers))
    assert not samples[-1].input.is_contiguous()
    return samples


def exercise(device, dtype, small):
    """Call the operator forward and backward on every sample; returns the number of calls."""
    from fcos_core.layers._library import load

    load()
    calls = 0
    for sample in sample_inputs(device, dtype, requires_grad=True):
        output, _ = torch.ops.fcos_core.deform_psroi_pooling(*sample.arguments)
        output.sum().backward()
        calls += 2
    if not small:
        input, rois, trans = random_inputs(2, 256, size=(64, 64), num_rois=100, part_size=7, spatial_scale=1 / 16)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = input.to(device, dtype).contiguous(memory_format=memory_format).requires_grad_()
            t = trans.to(device, dtype).requires_grad_()
            numbers = (1 / 16, 256, 1, 7, 7, 4, 0.1)
            torch.ops.fcos_core.deform_psroi_pooling(x, rois.to(device), t, *numbers)[0].sum().backward()
            calls += 2
    return calls
