"""RoI max pooling, slow and obvious, in float64; and the inputs that tests and benchmarks share."""

import math
from typing import NamedTuple

import numpy as np
import torch

from tests.reference.roi_align import random_map, random_rois


class Sample(NamedTuple):
    """input [N, C, H, W], rois [K, 5] and how to pool them."""

    name: str
    input: torch.Tensor
    rois: torch.Tensor
    output_size: tuple
    spatial_scale: float


def rounded(value):
    """The nearest whole number, halves away from 0."""
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def bins_of(low, high, bins, spatial_scale, pixels, number):
    """The pixels of each bin along one axis: a list of ranges."""
    start = rounded(low * spatial_scale)
    side = number(max(rounded(high * spatial_scale) - start + 1, 1)) / number(bins)
    ends = [(math.floor(number(b) * side), math.ceil(number(b + 1) * side)) for b in range(bins)]
    return [range(max(start + begin, 0), min(start + end, pixels)) for begin, end in ends]


def roi_pool(input, rois, output_size, spatial_scale, number=np.float64):
    """(output [K, C, *output_size] in float64, differentiable, argmax int64 of the same shape).

    `number` is the type in which the side of a bin is rounded, float32 for all features but those of float64.
    """
    maps = input.double()
    num_channels, height, width = maps.shape[1:]
    shape = (len(rois), num_channels) + tuple(output_size)
    argmax = torch.full(shape, -1, dtype=torch.int64)
    outputs = []
    for k, (image, x1, y1, x2, y2) in enumerate(rois.double().cpu().tolist()):
        rows = bins_of(y1, y2, output_size[0], spatial_scale, height, number)
        columns = bins_of(x1, x2, output_size[1], spatial_scale, width, number)
        for c in range(num_channels):
            plane = maps[int(image), c]
            values = plane.detach().cpu().tolist()
            for i, ys in enumerate(rows):
                for j, xs in enumerate(columns):
                    best = None
                    for y in ys:
                        for x in xs:
                            if best is None or values[y][x] > values[best[0]][best[1]]:
                                best = (y, x)
                    if best is None:
                        outputs.append(maps.new_zeros(()))
                    else:
                        outputs.append(plane[best])
                        argmax[k, c, i, j] = best[0] * width + best[1]
    pooled = torch.stack(outputs).reshape(shape) if outputs else maps.new_zeros(shape)
    return pooled, argmax.to(input.device)


def sample_inputs(device="cpu", dtype=torch.float32, requires_grad=False):
    """List of Sample: typical, ties, nothing at all of each kind, layouts, strides, sizes that fit no vector."""
    features, rois = random_map((2, 4, 12, 17)), random_rois(7, 2, (96, 136), sides=(8, 90))
    ties = (features * 2).round().clamp(min=0)
    border = torch.tensor(
        [
            [0.0, -60, -60, -20, -20],  # beyond the map on all sides
            [0, 400, 10, 500, 50],
            [1, -9, -9, 230, 170],  # more than the map
            [1, 50, 50, 50, 50],  # a point
            [1, 90, 90, 60, 70],  # reversed
            [0, 4, 4, 12, 20],  # halves
            [0, -4, -12, 12, 20],
            [0, 130, 90, 200, 200],
            [0, -1e6, -2e6, 1e6, 1e6],
        ]
    )
    cases = [
        ("typical", features, rois, (3, 3), 0.125),
        ("ties", ties, rois, (3, 2), 0.125),
        ("one bin", features, rois, (1, 1), 0.125),
        ("many bins", features, rois[:3], (9, 11), 0.125),
        ("stride 1", features, rois / torch.tensor([1.0, 8, 8, 8, 8]), (2, 4), 1.0),
        ("borders", features, border, (3, 3), 0.125),
        ("no roi", features, rois[:0], (3, 3), 0.125),
        ("no image", features[:0], rois[:0], (3, 3), 0.125),
        ("no channel", features[:, :0], rois, (3, 3), 0.125),
        ("no pixel", features[:, :, :0], rois, (2, 2), 0.125),
        ("one channel", features[:, :1], rois, (3, 3), 0.125),
        ("one pixel", features[:, :, :1, :1], rois, (2, 2), 0.125),
        ("many channels", random_map((1, 40, 5, 6), seed=2), random_rois(4, 1, (40, 48), (8, 40), 3), (2, 2), 0.125),
        ("not contiguous", features.transpose(2, 3)[:, ::2], rois, (3, 3), 0.125),
        ("unsorted images", features, rois.flip(0), (3, 3), 0.125),
    ]
    samples = []
    for name, x, r, output_size, scale in cases:
        for layout in (torch.contiguous_format, torch.channels_last):
            # to() keeps strides, and a leaf is needed for the gradient
            x = x.to(device, dtype).detach()
            if layout == torch.channels_last:
                name, x = name + ", channels_last", x.contiguous(memory_format=layout)
            samples.append(Sample(name, x.requires_grad_(requires_grad), r.to(device), output_size, scale))
    return samples


def exercise(device, dtype, small):
    """Call the operator forward and backward on every sample; returns the number of calls."""
    from fcos_core.layers import roi_pool as op

    samples = sample_inputs(device, dtype, requires_grad=True)
    if small:
        samples = [sample for sample in samples if sample.input.numel() < 20000 and len(sample.rois) < 10]
    # rois that are broken, far away, or of an image that does not exist, which is an error on the CPU
    inf, nan = float("inf"), float("nan")
    broken = torch.tensor([[0, nan, 1, 9, 9], [0, -inf, 1, inf, 9], [1, -3e38, 1, 3e38, 1e30], [0, 1e9, 1e9, 2e9, 2e9]])
    if device.type != "cpu":
        broken = torch.cat([broken, torch.tensor([[2.0, 1, 1, 9, 9], [nan, 1, 1, 9, 9], [-1, 1, 1, 9, 9]])])
    for x in (samples[0].input, samples[1].input):
        samples.append(samples[0]._replace(input=x, rois=broken.to(device)))
    calls = 0
    for deterministic in (False, True) if hasattr(torch, "use_deterministic_algorithms") else (False,):
        if deterministic:
            torch.use_deterministic_algorithms(True)
        try:
            for sample in samples:
                op(*sample[1:]).sum().backward()
                calls += 2
        finally:
            if deterministic:
                torch.use_deterministic_algorithms(False)
    return calls
