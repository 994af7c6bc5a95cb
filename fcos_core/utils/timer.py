"""Wall-clock timing of repeated work."""

import datetime
import time


class Timer(object):
    """Adds up the seconds between `tic` and `toc`.

    Attributes:
        total_time (float), calls (int), diff (float): sum of the seconds, number of intervals, last interval.
    """

    def __init__(self):
        self.reset()

    def reset(self):
        """Forget everything measured so far."""
        self.total_time = 0.0
        self.calls = 0
        self.start_time = 0.0
        self.diff = 0.0

    @property
    def average_time(self):
        """Mean seconds per interval, 0 before the first."""
        return self.total_time / self.calls if self.calls else 0.0

    def tic(self):
        """Start an interval."""
        self.start_time = time.time()

    def toc(self, average=True):
        """End the interval; return the mean of all, or with `average=False` its own length in seconds."""
        self.add(time.time() - self.start_time)
        return self.average_time if average else self.diff

    def add(self, time_diff):
        """Count an interval of `time_diff` seconds that was measured elsewhere."""
        self.diff = time_diff
        self.total_time += time_diff
        self.calls += 1

    def avg_time_str(self):
        """The mean as hours:minutes:seconds."""
        return str(datetime.timedelta(seconds=self.average_time))


def get_time_str(time_diff):
    """`time_diff` seconds as hours:minutes:seconds."""
    return str(datetime.timedelta(seconds=time_diff))
