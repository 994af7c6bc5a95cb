"""Group normalisation with ReLU, slow and obvious, in float64; and the inputs that tests and benchmarks share."""

from typing import NamedTuple

import torch


class Sample(NamedTuple):
    """input [N, C, H, W], weight [C], bias [C], number of groups."""

    name: str
    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    num_groups: int


def group_norm_relu(input, weight, bias, num_groups, eps=1e-5):
    """[N, C, H, W] in float64, differentiable."""
    images = []
    for image in input.double():
        channels = []
        for group in image.split(len(image) // num_groups):
            centred = group - group.mean()
            channels.append(centred / ((centred**2).mean() + eps).sqrt())
        images.append(torch.cat(channels))
    normal = torch.stack(images) if images else input.double()
    return (normal * weight.double()[:, None, None] + bias.double()[:, None, None]).clamp(min=0)


def random_inputs(shape, seed=0, offset=0.0):
    """Float32 input of some spread around `offset`, weight and bias."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=generator)

    channels = shape[1]
    spread = 1 + draw(1, channels, 1, 1).abs()
    return draw(*shape) * spread + draw(1, channels, 1, 1) + offset, 1 + 0.3 * draw(channels), 0.3 * draw(channels)


def sample_inputs(device="cpu", dtype=torch.float32, requires_grad=False):
    """List of Sample: typical, groups of every width, odd channels, one pixel, many pixels, both layouts, nothing."""
    cases = [
        ("typical", (2, 64, 9, 13), 32, 0.0),
        ("wide groups", (3, 48, 5, 4), 2, 0.0),
        ("one group", (1, 16, 7, 7), 1, 0.0),
        ("a group a channel", (2, 8, 6, 6), 8, 0.0),
        ("odd channels", (2, 9, 5, 5), 3, 0.0),
        ("one pixel", (2, 64, 1, 1), 4, 0.0),
        ("many pixels", (1, 16, 61, 83), 4, 0.0),
        ("far from 0", (2, 32, 11, 10), 4, 30.0),
        ("many channels", (1, 4112, 2, 3), 2, 0.0),
        ("no image", (0, 8, 3, 3), 2, 0.0),
        ("no pixel", (2, 8, 0, 3), 2, 0.0),
    ]
    samples = []
    for name, shape, num_groups, offset in cases:
        input, weight, bias = random_inputs(shape, offset=offset)
        for layout in (torch.contiguous_format, torch.channels_last):
            x = input.to(device, dtype).contiguous(memory_format=layout).detach().requires_grad_(requires_grad)
            parameters = [t.to(device).requires_grad_(requires_grad) for t in (weight.clone(), bias.clone())]
            samples.append(Sample("{}, {}".format(name, layout), x, *parameters, num_groups))
    return samples


def exercise(device, dtype, small):
    """Call the operator forward and backward on every sample; returns the number of calls."""
    from fcos_core.layers import group_norm_relu as op

    calls = 0
    for _, input, weight, bias, num_groups in sample_inputs(device, dtype, requires_grad=True):
        op(input, num_groups, weight, bias).sum().backward()
        calls += 2
    return calls
