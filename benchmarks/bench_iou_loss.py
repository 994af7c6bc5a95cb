"""IoU losses beside torchvision's: `python -m benchmarks.bench_iou_loss [--device cuda] [--threads 2]`.

Weighted GIoU loss of boxes, summed, forward and backward: torchvision's has no weights, so it is multiplied and summed
with operators of torch, as a detector that uses it does.
"""

import torch
import torchvision

from benchmarks import compare
from fcos_core.layers.iou_loss import giou_loss
from tests.reference.iou_loss import random_inputs


def ours(pred, target, weight):
    return torch.autograd.grad(giou_loss(pred, target, weight, "sum"), pred)[0]


def peer(pred, target, weight):
    losses = torchvision.ops.generalized_box_iou_loss(pred, target)
    return torch.autograd.grad((losses * weight).sum(), pred)[0]


def cases(device):
    for num_boxes in (300, 3000, 20000, 16 * 20267):
        pred, target, weight = (t.to(device) for t in random_inputs(num_boxes, "box_giou"))
        pred.requires_grad_()
        contenders = {"fcos_core": lambda p=pred, t=target, w=weight: ours(p, t, w)}
        if hasattr(torchvision.ops, "generalized_box_iou_loss"):
            contenders["torchvision"] = lambda p=pred, t=target, w=weight: peer(p, t, w)
        yield "{} boxes".format(num_boxes), contenders


if __name__ == "__main__":
    options = compare.arguments(__doc__)
    compare.table("GIoU loss with weights, sum, forward and backward", cases(options.device), options)
