"""RoIAlign beside torchvision's: `python -m benchmarks.bench_roi_align [--device cuda] [--threads 2]`.

Rois of a detector on one level of a feature pyramid of 800 x 1216 images: boxes of 7 x 7 bins, masks of 14 x 14.
"""

import torch
import torchvision

from benchmarks import compare
from fcos_core.layers import roi_align
from tests.reference.roi_align import random_map, random_rois


def backward(function, features, grad):
    return torch.autograd.grad(function(features), features, grad)


def cases(device):
    wide = device != "cpu"
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    for num_rois, stride, sides, bins, ratio, layout, dtype in (
        (1000, 8, (50, 220), 7, 2, "contiguous", torch.float32),
        (1000, 8, (50, 220), 7, 2, "channels_last", torch.float32),
        (1000, 8, (50, 220), 7, 0, "contiguous", torch.float32),
        (1000, 4, (8, 112), 7, 2, "contiguous", torch.float32),
        (1000, 4, (8, 112), 7, 2, "channels_last", torch.float32),
        (200, 4, (8, 112), 14, 2, "contiguous", torch.float32),
        (8192, 8, (50, 220), 7, 2, "contiguous", torch.float32),
        (8192, 8, (50, 220), 7, 2, "channels_last", torch.float32),
        (8192, 8, (50, 220), 7, 2, "channels_last", torch.float16),
    ):
        if num_rois > 1000 and not wide:
            continue
        features = random_map((2, 256, 800 // stride, 1216 // stride)).to(device, dtype)
        features = features.contiguous(memory_format=layouts[layout])
        rois = random_rois(num_rois, 2, (800, 1216), sides).to(device)
        same_dtype = rois.to(dtype)  # torchvision's takes no other
        contenders = {
            "fcos_core": lambda x, r=rois, b=bins, s=stride, n=ratio: roi_align(x, r, b, 1 / s, n),
            "torchvision": lambda x, r=same_dtype, b=bins, s=stride, n=ratio: torchvision.ops.roi_align(
                x, r, b, 1 / s, n
            ),
        }
        name = "{} rois of {} bins, stride {}, ratio {}, {} {}".format(
            num_rois, bins, stride, ratio, layout, str(dtype).split(".")[1]
        )
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
    compare.table("RoIAlign, 256 channels", cases(options.device), options)
