"""Distances as distributions over 0, 1, ... n strides (arXiv:2006.04388, section 3, "distribution focal loss").

The four sides left, top, right, bottom come one after the other, n + 1 logits each.
"""
import torch
import torch.nn.functional as F


def expected_distances(logits):
    """Mean of each distribution: [..., 4 * (n + 1)] logits -> [..., 4], in strides, in [0, n]."""
    probabilities = _sides(logits).softmax(dim=-1)
    return probabilities.matmul(torch.arange(probabilities.shape[-1], dtype=logits.dtype, device=logits.device))


def distribution_focal_loss(logits, distances):
    """Cross entropy of the two whole numbers around each distance, weighed by how near they are.

    For a distance y between i and i + 1: ``-((i + 1 - y) log(S_i) + (y - i) log(S_(i + 1)))``, S the softmax.

    Args:
        logits: [..., 4 * (n + 1)].
        distances: [..., 4], in strides; what lies outside [0, n] counts as the nearest bound.

    Returns:
        [...] mean over the four sides.
    """
    log_probabilities = F.log_softmax(_sides(logits), dim=-1)
    last = log_probabilities.shape[-1] - 1
    distances = distances.clamp(0, last)
    below = distances.floor().clamp(max=last - 1)
    above_weight = distances - below
    below = below.long()[..., None]
    loss = -(
        log_probabilities.gather(-1, below).squeeze(-1) * (1 - above_weight)
        + log_probabilities.gather(-1, below + 1).squeeze(-1) * above_weight
    )
    return loss.mean(dim=-1)


def _sides(logits):
    return logits.reshape(logits.shape[:-1] + (4, logits.shape[-1] // 4))
