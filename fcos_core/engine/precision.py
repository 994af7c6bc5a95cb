"""Mixed precision as one object, so that the training loop reads the same with and without it."""

import warnings

import torch

from fcos_core.engine.forward import autocast


class Precision(object):
    """Runs the forward pass, the backward pass and the update in a chosen precision.

    Args:
        mode (str): "" (float32), "float16" (autocast, with the loss scaled against underflow) or "bfloat16" (autocast).
        device (torch.device): where the model computes.

    Raises:
        ValueError: another mode, or one that this torch does not offer on this device.

    Reference: Micikevicius et al., "Mixed Precision Training", 2018 (loss scaling).
    """

    def __init__(self, mode, device):
        if mode not in ("", "float16", "bfloat16"):
            raise ValueError(f"Precision: expected SOLVER.AMP empty, float16 or bfloat16, got {mode!r}; change it")
        self.mode = mode
        self.device = torch.device(device)
        self._refuse_what_torch_lacks()
        self._scaler = self._make_scaler() if mode == "float16" else None

    def _refuse_what_torch_lacks(self):
        on_cpu = self.device.type == "cpu"
        if self.mode == "bfloat16" and not hasattr(torch, "autocast"):
            missing = "torch 1.10 or newer"
        elif self.mode == "float16" and on_cpu and not hasattr(getattr(torch, "amp", None), "GradScaler"):
            missing = "a GPU, or torch 2.3 or newer"
        else:
            return
        raise ValueError(
            f"Precision: expected {missing} for SOLVER.AMP {self.mode}, got torch {torch.__version__} on "
            f"{self.device.type}; leave SOLVER.AMP empty"
        )

    def _make_scaler(self):
        # The first steps are skipped until the scale fits, and then torch wrongly complains about the order of calls.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        if hasattr(getattr(torch, "amp", None), "GradScaler"):
            return torch.amp.GradScaler(self.device.type)
        return torch.cuda.amp.GradScaler()

    def autocast(self):
        """Context for the forward pass."""
        return autocast(self.device, self.mode)

    def backward(self, loss):
        """Add the gradients of `loss` to those of the parameters."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def clip(self, optimizer, max_norm):
        """Scale all gradients down together if their total 2-norm is above `max_norm`; 0 leaves them alone.

        torch before 1.9 looks at the norm on the host, hence one sync per step there.

        Returns:
            Tensor: the norm before clipping, or None if nothing was asked for, or if in float16 an infinite norm is
            part of normal work (the scaler then skips the step and lowers the scale).
        """
        if max_norm <= 0:
            return None
        if self._scaler is not None:
            self._scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        return norm if self._scaler is None else None

    def step(self, optimizer):
        """Update the parameters. In float16 torch's scaler looks for infinite gradients on the host: a sync."""
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)
            self._scaler.update()

    def state_dict(self):
        """State of the loss scale; empty without float16."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state):
        """Restore what `state_dict` returned; a state without a scaler to put it in is ignored."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(state)
