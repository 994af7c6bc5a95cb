"""Smooth L1 loss with an adjustable corner."""
import torch


def smooth_l1_loss(input, target, beta=1.0 / 9, size_average=True):
    """Huber-like loss: ``d^2 / (2 beta)`` below beta, ``d - beta / 2`` above, with d = |input - target|.

    Args:
        input, target: tensors of the same shape.
        beta: where the parabola meets the line, in units of the input; above 0.
        size_average: return the mean over all elements, otherwise the sum.

    Returns:
        Scalar.

    Reference:
        Girshick, Fast R-CNN, arXiv:1504.08083, equation 3.
    """
    distance = torch.abs(input - target)
    loss = torch.where(distance < beta, 0.5 * distance ** 2 / beta, distance - 0.5 * beta)
    return loss.mean() if size_average else loss.sum()
