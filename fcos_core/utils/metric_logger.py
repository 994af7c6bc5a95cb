"""Running statistics of training: medians over a window, means over everything."""

from collections import defaultdict, deque

import torch


class SmoothedValue(object):
    """A series of numbers with the median and mean of the latest ones and the mean of all.

    Tensors may be given: they are kept as they are and read, all in one copy, when a statistic is asked for. So
    updating never waits for the GPU.

    Args:
        window_size (int): how many of the latest values `median` and `avg` look at.
    """

    def __init__(self, window_size=20):
        self._window = deque(maxlen=window_size)
        self._unread = []
        self._total = 0.0
        self._count = 0

    def update(self, value):
        """Append a number or a tensor with one element."""
        if torch.is_tensor(value):
            self._unread.append(value.detach().reshape(()))
        else:
            self._read()
            self._append(float(value))

    def _append(self, value):
        self._window.append(value)
        self._total += value
        self._count += 1

    def _read(self):
        if self._unread:
            values, self._unread = torch.stack(self._unread).tolist(), []
            for value in values:
                self._append(value)

    @property
    def deque(self):
        """The latest values as floats, oldest first."""
        self._read()
        return self._window

    @property
    def count(self):
        """How many values there were."""
        return self._count + len(self._unread)

    @property
    def total(self):
        """Sum of all values."""
        self._read()
        return self._total

    @property
    def median(self):
        """Median of the latest values; of an even number the lower of the two middle ones, as torch.median."""
        values = sorted(self.deque)
        return values[(len(values) - 1) // 2] if values else float("nan")

    @property
    def avg(self):
        """Mean of the latest values."""
        values = self.deque
        return sum(values) / len(values) if values else float("nan")

    @property
    def global_avg(self):
        """Mean of all values."""
        self._read()
        return self._total / self._count if self._count else float("nan")


class MetricLogger(object):
    """Named `SmoothedValue`s, also reachable as attributes, that print themselves as `name: median (mean of all)`.

    Args:
        delimiter (str): stands between the entries.
    """

    def __init__(self, delimiter="\t"):
        self.meters = defaultdict(SmoothedValue)
        self.delimiter = delimiter

    def update(self, **kwargs):
        """Append one value to each named series: int, float, or a tensor with one element."""
        for name, value in kwargs.items():
            if not (torch.is_tensor(value) or isinstance(value, (int, float))):
                raise AssertionError(
                    "MetricLogger.update: expected {} to be a number or a tensor, got {!r}; convert it first".format(
                        name, value
                    )
                )
            self.meters[name].update(value)

    def __getattr__(self, name):
        meters = self.__dict__.get("meters", {})
        if name in meters:
            return meters[name]
        raise AttributeError("{!r} object has no attribute or meter {!r}".format(type(self).__name__, name))

    def __str__(self):
        meters = self.meters.items()
        return self.delimiter.join(f"{name}: {meter.median:.4f} ({meter.global_avg:.4f})" for name, meter in meters)
