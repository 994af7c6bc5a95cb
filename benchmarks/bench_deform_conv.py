"""Deformable convolution beside torchvision's: `python -m benchmarks.bench_deform_conv [--device cuda] [--threads 2]`.

Version 2 with bias, 3 x 3, 256 -> 256 channels, forward and forward with all five gradients, and a plain convolution of
the same size for orientation.  The maps are those of an 800 x 1216 image.  `nhwc`: channels last.  On a GPU float32
products are those of TF32 (`torch.backends.cuda.matmul.allow_tf32`), for all contenders.
"""

import torch
import torchvision
from torch.nn import functional as F

from benchmarks import compare
from fcos_core.layers import modulated_deform_conv
from tests.reference.deform_conv import random_inputs


def with_gradients(function, leaves):
    """Forward and backward of function()."""
    used = [leaf for leaf in leaves if leaf is not None]

    def run():
        output = function()
        return torch.autograd.grad(output, used, torch.ones_like(output))

    return run


def without_gradients(function):
    def run():
        with torch.no_grad():
            return function()

    return run


def contenders_of(leaves, backward):
    x, weight, offset, mask, bias = leaves
    functions = {
        "fcos_core": (lambda: modulated_deform_conv(x, offset, mask, weight, bias, 1, 1), leaves),
        # as in its own layer, which wants one dtype
        "torchvision": (lambda: torchvision.ops.deform_conv2d(x, offset, weight, bias, 1, 1, mask=mask), leaves),
        "plain conv": (lambda: F.conv2d(x, weight, bias, 1, 1), (x, weight, bias)),
    }
    if x.dtype == torch.bfloat16:
        del functions["torchvision"]  # has none
    return {
        name: with_gradients(function, used) if backward else without_gradients(function)
        for name, (function, used) in functions.items()
    }


def cases(device):
    on_gpu = device != "cpu"
    sizes = [(2, 100, 152), (16, 50, 76), (16, 7, 10)] if on_gpu else [(1, 50, 76), (2, 25, 38)]
    dtypes = [torch.float32, torch.float16, torch.bfloat16] if on_gpu else [torch.float32]
    for num_images, height, width in sizes:
        for dtype in dtypes:
            for memory_format in (torch.contiguous_format, torch.channels_last):
                *tensors, _ = random_inputs(num_images, 256, (height, width), 256)
                leaves = [t.to(device, dtype) for t in tensors]
                leaves = [t.contiguous(memory_format=memory_format) if t.dim() == 4 else t for t in leaves]
                leaves = [t.requires_grad_() for t in leaves]
                for backward in (False, True):
                    name = "{} x 256 x {} x {} {}{}{}".format(
                        num_images, height, width, str(dtype).split(".")[1],
                        " nhwc" if memory_format == torch.channels_last else "", ", both" if backward else ", forward",
                    )  # fmt: skip
                    yield name, contenders_of(leaves, backward)


if __name__ == "__main__":
    options = compare.arguments(__doc__)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    compare.table("Deformable convolution, version 2", cases(options.device), options)
