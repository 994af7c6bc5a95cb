"""Focal loss beside torchvision's: `python -m benchmarks.bench_sigmoid_focal_loss [--device cuda] [--threads 2]`.

Summed loss, forward and backward, from class ids: torchvision's needs them as one-hot rows, whose making is timed
too, as in its own detectors.  20267 locations are those of an 800 x 1216 image on five levels.
"""

import torch
import torchvision

from benchmarks import compare
from fcos_core.layers import sigmoid_focal_loss
from tests.reference.sigmoid_focal_loss import random_inputs

GAMMA, ALPHA = 2.0, 0.25


def ours(logits, targets):
    (grad,) = torch.autograd.grad(sigmoid_focal_loss(logits, targets, GAMMA, ALPHA), logits)
    return grad


def peer(logits, targets):
    one_hot = torch.nn.functional.one_hot(targets, logits.shape[1] + 1)[:, 1:].to(logits.dtype)
    total = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha=ALPHA, gamma=GAMMA, reduction="sum")
    (grad,) = torch.autograd.grad(total, logits)
    return grad


def cases(device):
    for num_images, num_classes, dtype in (
        (1, 80, torch.float32),
        (16, 80, torch.float32),
        (16, 80, torch.bfloat16),
        (16, 20, torch.float32),
        (16, 3, torch.float32),
    ):
        logits, targets = random_inputs(num_images * 20267, num_classes, positives=0.01)
        logits = logits.to(device, dtype).requires_grad_()
        targets = targets.clamp(min=0).to(device)
        contenders = {"fcos_core": lambda x=logits, t=targets: ours(x, t)}
        if hasattr(torchvision.ops, "sigmoid_focal_loss"):
            contenders["torchvision"] = lambda x=logits, t=targets: peer(x, t)
        yield "{} x 20267 x {} {}".format(num_images, num_classes, str(dtype).split(".")[1]), contenders


if __name__ == "__main__":
    options = compare.arguments(__doc__)
    compare.table("Sigmoid focal loss, sum, forward and backward", cases(options.device), options)
