"""RoI max pooling beside torchvision's: `python -m benchmarks.bench_roi_pool [--device cuda] [--threads 2]`.

Rois of a detector on the last map, stride 16, of 800 x 1216 images, as in Fast R-CNN, and on a finer one.
"""

import torch
import torchvision

from benchmarks import compare
from fcos_core.layers import roi_pool
from tests.reference.roi_align import random_map, random_rois


def backward(function, features, grad):
    return torch.autograd.grad(function(features), features, grad)


def cases(device):
    for num_rois, channels, stride, sides, layout, dtype in (
        (500, 256, 8, (50, 220), torch.contiguous_format, torch.float32),
        (500, 256, 8, (50, 220), torch.channels_last, torch.float32),
        (500, 512, 16, (50, 600), torch.contiguous_format, torch.float32),
        (500, 512, 16, (50, 600), torch.channels_last, torch.float32),
        (500, 512, 16, (50, 600), torch.channels_last, torch.float16),
    ):
        if dtype == torch.float16 and device == "cpu":
            continue  # torchvision has no such kernel
        features = random_map((2, channels, 800 // stride, 1216 // stride)).to(device, dtype)
        features = features.contiguous(memory_format=layout)
        rois = random_rois(num_rois, 2, (800, 1216), sides).to(device)
        same_dtype = rois.to(dtype)  # torchvision's takes no other
        contenders = {
            "fcos_core": lambda x, r=rois, s=stride: roi_pool(x, r, 7, 1 / s),
            "torchvision": lambda x, r=same_dtype, s=stride: torchvision.ops.roi_pool(x, r, 7, 1 / s),
        }
        name = "{} rois, {} channels, stride {}, {}, {}".format(num_rois, channels, stride, layout, dtype)
        name = name.replace("torch.", "")
        yield (
            name + ", forward",
            {who: lambda f=function, x=features: f(x) for who, function in contenders.items()},
        )
        # the gradient as a head that keeps the layout hands it back
        grad = torch.rand_like(contenders["fcos_core"](features))
        leaf = features.requires_grad_()
        yield (
            name + ", both ways",
            {who: lambda f=function, x=leaf, g=grad: backward(f, x, g) for who, function in contenders.items()},
        )


if __name__ == "__main__":
    options = compare.arguments(__doc__)
    compare.table("RoI max pooling, 7 x 7 bins", cases(options.device), options)
