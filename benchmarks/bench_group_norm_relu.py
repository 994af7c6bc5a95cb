"""GroupNorm with ReLU beside torch's: `python -m benchmarks.bench_group_norm_relu [--device cuda] [--threads 2]`.

256 channels in 32 groups, maps of the levels of an 800 x 1216 image, forward and backward.  The operator is made for
channels_last on a GPU; for all else it is composed of torch's, and `GroupNormReLU` calls these instead.
"""

import torch
import torch.nn.functional as F

from benchmarks import compare
from fcos_core.layers import group_norm_relu
from tests.reference.group_norm_relu import random_inputs


def ours(input, weight, bias, grad):
    return torch.autograd.grad(group_norm_relu(input, 32, weight, bias), (input, weight, bias), grad)[0]


def peer(input, weight, bias, grad):
    output = F.relu(F.group_norm(input, 32, weight, bias))
    return torch.autograd.grad(output, (input, weight, bias), grad)[0]


def cases(device):
    on_gpu = device != "cpu"
    sizes = [(16, 100, 152), (16, 50, 76), (16, 13, 19), (1, 100, 152)] if on_gpu else [(1, 50, 76), (2, 13, 19)]
    for images, height, width in sizes:
        for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
            for layout in (torch.contiguous_format, torch.channels_last):
                input, weight, bias = (t.to(device) for t in random_inputs((images, 256, height, width)))
                input = input.to(dtype).contiguous(memory_format=layout)
                grad = torch.rand_like(input)
                # torch's wants parameters of the dtype of the input
                theirs = [t.to(dtype).requires_grad_() for t in (weight, bias)]
                leaves = [t.requires_grad_() for t in (input, weight, bias)]
                name = "{} x 256 x {} x {} {}{}".format(
                    images, height, width, str(dtype).split(".")[1], " nhwc" if layout == torch.channels_last else ""
                )
                yield (
                    name,
                    {
                        "fcos_core": lambda t=leaves, g=grad: ours(*t, g),
                        "torch": lambda t=(leaves[0], *theirs), g=grad: peer(*t, g),
                    },
                )


if __name__ == "__main__":
    options = compare.arguments(__doc__)
    compare.table("GroupNorm with ReLU, forward and backward", cases(options.device), options)
