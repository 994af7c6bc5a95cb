"""Cleaning of annotated boxes, with one counted warning per data set."""
import logging
from collections import Counter

import numpy as np

logger = logging.getLogger(__name__)

# In xyxy with inclusive corners a box may reach this far (pixels) over the border before it counts as clipped: rounding
# in annotation tools does that everywhere.
_BORDER_SLACK = 1.0


def clean_boxes(boxes, size, report, name):
    """Clips boxes to their image and drops those that keep no extent.

    Args:
        boxes (ndarray): float32 [M, 4], xyxy, inclusive pixel corners.
        size (tuple[int, int]): (width, height) of the image.
        report (BoxReport): counts what is done.
        name (str): file to name in the warning.

    Returns:
        tuple: float32 [K, 4] clipped boxes that are left (x2 > x1 and y2 > y1), bool [M] which ones these are.
    """
    limit = np.array([size[0] - 1, size[1] - 1] * 2, np.float32)
    finite = np.isfinite(boxes).all(1)
    clipped = np.minimum(np.maximum(np.where(finite[:, None], boxes, 0), 0), limit).astype(np.float32)
    extent = _has_extent(boxes) & finite
    keep = extent & _has_extent(clipped)
    report.total += len(boxes)
    if not keep.all():
        report.drop("with zero extent", int((~extent & finite).sum()), name)
        report.drop("with a coordinate that is not a number", int((~finite).sum()), name)
        report.drop("outside its image", int((extent & ~keep).sum()), name)
    if len(boxes):
        over = (np.abs(clipped - boxes) > _BORDER_SLACK).any(1) & keep
        report.clip(int(over.sum()), name)
    return clipped[keep], keep


def _has_extent(boxes):
    with np.errstate(invalid="ignore"):
        return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


class BoxReport(object):
    """Counts the boxes of a data set that had to be dropped or clipped.

    Attributes:
        total (int): boxes seen.
        dropped (Counter): reason -> number.
        clipped (int): boxes cut at the border of their image.
    """

    def __init__(self):
        self.total = 0
        self.dropped = Counter()
        self.clipped = 0
        self._first = {}

    def drop(self, reason, count, name):
        """Count boxes of the file `name` that are left out for `reason`."""
        if count:
            self.dropped[reason] += count
            self._first.setdefault("dropped", name)

    def clip(self, count, name):
        """Count boxes of the file `name` that are cut at the border."""
        if count:
            self.clipped += count
            self._first.setdefault("clipped", name)

    def message(self):
        """One sentence, or "" if every box was fine."""
        parts = []
        if self.dropped:
            reasons = ", ".join("{} {}".format(count, reason) for reason, count in sorted(self.dropped.items()))
            parts.append("dropped {} of {} boxes: {}; first: {}".format(
                sum(self.dropped.values()), self.total, reasons, self._first["dropped"]))
        if self.clipped:
            parts.append("clipped {} of {} boxes that reach over the border of their image; first: {}".format(
                self.clipped, self.total, self._first["clipped"]))
        return "; ".join(parts)

    def warn(self, where):
        """Log the sentence, if there is one, as a warning that starts with `where`."""
        message = self.message()
        if message:
            logger.warning("%s: %s", where, message)
