"""The learning rate over the iterations: a warm-up, then steps down."""

from bisect import bisect_right

import torch


class WarmupMultiStepLR(torch.optim.lr_scheduler._LRScheduler):
    """Multiplies each group's rate by gamma at every milestone, and by a rising factor during the warm-up.

    Iteration k (from 0) is made with `rate = base * warmup(k) * gamma ** (number of milestones <= k)`, where warmup(k)
    is `warmup_factor` ("constant") or goes in a straight line from `warmup_factor` to 1 ("linear") for
    k < warmup_iters, then 1. Call `step()` after `optimizer.step()`.

    Args:
        optimizer (torch.optim.Optimizer)
        milestones (sequence[int]): iterations, rising.
        gamma (float): factor at each milestone.
        warmup_factor (float): factor at iteration 0.
        warmup_iters (int): length of the warm-up in iterations.
        warmup_method (str): "linear" or "constant".
        last_epoch (int): iteration to start from; -1: the beginning.

    Raises:
        ValueError: milestones that fall, or an unknown method.

    Reference: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.2 (warm-up).
    """

    def __init__(
        self,
        optimizer,
        milestones,
        gamma=0.1,
        warmup_factor=1.0 / 3,
        warmup_iters=500,
        warmup_method="linear",
        last_epoch=-1,
    ):
        if list(milestones) != sorted(milestones):
            raise ValueError(
                f"WarmupMultiStepLR: expected milestones in rising order, got {tuple(milestones)}; sort SOLVER.STEPS"
            )
        if warmup_method not in ("constant", "linear"):
            raise ValueError(
                f"WarmupMultiStepLR: expected warmup_method to be constant or linear, got {warmup_method!r}; "
                "change SOLVER.WARMUP_METHOD"
            )
        self.milestones = list(milestones)
        self.gamma = gamma
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        super(WarmupMultiStepLR, self).__init__(optimizer, last_epoch)

    def get_lr(self):
        """Learning rate of each parameter group at iteration `last_epoch`."""
        factor = self._warmup() * self.gamma ** bisect_right(self.milestones, self.last_epoch)
        return [base_lr * factor for base_lr in self.base_lrs]

    def _warmup(self):
        if self.last_epoch >= self.warmup_iters:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        progress = self.last_epoch / float(self.warmup_iters)
        return self.warmup_factor * (1 - progress) + progress
