"""What stands guard over a training run: losses that are not finite, nothing to do, and signals to stop.

The rule for non-finite losses: the run stops, names the iteration, the loss and the images, keeps the batch, and never
writes a checkpoint with what came after.
"""

import collections
import logging
import math
import os
import signal
import threading

import torch
import torch.distributed as dist

from fcos_core.utils.comm import get_rank, get_world_size
from fcos_core.utils.miscellaneous import mkdir, write_atomically


class NonFiniteLossError(RuntimeError):
    """A loss, a gradient norm or a parameter became NaN or infinite."""


class NothingToTrainError(RuntimeError):
    """The run starts where it should end."""


class TrainingInterrupted(SystemExit):
    """The run was asked to stop and has saved a checkpoint. Uncaught, it ends the process with 128 + signal."""


def refuse_nothing_to_do(start_iter, max_iter):
    """Raise NothingToTrainError if iteration `start_iter` of `max_iter` leaves nothing to train."""
    if start_iter >= max_iter:
        raise NothingToTrainError(
            f"do_train: expected iterations left to train, got a checkpoint at iteration {start_iter} of "
            f"SOLVER.MAX_ITER {max_iter}; raise SOLVER.MAX_ITER to train on, or choose another OUTPUT_DIR (or delete "
            "last_checkpoint in it) to train anew"
        )


class StopSignals(object):
    """Context in which SIGTERM and Ctrl-C only set a flag, so that the loop can end an iteration and save.

    The third Ctrl-C interrupts at once. (Not the second: a launcher passes on the signal that its processes already
    got from the terminal.) Python allows signal handlers in the main thread only; elsewhere nothing is caught.

    Attributes:
        requested (int): the signal that arrived, 0 if none.
    """

    def __init__(self):
        self.requested = 0
        self._interrupts = 0
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number, frame):
        self.requested = number
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 2:
            raise KeyboardInterrupt


_Watched = collections.namedtuple("_Watched", ["iteration", "names", "record", "event", "batch"])


class LossGuard(object):
    """Looks at every loss without making the host wait for the GPU.

    The losses of an iteration are copied to the host in the background and looked at `LAG` iterations later, when
    the copy has long arrived; the batches in between are kept, so the report is exact. On the CPU, where nothing runs
    in the background, they are looked at immediately, before the backward pass.

    With several processes the verdicts, and whether a signal arrived, are combined by one small all-reduce, so that all
    processes stop at the same iteration.

    Args:
        device (torch.device): where the losses are computed.
        save_dir (str): where the bad batch is saved; empty: it is not.
        stop (StopSignals): asked whether a signal arrived.
        image_name (callable): image id -> file name for the report, or None.
    """

    LAG = 2

    def __init__(self, device, save_dir, stop, image_name=None):
        self._device = torch.device(device)
        self._lag = self.LAG if self._device.type == "cuda" else 0
        self._save_dir = save_dir
        self._stop = stop
        self._image_name = image_name
        self._pending = collections.deque()
        self._stop_agreed = 0

    def watch(self, iteration, losses, batch):
        """Note the losses of an iteration; raise if an earlier one (on the CPU: this one) is not finite.

        Args:
            iteration (int): number of the iteration.
            losses (dict[str, Tensor]): scalars.
            batch (tuple): (images, targets, image ids), best on the CPU.

        Raises:
            NonFiniteLossError
        """
        names = sorted(losses)
        values = torch.stack([losses[name].detach().float() for name in names])
        flags = torch.stack([(~torch.isfinite(values)).any().float(), values.new_full((), float(self._stop.requested))])
        if get_world_size() > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        record, event = _start_copy_to_host(torch.cat([values, flags]))
        self._pending.append(_Watched(iteration, names, record, event, batch))
        while len(self._pending) > self._lag:
            self._look_at(self._pending.popleft())

    def drain(self):
        """Look at everything that was noted. Waits for the GPU; called where a line is printed or a file written."""
        while self._pending:
            self._look_at(self._pending.popleft())

    def stop_signal(self):
        """The signal at which all processes stop now, 0 if they go on."""
        return self._stop_agreed if get_world_size() > 1 else self._stop.requested

    def _look_at(self, watched):
        if watched.event is not None:
            watched.event.synchronize()  # the forward pass of LAG iterations ago: it has ended, the queue stays full
        record = watched.record.tolist()
        values, any_bad, stop = record[:-2], record[-2], record[-1]
        self._stop_agreed = self._stop_agreed or int(stop)
        if any_bad:
            self._raise(watched, values)

    def _raise(self, watched, values):
        bad = [f"{name} is {value}" for name, value in zip(watched.names, values) if not math.isfinite(value)]
        if not bad:
            raise NonFiniteLossError(
                f"do_train: another process met a loss that is not finite at iteration {watched.iteration}; its "
                "message names the loss and the images"
            )
        images, targets, image_ids = watched.batch
        ids = [int(i) for i in image_ids]
        named = f" ({', '.join(str(self._image_name(i)) for i in ids)})" if self._image_name else ""
        saved = self._save_batch(watched, values, ids)
        raise NonFiniteLossError(
            f"do_train: expected finite losses, got {', '.join(bad)} at iteration {watched.iteration}, image ids "
            f"{ids}{named}; {saved}. Look at these images and boxes; if they are fine, lower SOLVER.BASE_LR, lengthen "
            "SOLVER.WARMUP_ITERS, set SOLVER.CLIP_GRADIENTS, or train without SOLVER.AMP float16"
        )

    def _save_batch(self, watched, values, ids):
        if not self._save_dir:
            return "the batch was not saved, for there is no OUTPUT_DIR"
        images, targets, _ = watched.batch
        mkdir(self._save_dir)
        path = os.path.join(self._save_dir, f"nonfinite_{watched.iteration:07d}_rank{get_rank()}.pth")
        content = {
            "iteration": watched.iteration,
            "losses": dict(zip(watched.names, values)),
            "image_ids": ids,
            "images": _plain(images),
            "targets": [_plain(target) for target in targets],
        }
        write_atomically(path, lambda stream: torch.save(content, stream))
        return f"the batch is saved in {path}"


def refuse_nonfinite_parameters(model, iteration):
    """Raise NonFiniteLossError if a parameter is not finite: called before a checkpoint is written.

    Finite losses do not prove finite gradients; without this, a broken model could replace the last good one.
    """
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not parameters:
        return
    finite = torch.stack([torch.isfinite(parameter.detach()).all() for _, parameter in parameters]).tolist()
    bad = [name for (name, _), is_finite in zip(parameters, finite) if not is_finite]
    if bad:
        raise NonFiniteLossError(
            f"do_train: expected finite parameters, got {len(bad)} of {len(parameters)} with NaN or infinity at "
            f"iteration {iteration}, the first is {bad[0]}; no checkpoint was written. The losses were finite, so a "
            "gradient was not: set SOLVER.CLIP_GRADIENTS, or lower SOLVER.BASE_LR"
        )


def log_stop(signal_number, iteration):
    """Say that the run stops and how to go on."""
    logging.getLogger("fcos_core.trainer").warning(
        f"Stopped by signal {signal_number} after iteration {iteration}; the checkpoint is written: the same command "
        "goes on from here"
    )


def _start_copy_to_host(tensor):
    """The tensor on the host and an event that says when it has arrived (None: it is there)."""
    if not tensor.is_cuda:
        return tensor, None
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event


def _plain(item):
    """Tensors and plain types of an ImageList, a BoxList or a tensor, for saving."""
    if torch.is_tensor(item):
        return item.detach().cpu()
    if hasattr(item, "image_sizes"):
        sizes = [tuple(int(side) for side in size) for size in item.image_sizes]
        return {"tensors": item.tensors.detach().cpu(), "image_sizes": sizes}
    if hasattr(item, "bbox"):
        fields = {name: value.cpu() for name, value in item.extra_fields.items() if torch.is_tensor(value)}
        return {"bbox": item.bbox.cpu(), "size": tuple(map(int, item.size)), "mode": item.mode, "fields": fields}
    return repr(item)
