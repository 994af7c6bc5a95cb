"""From config to optimizer and schedule."""

import logging

import torch

from .lr_scheduler import WarmupMultiStepLR


def make_optimizer(cfg, model):
    """Optimizer with one parameter group per trainable parameter, in the order of `model.named_parameters()`.

    Biases (the word "bias" anywhere in the name) get the rate BASE_LR * BIAS_LR_FACTOR and the decay
    WEIGHT_DECAY_BIAS; everything else, the weights of norms included, BASE_LR and WEIGHT_DECAY. The rate of offset
    convolutions (names ending in `.offset.weight` or `.offset.bias`) is multiplied by DCONV_OFFSETS_LR_FACTOR.

    Legacy: one group per parameter is the layout of the optimizer states in existing checkpoints.

    Args:
        cfg (CfgNode): SOLVER is read.
        model (nn.Module): parameters with `requires_grad` are taken.

    Returns:
        torch.optim.Optimizer: SGD with momentum, or AdamW if SOLVER.OPTIMIZER says so.

    Raises:
        ValueError: another SOLVER.OPTIMIZER, or nothing to train.
    """
    groups = _parameter_groups(cfg, model, _base_lr(cfg))
    if not groups:
        raise ValueError("make_optimizer: expected trainable parameters, got none; lower FREEZE_CONV_BODY_AT")
    default_lr = groups[0]["lr"]
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return SGD(groups, default_lr, momentum=cfg.SOLVER.MOMENTUM)
    if cfg.SOLVER.OPTIMIZER == "AdamW":
        return AdamW(groups, default_lr)
    raise ValueError(f"make_optimizer: expected SOLVER.OPTIMIZER SGD or AdamW, got {cfg.SOLVER.OPTIMIZER!r}; change it")


def make_lr_scheduler(cfg, optimizer):
    """The schedule of SOLVER.STEPS, GAMMA and WARMUP_* for `optimizer`."""
    return WarmupMultiStepLR(
        optimizer,
        cfg.SOLVER.STEPS,
        cfg.SOLVER.GAMMA,
        warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        warmup_method=cfg.SOLVER.WARMUP_METHOD,
    )


def _base_lr(cfg):
    """BASE_LR, scaled in proportion to the batch size if REFERENCE_BATCH says which batch it is meant for.

    Reference: Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 2.1 (linear scaling rule).
    """
    base_lr, batch, reference = cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_BATCH
    if reference <= 0:
        return base_lr
    scaled = base_lr * batch / float(reference)
    logging.getLogger(__name__).info(
        f"Learning rate: SOLVER.BASE_LR {base_lr:g} * IMS_PER_BATCH {batch} / REFERENCE_BATCH {reference} = {scaled:g}"
    )
    return scaled


def _parameter_groups(cfg, model, base_lr):
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        lr, weight_decay = base_lr, cfg.SOLVER.WEIGHT_DECAY
        if "bias" in name:
            lr, weight_decay = base_lr * cfg.SOLVER.BIAS_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY_BIAS
        if name.endswith((".offset.weight", ".offset.bias")):
            lr = lr * cfg.SOLVER.DCONV_OFFSETS_LR_FACTOR
        groups.append({"params": [parameter], "lr": lr, "weight_decay": weight_decay})
    return groups


class _StepsGroupsTogether(object):
    """Optimizer mixin: during `step`, groups with equal settings count as one.

    torch updates the tensors of a group by a few kernels for all of them, but goes through the groups one after the
    other, which with one parameter per group means hundreds of small kernels. The arithmetic stays the same.
    """

    def step(self, closure=None):
        """As the base class."""
        groups = self.param_groups
        self.param_groups = _merge_equal(groups)
        try:
            return super(_StepsGroupsTogether, self).step(closure)
        finally:
            self.param_groups = groups


def _merge_equal(groups):
    """Groups joined where all settings but the parameters and the initial rate agree."""
    merged = {}
    for group in groups:
        settings = tuple((key, value) for key, value in group.items() if key not in ("params", "initial_lr"))
        if settings in merged:
            merged[settings]["params"] = merged[settings]["params"] + group["params"]
        else:
            merged[settings] = dict(group)
    return list(merged.values())


class SGD(_StepsGroupsTogether, torch.optim.SGD):
    """`torch.optim.SGD` that updates many small parameter groups at once."""


class AdamW(_StepsGroupsTogether, torch.optim.AdamW):
    """`torch.optim.AdamW` that updates many small parameter groups at once."""
