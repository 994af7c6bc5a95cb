"""Several processes that train together: who am I, wait for the others, add up tensors, exchange objects.

Every function also works in a single process without `torch.distributed`, where it does the obvious thing, so callers
need no branches. The launcher (`torchrun`, `torch.distributed.launch`) says who is who in the environment variables
RANK, WORLD_SIZE and LOCAL_RANK.
"""

import atexit
import datetime
import os
import sys
import time

import torch
import torch.distributed as dist

_object_group = None  # process group for Python objects; made at first use, see `_group_for_objects`
_leaves_at_exit = False


def is_distributed():
    """True in a process that belongs to an initialised process group."""
    return dist.is_available() and dist.is_initialized()


def get_world_size():
    """Number of training processes, 1 without `torch.distributed`."""
    return dist.get_world_size() if is_distributed() else 1


def get_rank():
    """Number of this process, counted over all machines; 0 without `torch.distributed`."""
    return dist.get_rank() if is_distributed() else 0


def get_local_rank():
    """Number of this process on its own machine, as the launcher set it in LOCAL_RANK; 0 without a launcher."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main_process():
    """True in the one process that prints, writes files and scores."""
    return get_rank() == 0


def is_pytorch_1_1_0_or_later():
    """Always True: kept because scripts written for the older packages ask."""
    return True


def init_distributed(device_type, timeout_minutes=30):
    """Join the process group that the launcher describes; without a launcher nothing happens.

    Args:
        device_type (str): "cuda" (NCCL, this process takes GPU LOCAL_RANK) or "cpu" (Gloo).
        timeout_minutes (float): how long a collective call may wait for the other processes.

    Returns:
        bool: whether this process now belongs to a group of more than one.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        return False
    if not is_distributed():
        if device_type == "cuda":
            torch.cuda.set_device(get_local_rank())
        dist.init_process_group(
            backend="nccl" if device_type == "cuda" else "gloo",
            init_method="env://",
            timeout=datetime.timedelta(minutes=timeout_minutes),
        )
    synchronize()
    return True


def shut_down():
    """Leave the process group, if there is one."""
    global _object_group
    _object_group = None
    if is_distributed():
        # Some versions (2.1 for one) wait for Gloo's threads with the interpreter locked, and such a thread waits for
        # the interpreter if it still has to let go of a tensor of the last call: both would wait forever.  All calls
        # are done by now; sleeping unlocks the interpreter for what little is left.
        time.sleep(0.2)
        dist.destroy_process_group()


def synchronize():
    """Wait until all processes have arrived here."""
    if get_world_size() > 1:
        _leave_at_exit()
        dist.barrier()


def _leave_at_exit():
    """See that a script that never leaves its process group, as old ones do not, ends all the same.

    A Gloo group that still stands when the interpreter is gone can abort the process (torch 2.14: "terminate called
    without an active exception", one run in eight).  After an exception nothing is done: leaving waits for calls that
    the other processes may never answer.
    """
    global _leaves_at_exit
    if _leaves_at_exit:
        return
    _leaves_at_exit = True

    def leave():
        if getattr(sys, "last_type", None) is None and is_distributed() and dist.get_backend() == "gloo":
            shut_down()

    atexit.register(leave)


def _group_for_objects():
    """Group for pickled objects. NCCL moves only GPU memory, so such a run gets a Gloo group beside its own."""
    global _object_group
    if dist.get_backend() != "nccl":
        return dist.group.WORLD
    if _object_group is None:
        _object_group = dist.new_group(backend="gloo")
    return _object_group


def all_gather(data):
    """Collect one Python object from every process.

    Args:
        data: any picklable object.

    Returns:
        list: the objects of all processes in the order of their ranks, in every process.
    """
    if get_world_size() == 1:
        return [data]
    gathered = [None] * get_world_size()
    dist.all_gather_object(gathered, data, group=_group_for_objects())
    return gathered


def broadcast_object(data):
    """Return the `data` of the main process in every process."""
    return all_gather(data)[0]


def reduce_sum(tensor):
    """Sum of `tensor` over all processes.

    Args:
        tensor (Tensor): same shape and dtype in every process. It is left unchanged.

    Returns:
        Tensor: the sum, detached; without other processes `tensor` itself.
    """
    if get_world_size() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total


def reduce_mean(tensor):
    """Mean of `tensor` over all processes: the all-reduced sum divided by their number.

    Args:
        tensor (Tensor): floating point, same shape in every process. It is left unchanged.

    Returns:
        Tensor: the mean, detached; without other processes `tensor` itself.
    """
    if get_world_size() == 1:
        return tensor
    return reduce_sum(tensor) / get_world_size()


def reduce_dict(input_dict, average=True):
    """Combine a dictionary of scalar tensors over all processes, with one collective call.

    Args:
        input_dict (dict[str, Tensor]): scalars under the same names in every process.
        average (bool): mean instead of sum.

    Returns:
        dict[str, Tensor]: the combined values, detached, in every process; without other processes `input_dict`.
    """
    if get_world_size() == 1 or not input_dict:
        return input_dict
    names = sorted(input_dict)  # the order must not depend on how each process filled its dictionary
    stacked = torch.stack([input_dict[name].detach() for name in names])
    combined = reduce_mean(stacked) if average else reduce_sum(stacked)
    return dict(zip(names, combined))
