"""The boxes of a whole data set: cleaned once, with one counted warning, and kept in a few arrays."""
import logging
from collections import Counter

import numpy as np
import torch

from fcos_core.structures.bounding_box import BoxList

logger = logging.getLogger(__name__)

# A box may reach this far (pixels) over the border before it counts as clipped: annotation tools round everywhere.
BORDER_SLACK = 1.0

ZERO_EXTENT = "with zero extent"
NOT_FINITE = "with a coordinate that is not a number"
OUTSIDE = "outside its image"


def clean_boxes(boxes, sizes):
    """Clip boxes to their images and find those that keep no extent.

    Args:
        boxes (ndarray): float32 [M, 4], xyxy, inclusive pixel corners.
        sizes (ndarray): [M, 2], (width, height) of the image of each box.

    Returns:
        tuple: float32 [M, 4] clipped boxes; dict reason -> bool [M] of the boxes to drop (each box has one reason at
        most; the others have x2 > x1 and y2 > y1); bool [M] of the boxes that were cut by more than BORDER_SLACK.
    """
    limits = np.concatenate([sizes - 1, sizes - 1], 1).astype(np.float32).reshape(-1, 4)
    finite = np.isfinite(boxes).all(1)
    boxes = np.where(finite[:, None], boxes, np.float32(0))
    clipped = np.minimum(np.maximum(boxes, np.float32(0)), limits)
    extent = (boxes[:, 2:] > boxes[:, :2]).all(1)
    inside = (clipped[:, 2:] > clipped[:, :2]).all(1)
    drop = {ZERO_EXTENT: finite & ~extent, NOT_FINITE: ~finite, OUTSIDE: finite & extent & ~inside}
    return clipped, drop, inside & (np.abs(clipped - boxes) > BORDER_SLACK).any(1)


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

    def drop(self, reason, count, first):
        """Count boxes that are left out; `first` is the name of the first file of them."""
        if count:
            self.dropped[reason] += count
            self._first.setdefault("dropped", first)

    def clip(self, count, first):
        """Count boxes that are cut at the border; `first` is the name of the first file of them."""
        if count:
            self.clipped += count
            self._first.setdefault("clipped", first)

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


class BoxTable(object):
    """Boxes and fields of all images of a data set.

    They are in a few arrays because Python objects by the hundred thousand would be copied, page by page, into every
    worker process as soon as their reference counts are touched.

    Args:
        boxes (ndarray): [B, 4], xyxy, those of image 0 first, then those of image 1, ...
        fields (dict): name -> ndarray [B].
        counts (sequence[int]): number of boxes of each image, N entries.
        sizes (sequence): N pairs (width, height); None for an image without boxes whose size is not known yet.
        names (sequence[str]): N file names, for the report.
        report (BoxReport): gets what was wrong.
    """

    def __init__(self, boxes, fields, counts, sizes, names, report):
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        owner = np.repeat(np.arange(len(counts)), counts)  # [B] image of each box
        size_of = np.array([size or (1, 1) for size in sizes], np.int64).reshape(-1, 2)
        clipped, drop, cut = clean_boxes(boxes, size_of[owner])
        report.total += len(boxes)
        keep = np.ones(len(boxes), bool)
        # Reasons in the order of their first box, so that the report names the first file of all.
        found = sorted((int(rows.argmax()), reason) for reason, rows in drop.items() if rows.any())
        for first, reason in found:
            report.drop(reason, int(drop[reason].sum()), names[owner[first]])
            keep &= ~drop[reason]
        if cut.any():
            report.clip(int(cut.sum()), names[owner[cut.argmax()]])
        self._boxes = clipped[keep]
        self._fields = {name: np.asarray(values)[keep] for name, values in fields.items()}
        left = np.bincount(owner[keep], minlength=len(counts))
        self._starts = np.concatenate([[0], np.cumsum(left)]).astype(np.int64)

    def boxlist(self, index, size, mask_field=None):
        """Boxes of an image.

        Args:
            index (int): image.
            size (tuple[int, int]): (width, height).
            mask_field (str | None): leave out the boxes of which this bool field is True.

        Returns:
            BoxList: xyxy, with all fields.
        """
        rows = slice(int(self._starts[index]), int(self._starts[index + 1]))
        take = np.ones(rows.stop - rows.start, bool) if mask_field is None else ~self._fields[mask_field][rows]
        # Selecting copies: what the transforms do to a target must not change the table.
        target = BoxList(torch.from_numpy(self._boxes[rows][take]), size, mode="xyxy")
        for name, values in self._fields.items():
            target.add_field(name, torch.from_numpy(values[rows][take]))
        return target


def warn_once(report, where):
    """Log the report of a data set, if there is anything to report, as one warning that starts with `where`."""
    message = report.message()
    if message:
        logger.warning("%s: %s", where, message)
