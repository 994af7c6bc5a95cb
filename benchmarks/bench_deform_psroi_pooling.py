"""Deformable RoI pooling beside RoI align: `python -m benchmarks.bench_deform_psroi_pooling [--device cuda]`.

torchvision has no such op. Its RoI align and position-sensitive RoI align, on a regular grid, take as many samples per
bin from the same input, so they show what a pooling costs; ours is timed with and without offsets. Forward and
backward; 64 cells of stride 16 are an image of 1024 pixels.
"""

import torch
import torchvision

from benchmarks import compare
from fcos_core.layers import deform_psroi_pooling
from tests.reference.deform_psroi_pooling import random_inputs

SCALE, POOLED, SAMPLES = 1 / 16, 7, 4


def ours(input, rois, trans, output_dim, group_size, backward):
    output = deform_psroi_pooling(
        input, rois, trans, SCALE, output_dim, group_size, POOLED, POOLED, SAMPLES, trans_std=0.1
    )
    if not backward:
        return output
    leaves = [input] if trans is None else [input, trans]
    return torch.autograd.grad(output, leaves, torch.ones_like(output))


def peer(input, rois, group_size, backward):
    if group_size == 1:
        function, keywords = torchvision.ops.roi_align, {"aligned": True}
    else:
        function, keywords = torchvision.ops.ps_roi_align, {}
    output = function(input, rois, (POOLED, POOLED), spatial_scale=SCALE, sampling_ratio=SAMPLES, **keywords)
    if not backward:
        return output
    return torch.autograd.grad(output, input, torch.ones_like(output))


def cases(device):
    num_rois = 128 if device == "cpu" else 1024
    for output_dim, group_size, dtype, memory_format, backward in (
        (256, 1, torch.float32, torch.contiguous_format, False),
        (256, 1, torch.float32, torch.channels_last, False),
        (256, 1, torch.bfloat16, torch.channels_last, False),
        (21, 7, torch.float32, torch.contiguous_format, False),
        (256, 1, torch.float32, torch.contiguous_format, True),
        (256, 1, torch.float32, torch.channels_last, True),
        (256, 1, torch.bfloat16, torch.channels_last, True),
        (21, 7, torch.float32, torch.contiguous_format, True),
    ):
        input, rois, trans = random_inputs(
            2, output_dim, group_size, (64, 64), num_rois, part_size=POOLED, spatial_scale=SCALE
        )
        input = input.to(device, dtype).contiguous(memory_format=memory_format).requires_grad_()
        rois, trans = rois.to(device), trans.to(device).requires_grad_()

        def contender(trans, x=input, rois=rois, d=output_dim, g=group_size, b=backward):
            return lambda: ours(x, rois, trans, d, g, b)

        contenders = {"offsets": contender(trans), "regular grid": contender(None)}
        if dtype == torch.float32:
            contenders["torchvision"] = lambda x=input, r=rois, g=group_size, b=backward: peer(x, r, g, b)
        name = "{} rois, {} channels in {} groups, {}, {}, {}".format(
            num_rois,
            output_dim,
            group_size * group_size,
            str(dtype).split(".")[1],
            "NHWC" if memory_format == torch.channels_last else "NCHW",
            "forward and backward" if backward else "forward",
        )
        yield name, contenders


if __name__ == "__main__":
    options = compare.arguments(__doc__)
    compare.table(
        "Deformable RoI pooling, {0} x {0} bins, {1} samples".format(POOLED, SAMPLES**2), cases(options.device), options
    )
