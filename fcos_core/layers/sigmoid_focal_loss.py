"""Sigmoid focal loss; the kernels and their contract are in csrc/sigmoid_focal_loss.

Letters: R locations, C classes.
"""

import torch
from torch import nn

from fcos_core.layers._library import load

__all__ = ["sigmoid_focal_loss", "SigmoidFocalLoss", "sigmoid_focal_loss_cpu", "sigmoid_focal_loss_cuda"]

# the numbers of torch's own reductions; 1 (mean) is left out on purpose, see `sigmoid_focal_loss`
_REDUCTIONS = {"none": 0, "sum": 2}


def sigmoid_focal_loss(logits, targets, gamma, alpha, reduction="sum"):
    """Binary cross entropy of each class in which easy examples weigh little.

    With p = sigmoid(logit) and class c counted from 1::

        target == c      -alpha       (1 - p)^gamma  log(p)
        target == 0 or another class
                         -(1 - alpha)  p^gamma       log(1 - p)
        target == -1     0 (ignored)

    Finite, with a finite gradient, for every finite logit.

    Args:
        logits: [R, C], any floating dtype; half precision is computed in float32.
        targets: [R], an integer dtype, each in -1..C.
        gamma (float): focusing exponent, at least 0.
        alpha (float): weight of the positives, in [0, 1].
        reduction (str): "sum" or "none".  There is no "mean": detectors divide by the number of positive locations.

    Returns:
        "sum": scalar, float64 for float64 logits, else float32.  "none": [R, C], dtype of logits (float32 under
        autocast).

    Raises:
        ValueError: unknown reduction.
        RuntimeError: shapes, dtypes, devices or numbers do not fit.

    Note:
        Gradient to logits, once differentiable.  The result does not depend on the number of threads, and a GPU gives
        the same bits each time.
        A target outside -1..C is an error on the CPU and makes the result NaN on a GPU, which is not synchronised.

    Reference:
        Lin et al., Focal Loss for Dense Object Detection, arXiv:1708.02002, equation 5.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(
            "sigmoid_focal_loss: expected reduction to be one of {}, got {!r}; divide the sum yourself for a "
            "mean".format(sorted(_REDUCTIONS), reduction)
        )
    load()
    return torch.ops.fcos_core.sigmoid_focal_loss(logits, targets, float(gamma), float(alpha), _REDUCTIONS[reduction])


def sigmoid_focal_loss_cpu(logits, targets, gamma, alpha):
    """Old name of the unreduced loss [R, C]; any device."""
    return sigmoid_focal_loss(logits, targets, gamma, alpha, reduction="none")


sigmoid_focal_loss_cuda = sigmoid_focal_loss_cpu


class _SigmoidFocalLoss:
    """Old name of the differentiable function: ``_SigmoidFocalLoss.apply``."""

    apply = staticmethod(sigmoid_focal_loss_cpu)


class SigmoidFocalLoss(nn.Module):
    """`sigmoid_focal_loss`, summed over all locations and classes.

    Args:
        gamma (float): focusing exponent.
        alpha (float): weight of the positives.
    """

    def __init__(self, gamma, alpha):
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha

    def forward(self, logits, targets):
        """Return the scalar loss of logits [R, C] against targets [R]."""
        return sigmoid_focal_loss(logits, targets, self.gamma, self.alpha, reduction="sum")

    def extra_repr(self):
        return "gamma={}, alpha={}".format(self.gamma, self.alpha)
