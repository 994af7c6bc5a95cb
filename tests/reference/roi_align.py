"""RoIAlign, slow and obvious, in float64; and the inputs that tests and benchmarks share."""

import math
from typing import NamedTuple

import numpy as np
import torch


class Sample(NamedTuple):
    """input [N, C, H, W], rois [K, 5] and how to pool them."""

    name: str
    input: torch.Tensor
    rois: torch.Tensor
    output_size: tuple
    spatial_scale: float
    sampling_ratio: int


def positions(low, high, bins, spatial_scale, sampling_ratio, aligned):
    """Coordinates of the samples along one axis: (all of them in order, how many are in a bin)."""
    start = low * spatial_scale - (0.5 if aligned else 0.0)
    size = (high - low) * spatial_scale
    if not aligned:
        size = max(size, 1.0)
    samples = sampling_ratio if sampling_ratio > 0 else max(math.ceil(size / bins), 0)
    return [start + (b + (i + 0.5) / samples) * size / bins for b in range(bins) for i in range(samples)], samples


def interpolation(points, pixels):
    """Matrix [len(points), pixels]: the weights of linear interpolation between the centres of pixels."""
    points = torch.tensor(points, dtype=torch.float64).reshape(-1, 1)
    inside = ((points >= -1) & (points <= pixels)).double()
    clamped = points.clamp(min=0).clamp(max=max(pixels - 1, 0))
    return inside * (1 - (clamped - torch.arange(pixels, dtype=torch.float64)).abs()).clamp(min=0)


def roi_align(input, rois, output_size, spatial_scale, sampling_ratio, aligned=False):
    """[K, C, *output_size] in float64, differentiable: mean over the samples of each bin."""
    maps = input.double()
    num_channels, height, width = maps.shape[1:]
    if 0 in maps.shape or 0 in rois.shape:  # old versions of torch multiply no matrices without elements
        return maps.new_zeros((len(rois), num_channels) + tuple(output_size)) + maps.sum()
    outputs = []
    for image, x1, y1, x2, y2 in rois.double().cpu().tolist():
        ys, per_row = positions(y1, y2, output_size[0], spatial_scale, sampling_ratio, aligned)
        xs, per_column = positions(x1, x2, output_size[1], spatial_scale, sampling_ratio, aligned)
        weights_y = interpolation(ys, height).to(maps.device)
        weights_x = interpolation(xs, width).to(maps.device)
        values = weights_y @ maps[int(image)] @ weights_x.t()  # [C, points, points]
        values = values.reshape(num_channels, output_size[0], per_row, output_size[1], per_column)
        outputs.append(values.sum((2, 4))[None] / max(per_row * per_column, 1))
    return torch.cat(outputs)


def random_rois(num_rois, num_images, image_size, sides=(8.0, 300.0), seed=0):
    """Rois [K, 5] float32, sorted by image: sides log-uniform in pixels, some reaching beyond the image."""
    rng = np.random.RandomState(seed)
    height, width = image_size
    side = np.exp(rng.uniform(np.log(sides[0]), np.log(sides[1]), (num_rois, 2)))
    centre = rng.uniform(0, 1, (num_rois, 2)) * [width, height]
    images = np.sort(rng.randint(0, num_images, num_rois))
    rois = np.concatenate([images[:, None], centre - side / 2, centre + side / 2], 1)
    return torch.from_numpy(rois).float()


def random_map(shape, seed=0):
    """Features float32 of a normal distribution."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def sample_inputs(device="cpu", dtype=torch.float32, requires_grad=False):
    """List of Sample: typical, nothing at all of each kind, layouts, strides, sizes that fit no vector."""
    features, rois = random_map((2, 6, 20, 27)), random_rois(9, 2, (160, 216))
    border = torch.tensor(
        [
            [0.0, -60, -60, -20, -20],  # beyond the map on all sides
            [0, 400, 10, 500, 50],
            [1, -9, -9, 230, 170],  # more than the map
            [1, 50, 50, 50, 50],  # a point
            [1, 90, 90, 60, 70],  # reversed
            [0, 0, 0, 216, 160],
            [0, 208.1, 152.2, 216.3, 160.4],  # its last pixel
            [0, -1e6, -2e6, 1e6, 1e6],
        ]
    )
    # few samples over many pixels; and a map that takes more than the shared memory of a GPU for adaptive sampling
    wide, wider = random_map((1, 2, 5, 300), seed=1), random_map((1, 4, 3, 6000), seed=1)
    spread = torch.tensor([[0.0, 3, 1, 290, 4], [0, 200, -3, 310, 2]])
    far = torch.tensor([[0.0, 3000, 0, 3300.3, 2.9], [0, 5900.7, 1, 6000.2, 3], [0, 5, 5, 1, 1]])
    cases = [
        ("typical", features, rois, (7, 7), 0.125, 2),
        ("adaptive", features, rois, (3, 5), 0.125, 0),
        ("adaptive, torchvision's number", features, rois, (2, 2), 0.125, -1),
        ("many samples", features, rois[:4], (2, 3), 0.125, 9),
        ("one bin", features, rois, (1, 1), 0.125, 2),
        ("many bins", features, rois[:3], (40, 33), 0.125, 1),
        ("stride 1", features, rois / torch.tensor([1.0, 8, 8, 8, 8]), (4, 4), 1.0, 3),
        ("borders", features, border, (3, 3), 0.125, 2),
        ("borders, adaptive", features, border[:7], (3, 3), 0.125, 0),
        ("wide map", wide, spread, (3, 4), 1.0, 2),
        ("wider map, adaptive", wider, far, (2, 3), 1.0, 0),
        ("no roi", features, rois[:0], (7, 7), 0.125, 2),
        ("no image", features[:0], rois[:0], (7, 7), 0.125, 2),
        ("no channel", features[:, :0], rois, (7, 7), 0.125, 2),
        ("no pixel", features[:, :, :0], rois, (2, 2), 0.125, 2),
        ("one channel", features[:, :1], rois, (7, 7), 0.125, 2),
        ("one pixel", features[:, :, :1, :1], rois, (2, 2), 0.125, 2),
        ("many channels", random_map((1, 72, 9, 8), seed=2), random_rois(5, 1, (70, 70), seed=3), (3, 3), 0.125, 2),
        ("not contiguous", features.transpose(2, 3)[:, ::2], rois, (3, 3), 0.125, 2),
        ("unsorted images", features, rois.flip(0)[::2], (3, 3), 0.125, 2),
    ]
    samples = []
    for name, x, r, output_size, scale, ratio in cases:
        for layout in (torch.contiguous_format, torch.channels_last):
            # to() keeps strides, and a leaf is needed for the gradient
            x = x.to(device, dtype).detach()
            if layout == torch.channels_last:
                name, x = name + ", channels_last", x.contiguous(memory_format=layout)
            samples.append(Sample(name, x.requires_grad_(requires_grad), r.to(device), output_size, scale, ratio))
    return samples


def exercise(device, dtype, small):
    """Call the operator forward and backward on every sample; returns the number of calls."""
    from fcos_core.layers import roi_align as op

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
    samples.append(samples[-1]._replace(sampling_ratio=0))
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
