"""What each of two processes does in test_distributed.py: `two_processes.py check|stop FOLDER`."""
import argparse
import os
import sys
import time

import torch

from fcos_core.engine.guards import LossGuard, NonFiniteLossError, StopSignals, TrainingInterrupted
from fcos_core.engine.trainer import do_train, reduce_loss_dict
from fcos_core.utils import comm
from tests.engine.tiny import TinyLoader, build


def check_helpers():
    rank = comm.get_rank()
    assert (comm.get_world_size(), comm.get_local_rank(), comm.is_main_process()) == (2, rank, rank == 0)
    assert comm.all_gather({"rank": rank, "text": "x" * rank}) == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]
    assert comm.broadcast_object(rank) == 0
    mine = torch.tensor([1.0, 10.0]) * (rank + 1)
    assert comm.reduce_mean(mine).tolist() == [1.5, 15.0] and comm.reduce_sum(mine).tolist() == [3.0, 30.0]
    assert mine.tolist() == [1.0 * (rank + 1), 10.0 * (rank + 1)]
    ordered = {"a": torch.tensor(0.0), "b": torch.tensor(0.0)}
    if rank:
        ordered = {"b": torch.tensor(4.0), "a": torch.tensor(2.0)}  # filled in another order
    assert {name: value.item() for name, value in reduce_loss_dict(ordered).items()} == {"a": 1.0, "b": 2.0}
    assert comm.reduce_dict(ordered, average=False)["b"].item() == 4.0


def check_guard(folder):
    """Only process 1 has a bad loss; both stop, and process 1 says why."""
    rank = comm.get_rank()
    guard = LossGuard(torch.device("cpu"), folder, StopSignals())
    batch = TinyLoader(1).make(1)
    guard.watch(1, {"loss": torch.tensor(1.0)}, batch)
    try:
        guard.watch(2, {"loss": torch.tensor(float("nan") if rank else 1.0)}, batch)
    except NonFiniteLossError as error:
        expected = "loss is nan" if rank else "another process met a loss that is not finite"
        assert expected + " at iteration 2" in str(error), error
        return
    raise AssertionError("the guard did not stop")


def train_until_stopped(folder):
    """Process 1 gets a signal from outside; both must save and stop after the same iteration."""
    rank = comm.get_rank()
    model, optimizer, scheduler, checkpointer = build(folder)
    checkpointer.save_to_disk = rank == 0

    def announce(_):
        with open(os.path.join(folder, f"pid{rank}"), "w") as stream:
            stream.write(f"{os.getpid()}\n")

    def slowly(_):
        time.sleep(0.02)

    before = dict.fromkeys(range(1001), slowly)
    before[5] = announce
    loader = TinyLoader(1000, before=before)
    arguments = {"iteration": 0}
    wrapped = torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    try:
        do_train(wrapped, loader, optimizer, scheduler, checkpointer, torch.device("cpu"), 5000, arguments)
    except TrainingInterrupted as stopped:
        with open(os.path.join(folder, f"stopped{rank}"), "w") as stream:
            stream.write(f"{stopped.code} {arguments['iteration']}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=["check", "stop"])
    parser.add_argument("folder")
    parser.add_argument("--local_rank", type=int)
    # torch.distributed.launch of old releases puts --local_rank before the other arguments and sets no LOCAL_RANK
    args = parser.parse_args()
    if args.local_rank is not None:
        os.environ["LOCAL_RANK"] = str(args.local_rank)
    torch.set_num_threads(1)
    assert comm.init_distributed("cpu")
    if args.task == "stop":
        train_until_stopped(args.folder)
    else:
        check_helpers()
        check_guard(args.folder)
        with open(os.path.join(args.folder, f"done{comm.get_rank()}"), "w") as stream:
            stream.write("yes")
    comm.synchronize()
    comm.shut_down()
    assert comm.get_world_size() == 1


if __name__ == "__main__":
    sys.exit(main())
