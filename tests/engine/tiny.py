"""A model and a data loader small enough to train in milliseconds, and a program that trains them.

`python -m tests.engine.tiny OUTPUT_DIR ...` is what the tests kill, signal and resume.
"""
import argparse
import os
import time

import torch

from fcos_core.config import cfg as default_cfg
from fcos_core.engine.report import TrainingReport
from fcos_core.engine.trainer import do_train
from fcos_core.solver import make_lr_scheduler, make_optimizer
from fcos_core.structures.bounding_box import BoxList
from fcos_core.structures.image_list import ImageList
from fcos_core.utils.checkpoint import Checkpointer
from fcos_core.utils.logger import setup_logger
from fcos_core.utils.rng import seed_everything


class TinyDetector(torch.nn.Module):
    """Two losses of a small network; dropout and noise make them depend on the state of the random generator."""

    def __init__(self, random=True):
        super(TinyDetector, self).__init__()
        self.body = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4, 4)
        self.random = random

    def forward(self, images, targets):
        x = self.norm(self.body(images.tensors)).relu().mean((2, 3))
        if self.random:
            x = torch.nn.functional.dropout(x, 0.2)
        wanted = torch.stack([target.bbox.mean(0) for target in targets])
        return {"loss_reg": (self.head(x) - wanted).abs().mean(), "loss_cls": x.pow(2).mean() + 0.1}


class TinyLoader(object):
    """Batches that depend only on their number, as the package's own loader makes them.

    Args:
        batches (int): of the whole run.
        start (int): batches that are left out.
        before (dict): batch number (from 1) -> function called with the batch before it is handed out.
        images (int): per batch.
    """

    def __init__(self, batches, start=0, before=None, images=2):
        self.batches, self.start, self.before, self.images = batches, start, before or {}, images

    def __len__(self):
        return self.batches

    def __iter__(self):
        for number in range(self.start + 1, self.batches + 1):
            batch = self.make(number)
            if number in self.before:
                batch = self.before[number](batch) or batch
            yield batch

    def make(self, number):
        generator = torch.Generator()
        generator.manual_seed(number)
        images = ImageList(torch.randn(self.images, 3, 8, 8, generator=generator), [(8, 8)] * self.images)
        targets = [BoxList(torch.rand(2, 4, generator=generator), (8, 8)) for _ in range(self.images)]
        return images, targets, tuple(range(number * 100, number * 100 + self.images))


def build(folder, random=True, **solver):
    """(model, optimizer, scheduler, checkpointer) from a fixed seed."""
    cfg = default_cfg.clone()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 0.05, 5
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    seed_everything(5)
    model = TinyDetector(random)
    optimizer = make_optimizer(cfg, model)
    scheduler = make_lr_scheduler(cfg, optimizer)
    return model, optimizer, scheduler, Checkpointer(model, optimizer, scheduler, str(folder), True)


def train(folder, iterations, period=4, before=None, log_period=1, accumulate=1, random=True, images=2, **options):
    """Train, or resume what is in the folder; returns the model."""
    model, optimizer, scheduler, checkpointer = build(folder, random)
    arguments = {"iteration": 0}
    arguments.update(checkpointer.load())
    loader = TinyLoader(iterations * accumulate, arguments["iteration"] * accumulate, before, images)
    report = TrainingReport(iterations, str(folder), log_period, False, arguments["iteration"])
    device = torch.device("cpu")
    do_train(
        model, loader, optimizer, scheduler, checkpointer, device, period, arguments,
        report=report, accumulate=accumulate, **options
    )
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--hang-at", type=int, default=0, help="wait before this batch, with a file that says so")
    args = parser.parse_args()
    setup_logger("fcos_core", args.folder, 0)

    def hang(_):
        with open(os.path.join(args.folder, "hanging"), "w"):
            pass
        for _ in range(600):
            time.sleep(0.1)
            if os.path.exists(os.path.join(args.folder, "go")):
                return

    train(args.folder, args.iterations, before={args.hang_at: hang})


if __name__ == "__main__":
    main()
