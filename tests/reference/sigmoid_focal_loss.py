"""Sigmoid focal loss, slow and obvious, in float64; and the inputs that tests and benchmarks share."""

from typing import NamedTuple

import torch


class Sample(NamedTuple):
    """logits [R, C], targets [R] in -1..C."""

    name: str
    logits: torch.Tensor
    targets: torch.Tensor


def sigmoid_focal_loss(logits, targets, gamma, alpha):
    """Losses [R, C] in float64, differentiable; from log p = -log(1 + e^-x) and log(1 - p) = -log(1 + e^x)."""
    x = logits.double()
    # torch.logaddexp would say it in a word, but loses digits in torch 1.7
    tail = torch.log1p(torch.exp(-x.abs()))
    log_p = x.clamp(max=0) - tail
    log_not_p = (-x).clamp(max=0) - tail
    rows = []
    for r, target in enumerate(targets.tolist()):
        row = -(1 - alpha) * torch.exp(gamma * log_p[r]) * log_not_p[r]
        if target > 0:
            right = -alpha * torch.exp(gamma * log_not_p[r]) * log_p[r]
            row = torch.stack([right[c] if c + 1 == target else row[c] for c in range(len(row))])
        rows.append(row * 0 if target < 0 else row)
    return torch.stack(rows) if rows else x * 0


def random_inputs(num_rows, num_classes, positives=0.2, seed=0):
    """Logits [R, C] and targets int64 [R]: background, some positives, a few ignored."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_rows, num_classes, generator=generator)
    chance = torch.rand(num_rows, generator=generator)
    classes = torch.randint(1, num_classes + 1, (num_rows,), generator=generator)
    targets = torch.where(chance < positives, classes, torch.zeros_like(classes))
    return logits, targets.masked_fill(chance > 0.95, -1)


def sample_inputs(device="cpu", dtype=torch.float32, requires_grad=False):
    """List of Sample: typical, none, one, few and many classes, strides, all ignored, more than one chunk."""
    logits, targets = random_inputs(60, 80)
    few = random_inputs(41, 3, seed=1)
    many = random_inputs(700, 7, seed=2)  # 4900 logits, in more than two chunks that end inside a row
    cases = [
        ("typical", logits, targets),
        ("int32 targets", logits, targets.int()),
        ("no row", logits[:0], targets[:0]),
        ("no class", torch.zeros(3, 0), torch.tensor([0, -1, 0])),
        ("one number", torch.tensor([[0.5]]), torch.tensor([1])),
        ("one class", logits[:, :1], targets.clamp(max=1)),
        ("few classes", few[0], few[1]),
        ("more than a chunk", many[0], many[1]),
        ("all ignored", logits, torch.full_like(targets, -1)),
        ("all background", logits, torch.zeros_like(targets)),
        ("not contiguous", logits[:, ::2].t().contiguous().t(), targets.clamp(max=40).repeat_interleave(2)[::2]),
    ]
    samples = []
    for name, x, t in cases:
        # to() keeps strides, and a leaf is needed for the gradient
        x = x.to(device, dtype).detach().requires_grad_(requires_grad)
        samples.append(Sample(name, x, t.to(device)))
    assert not samples[-1].logits.is_contiguous()
    return samples


def exercise(device, dtype, small):
    """Call the operator forward and backward on every sample; returns the number of calls."""
    from fcos_core.layers import sigmoid_focal_loss as op

    calls = 0
    for _, logits, targets in sample_inputs(device, dtype, requires_grad=True):
        if small and logits.numel() > 5000:
            continue
        for gamma in (2.0, 1.5):
            for reduction in ("none", "sum"):
                op(logits, targets, gamma, 0.25, reduction=reduction).sum().backward()
                calls += 2
    return calls
