"""Deformable convolution, slow and obvious, in float64; and the inputs that tests and benchmarks share."""

from typing import NamedTuple, Optional

import torch


class Sample(NamedTuple):
    """input [N, C, H, W], weight [O, C / groups, kh, kw], offset [N, D * K * 2, Ho, Wo] and the numbers of a call.

    mask [N, D * K, Ho, Wo] and bias [O] may be None.
    """

    name: str
    input: torch.Tensor
    weight: torch.Tensor
    offset: torch.Tensor
    mask: Optional[torch.Tensor]
    bias: Optional[torch.Tensor]
    numbers: tuple  # stride, padding, dilation, groups, deformable groups; the first three are pairs

    def tensors(self):
        """Those that there are, in the order of the operator."""
        return [t for t in self[1:6] if t is not None]


def out_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def hat(points, size):
    """Weights [..., size] of the cells of a line at points [...]: 1 at a cell, 0 at its neighbours and beyond."""
    cells = torch.arange(size, dtype=torch.float64, device=points.device)
    return (1 - (points.unsqueeze(-1) - cells).abs()).clamp(min=0)


def deform_conv(input, weight, offset, mask, bias, stride, padding, dilation, groups, deformable_groups):
    """Output [N, O, Ho, Wo] in float64, differentiable; every cell of the map is weighed for every sample."""
    input, weight, offset = input.double(), weight.double(), offset.double()
    num_images, channels, height, width = input.shape
    kernel = weight.shape[2:]
    num_taps = kernel[0] * kernel[1]
    out = [out_size(input.shape[2 + i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2)]
    offset = offset.reshape(num_images, deformable_groups, num_taps, 2, *out)
    columns = []
    for k in range(num_taps):
        i, j = divmod(k, kernel[1])
        y = torch.arange(out[0], dtype=torch.float64, device=input.device) * stride[0] - padding[0] + i * dilation[0]
        x = torch.arange(out[1], dtype=torch.float64, device=input.device) * stride[1] - padding[1] + j * dilation[1]
        rows = hat((offset[:, :, k, 0] + y[:, None]).flatten(2), height)  # [N, D, P, H] with P = Ho * Wo
        cols = hat((offset[:, :, k, 1] + x[None, :]).flatten(2), width)  # [N, D, P, W]
        size = channels // deformable_groups
        by_group = input.reshape(num_images, deformable_groups, size, height, width).permute(0, 1, 3, 4, 2)
        blended = torch.matmul(rows, by_group.reshape(num_images, deformable_groups, height, width * size))
        blended = blended.reshape(num_images, deformable_groups, out[0] * out[1], width, size)
        sample = (blended * cols.unsqueeze(-1)).sum(3)  # [N, D, P, C / D]
        if mask is not None:
            of_tap = mask.double().reshape(num_images, deformable_groups, num_taps, out[0] * out[1])[:, :, k]
            sample = sample * of_tap.unsqueeze(-1)
        columns.append(sample.transpose(2, 3).reshape(num_images, groups, channels // groups, out[0] * out[1]))
    columns = torch.stack(columns, 3)  # [N, G, C / G, K, P]
    columns = columns.reshape(num_images, groups, channels // groups * num_taps, out[0] * out[1])
    by_group = weight.reshape(groups, weight.shape[0] // groups, channels // groups * num_taps)
    output = torch.matmul(by_group, columns).reshape(num_images, weight.shape[0], *out)
    return output if bias is None else output + bias.double()[:, None, None]


def random_inputs(num_images, channels, size, out_channels, kernel=(3, 3), numbers=None, modulated=True, reach=1.5,
                  seed=0):  # fmt: skip
    """Float64 tensors for one call, offsets ~ reach * N(0, 1); returns input, weight, offset, mask, bias, numbers.

    Offsets stay 0.2 away from whole numbers, where the slope jumps; so they do when rounded to a half dtype.
    """
    numbers = numbers or ((1, 1), (1, 1), (1, 1), 1, 1)
    stride, padding, dilation, groups, deformable_groups = numbers
    out = [out_size(size[i], kernel[i], stride[i], padding[i], dilation[i]) for i in range(2)]
    num_taps = kernel[0] * kernel[1]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    fan_in = max(1, channels // groups * num_taps)
    input = draw(num_images, channels, *size)
    weight = draw(out_channels, channels // groups, *kernel) * fan_in**-0.5
    offset = (reach * draw(num_images, deformable_groups * num_taps * 2, *out)).floor() + 0.5
    offset = offset + 0.3 * draw(*offset.shape).clamp(-1, 1)
    mask = torch.sigmoid(draw(num_images, deformable_groups * num_taps, *out)) if modulated else None
    return input, weight, offset, mask, draw(out_channels) if modulated else None, numbers


def sample_inputs(device="cpu", dtype=torch.float32, requires_grad=False, sampling_dtype=None):
    """List of Sample; offset and mask have sampling_dtype, by default that of the features.

    Typical maps of both versions, every number, all combinations of groups that matter, odd channel counts, far
    offsets, layouts, several parts of the work, and empty tensors.
    """
    plain = ((1, 1), (1, 1), (1, 1), 1, 1)
    cases = {
        "version 2": random_inputs(2, 16, (9, 11), 8),
        "version 1": random_inputs(2, 16, (9, 11), 8, modulated=False),
        "mask without bias": random_inputs(1, 8, (5, 6), 4, seed=1)[:4] + (None, plain),
        "bias without mask": random_inputs(1, 8, (5, 6), 4, seed=2)[:3] + (None, torch.ones(4).double(), plain),
        "stride 2": random_inputs(2, 8, (9, 12), 4, numbers=((2, 2), (1, 1), (1, 1), 1, 1)),
        "uneven numbers": random_inputs(2, 8, (9, 8), 4, (3, 2), ((2, 1), (0, 2), (1, 3), 1, 1)),
        "dilation 2": random_inputs(1, 8, (8, 9), 4, numbers=((1, 1), (2, 2), (2, 2), 1, 1)),
        "1 x 1 kernel": random_inputs(2, 8, (6, 7), 4, (1, 1), ((1, 1), (0, 0), (1, 1), 1, 1)),
        "5 x 5 kernel": random_inputs(1, 4, (8, 8), 3, (5, 5), ((1, 1), (2, 2), (1, 1), 1, 1)),
        "groups": random_inputs(2, 16, (7, 6), 8, numbers=((1, 1), (1, 1), (1, 1), 4, 1)),
        "deformable groups": random_inputs(2, 16, (7, 6), 8, numbers=((1, 1), (1, 1), (1, 1), 1, 4)),
        "groups cut deformable ones": random_inputs(2, 24, (7, 6), 8, numbers=((1, 1), (1, 1), (1, 1), 4, 3)),
        "both by channel": random_inputs(1, 6, (6, 7), 6, numbers=((2, 2), (1, 1), (1, 1), 6, 6)),
        "odd channels": random_inputs(2, 35, (6, 5), 9, numbers=((1, 1), (1, 1), (1, 1), 1, 5)),
        "one channel": random_inputs(2, 1, (6, 5), 1),
        "many channels": random_inputs(1, 288, (5, 4), 3),
        "far offsets": random_inputs(2, 8, (9, 7), 4, reach=8.0),
        "small map": random_inputs(3, 8, (1, 1), 4, reach=0.7),
        "several blocks": random_inputs(2, 8, (36, 39), 4, reach=3.0),
        "no image": random_inputs(0, 8, (6, 5), 4),
        "no input channel": random_inputs(2, 0, (6, 5), 4),
        "no output channel": random_inputs(2, 8, (6, 5), 0),
        "no input row": random_inputs(2, 8, (0, 5), 4, numbers=((1, 1), (2, 2), (1, 1), 1, 1)),
    }
    samples = []
    for name, (input, weight, offset, mask, bias, numbers) in cases.items():
        leaves = [
            t if t is None else t.to(device, sampling_dtype or dtype if is_sampling else dtype)
            for t, is_sampling in ((input, 0), (weight, 0), (offset, 1), (mask, 1), (bias, 0))
        ]
        samples.append((name, leaves, numbers))
    _, (input, weight, offset, mask, bias), numbers = samples[0]
    last = torch.channels_last
    samples.append(("channels last", [t.contiguous(memory_format=last) for t in (input, weight, offset, mask)] + [bias],
                    numbers))  # fmt: skip
    both = torch.cat([offset, mask], 1)  # as one convolution predicts them
    strided = [input.transpose(2, 3).contiguous().transpose(2, 3), torch.stack([weight, weight], 4)[..., 0],
               both[:, : offset.shape[1]], both[:, offset.shape[1] :], torch.stack([bias, bias], 1)[:, 0]]  # fmt: skip
    assert not any(t.is_contiguous() for t in strided)
    samples.append(("not contiguous", strided, numbers))
    return [
        Sample(name, *[t if t is None else t.detach().requires_grad_(requires_grad) for t in leaves], numbers)
        for name, leaves, numbers in samples
    ]


def exercise(device, dtype, small, simple_products=False):
    """Call the operator forward and backward on every sample; returns the number of calls.

    With simple_products, half precision only where no side of a matrix is a multiple of 16 bytes (see
    tests/layers/exercise.py); the kernels' code is that of float32.
    """
    from fcos_core.layers import modulated_deform_conv as op

    calls = 0
    simple_products = simple_products and dtype in (torch.float16, torch.bfloat16)
    for sampling_dtype in (dtype, torch.float32):
        for sample in sample_inputs(device, dtype, requires_grad=True, sampling_dtype=sampling_dtype):
            if small and sample.input.numel() > 5000:
                continue
            if simple_products and sample.name not in ("odd channels", "one channel"):
                continue
            output = op(sample.input, sample.offset, sample.mask, sample.weight, sample.bias, *sample.numbers)
            output.sum().backward()
            calls += 2
    # points that are broken or far away
    for value in (float("nan"), float("inf"), -1e30, 1e30, -1.0):
        *tensors, numbers = random_inputs(1, 7, (5, 6), 3)
        input, weight, offset, mask, bias = (t.to(device, dtype) for t in tensors)
        offset[:, ::5] = value
        input.requires_grad_()
        op(input, offset, mask, weight, bias, *numbers).sum().backward()
        calls += 2
    return calls
