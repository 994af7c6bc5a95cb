"""Running a model for its detections: mode, precision, memory format. Shared by test, demo and multi-scale testing."""

import contextlib

import torch

__all__ = ["evaluation_mode", "autocast", "detect", "move_model", "unwrap_model"]

_AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@contextlib.contextmanager
def evaluation_mode(model):
    """Put a model into eval mode without gradients; afterwards every module is in the mode that it was in before.

    Each module's own flag is remembered: a part that was frozen in eval mode must not wake up when training goes on.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, training in modes:
            module.training = training


def unwrap_model(model):
    """The model inside DistributedDataParallel or DataParallel, for testing.

    The wrapper exchanges buffers in every forward pass, and processes with different numbers of test batches would wait
    for each other for ever.
    """
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


def autocast(device, amp=""):
    """Context of mixed precision for one device.

    Args:
        device (torch.device)
        amp (str): "" for none, "float16" or "bfloat16".

    Raises:
        ValueError: an unknown name.
        RuntimeError: this torch has no autocast for that device and type.
    """
    if not amp:
        return contextlib.nullcontext()
    if amp not in _AMP_DTYPES:
        raise ValueError("autocast: expected amp '' or one of {}, got '{}'".format(", ".join(sorted(_AMP_DTYPES)), amp))
    if hasattr(torch, "autocast"):  # from torch 1.10 on
        return torch.autocast(device.type, dtype=_AMP_DTYPES[amp])
    if device.type == "cuda" and amp == "float16":
        return torch.cuda.amp.autocast()
    raise RuntimeError(
        "autocast: expected a torch that has {} on {}, got {}; leave SOLVER.AMP empty or take torch 1.10 on".format(
            amp, device.type, torch.__version__
        )
    )


def move_model(model, device, channels_last=False):
    """The model on the device, its convolution weights in channels-last order if asked for."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def detect(model, images, device, amp="", channels_last=False):
    """Detections of a batch.

    Args:
        model (nn.Module): in eval mode on ``device``.
        images (ImageList)
        device (torch.device)
        amp (str): see `autocast`.
        channels_last (bool): hand the images over in channels-last order.

    Returns:
        list[BoxList]: one per image, on ``device``, in pixels of the network input.
    """
    images = images.to(device, non_blocking=True)
    if channels_last:
        images.tensors = images.tensors.contiguous(memory_format=torch.channels_last)
    with autocast(device, amp):
        return model(images)
