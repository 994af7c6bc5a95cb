"""What a training run tells: log lines, a progress bar, metrics.jsonl, TensorBoard and, at the end, curves."""

import contextlib
import datetime
import json
import logging
import os
import sys

import torch

from fcos_core.engine.curves import draw_curves
from fcos_core.utils.comm import is_main_process, reduce_mean
from fcos_core.utils.metric_logger import MetricLogger
from fcos_core.utils.miscellaneous import mkdir, write_atomically

METRICS_FILE = "metrics.jsonl"
CURVES_FILE = "curves.png"


class TrainingReport(object):
    """Collects losses as tensors and reads them, all in one copy, when a line is due.

    Use it as a context: leaving it closes the files and draws the curves. Only the main process writes, but all
    processes must call `iteration`, since a due line averages the losses over them.

    Args:
        max_iter (int): last iteration.
        output_dir (str): where files go; empty: log lines only.
        log_period (int): iterations between lines. The last iteration always gets one.
        tensorboard (bool): also write TensorBoard files, if it is installed.
        start_iter (int): iterations that an earlier run has done; what its metrics file says of later ones is dropped.
    """

    def __init__(self, max_iter, output_dir="", log_period=20, tensorboard=False, start_iter=0):
        self._max_iter = max_iter
        self._log_period = log_period
        self._start_iter = start_iter
        self._main = is_main_process()
        self._output_dir = output_dir if self._main else ""
        self._tensorboard = tensorboard
        self._logger = logging.getLogger("fcos_core.trainer")
        self._losses = MetricLogger(delimiter="  ")
        self._times = MetricLogger(delimiter="  ")
        self._unread = []
        self._bar = self._metrics = self._writer = None

    def __enter__(self):
        if self._output_dir:
            mkdir(self._output_dir)
            self._metrics = _open_metrics(os.path.join(self._output_dir, METRICS_FILE), self._start_iter)
            if self._tensorboard:
                self._writer = _open_tensorboard(self._output_dir, self._start_iter, self._logger)
        if self._main and sys.stderr.isatty():
            self._bar = _open_bar(self._start_iter, self._max_iter)
        return self

    def __exit__(self, *exception):
        for sink in (self._bar, self._metrics, self._writer):
            if sink is not None:
                sink.close()
        if self._output_dir:
            metrics = os.path.join(self._output_dir, METRICS_FILE)
            draw_curves(metrics, os.path.join(self._output_dir, CURVES_FILE), self._logger)

    def is_due(self, iteration):
        """Whether a line is printed after this iteration."""
        return iteration % self._log_period == 0 or iteration == self._max_iter

    def iteration(self, iteration, losses, lr, data_time, batch_time):
        """Note an iteration, and print a line if one is due.

        Args:
            iteration (int): its number, from 1.
            losses (dict[str, Tensor]): scalars, detached.
            lr (float): learning rate of the first parameter group.
            data_time, batch_time (float): seconds spent waiting for data, and in all.
        """
        names = sorted(losses)
        self._unread.append(torch.stack([losses[name].float() for name in names]))
        self._times.update(time=batch_time, data=data_time)
        if self._bar is not None:
            self._bar.update(1)
        if self.is_due(iteration):
            rows = reduce_mean(torch.stack(self._unread)).tolist()  # the one place where the host waits for the losses
            self._unread = []
            for row in rows:
                self._losses.update(loss=sum(row), **dict(zip(names, row)))
            if self._main:
                self._print_line(iteration, dict(zip(names, rows[-1])), lr)

    def _print_line(self, iteration, losses, lr):
        eta = self._times.time.avg * (self._max_iter - iteration)  # of the latest iterations: the first ones are slow
        memory = peak_memory_mb()
        line = [
            f"eta: {datetime.timedelta(seconds=int(eta))}",
            f"iter: {iteration}",
            str(self._losses),
            str(self._times),
            f"lr: {lr:.6f}",
            f"max mem: {memory:.0f} MB",
        ]
        with self._bar_out_of_the_way():
            self._logger.info("  ".join(line))
        values = dict(losses, loss=sum(losses.values()), lr=lr)
        values.update(time=self._times.time.median, data_time=self._times.data.median, memory_mb=memory)
        self._write(iteration, values, prefix="train")

    def results(self, iteration, results):
        """Note test results.

        Args:
            iteration (int): how far the training was.
            results (dict[str, dict[str, float]]): metrics by data set.
        """
        for dataset, metrics in results.items():
            self._write(iteration, metrics, prefix="test/" + dataset, dataset=dataset)

    def _write(self, iteration, values, prefix, **labels):
        if self._metrics is not None:
            self._metrics.write(json.dumps(dict({"iteration": iteration}, **dict(values, **labels))) + "\n")
            self._metrics.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, iteration)

    @contextlib.contextmanager
    def _bar_out_of_the_way(self):
        """Lets a log line have the terminal's last line to itself."""
        if self._bar is not None:
            self._bar.clear()
        yield
        if self._bar is not None:
            self._bar.refresh()


def append_results(output_dir, iteration, results, tensorboard=False):
    """Add test results to the metrics file of a finished training and draw the curves again.

    Args: as for `TrainingReport` and its method `results`.
    """
    report = TrainingReport(iteration, output_dir, tensorboard=tensorboard, start_iter=iteration)
    with report:
        report.results(iteration, results)


def peak_memory_mb():
    """Largest memory used so far in MB: of tensors on the GPU if one is used, else of the process (0 if unknown)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2.0**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2.0**20 if sys.platform == "darwin" else 2.0**10)  # macOS counts bytes, Linux kilobytes


def read_metrics(path):
    """The lines of a metrics file as dictionaries; a last line that a killed run left unfinished is left out."""
    lines = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    continue
    return lines


def _open_metrics(path, start_iter):
    """The file, opened for appending, without what an earlier run wrote about iterations that are done again."""
    kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["iteration"] <= start_iter]
    write_atomically(path, lambda stream: stream.write("".join(kept).encode("utf-8")))
    return open(path, "a", encoding="utf-8")


def _open_tensorboard(output_dir, start_iter, logger):
    try:
        try:
            import distutils.version  # noqa: F401  torch 1.7 to 1.10 use the submodule without importing it
        except ImportError:
            pass  # gone in Python 3.12, as is its use in torch
        from torch.utils.tensorboard import SummaryWriter
    except (ImportError, AttributeError, TypeError) as error:
        logger.info(f"TensorBoard files are not written, its import failed: {error} (pip install tensorboard)")
        return None
    return SummaryWriter(os.path.join(output_dir, "tensorboard"), purge_step=start_iter + 1 if start_iter else None)


def _open_bar(start_iter, max_iter):
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm(total=max_iter, initial=start_iter, unit="it", dynamic_ncols=True, leave=False)
