"""The nearest locations of a pyramid to given points, without the distances to all locations.

On a regular grid the squared distance is dx^2 + dy^2, where dx depends on the column only and dy on the row only.  Rank
the columns by |dx| and the rows by |dy|: at least i * j locations are not farther than the one in the i-th column and
the j-th row.  So the k nearest are among those with i * j <= k: 23 locations of a level for k = 9, wherever the point
lies and whatever the size of the grid.

Shape letters: "..." any leading dimensions, L levels.
"""
import torch

from fcos_core.modeling.rpn.levels import constants


def _pairs(k):
    return [(i, j) for i in range(k) for j in range(k // (i + 1))]


def work_per_level(k):
    """Elements of the largest temporary tensor of `nearest_locations`, for each point and level."""
    return max((k + 2) ** 2, len(_pairs(k)) ** 2)


def _ranks(values, ties):
    """Position that each element of the last dimension has after sorting by value, the higher tie first.

    By comparison of all pairs: the same order on every device and version of torch, for the few elements at hand.
    """
    value, other = values[..., :, None], values[..., None, :]
    before = (other < value) | ((other == value) & (ties[..., None, :] > ties[..., :, None]))
    return before.sum(dim=-1)


def _sort(keys, ranks, length):
    """Elements of the last dimension in the order of their ranks, the first `length` of them."""
    return torch.zeros_like(keys).scatter(-1, ranks, keys)[..., :length]


def _nearest_on_axis(positions, origins, strides, lengths, k):
    """The k nearest of the equidistant points origin + stride * 0 .. length - 1.

    Args:
        positions: [...].
        origins, strides, lengths: [L] floating point.

    Returns:
        index [..., L, k] int64 and distance [..., L, k], nearest first, higher index first on ties; distance infinite
        where the level has fewer points.
    """
    # The k nearest of an endless grid lie in the closed interval of k steps around the position; a window of k + 2
    # points that starts at its lower end holds them, moved into the grid where it sticks out.
    start = torch.floor((positions[..., None] - origins) / strides - k / 2.0)
    start = torch.max(torch.min(start, lengths - (k + 2)), torch.zeros_like(lengths))
    index = start[..., None] + torch.arange(k + 2, dtype=start.dtype, device=start.device)
    distance = (positions[..., None, None] - (origins[:, None] + index * strides[:, None])).abs()
    distance = distance.masked_fill(index >= lengths[:, None], float("inf"))
    ranks = _ranks(distance, index)
    return _sort(index, ranks, k).long(), _sort(distance, ranks, k)


def nearest_locations(points, origins, strides, grid_sizes, k):
    """The k locations of each level that are nearest to each point.

    Exact, up to the rounding of dx^2 + dy^2.  Of locations at the same distance the one with the higher index goes
    first: ATSS leaves that open, it happens often with boxes of whole pixels, and the recorded runs mostly chose so.

    Args:
        points: [..., 2] (x, y) pixels, anywhere.
        origins: [L, 2] (x, y) of the first location of each level.
        strides: [L].
        grid_sizes: list of L (height, width), Python integers.
        k: locations per level.

    Returns:
        [..., L, k] int64: index of the location, level by level, inside a level row by row; nearest first.  A level
        with fewer than k locations fills its row with locations of the pyramid that mean nothing.
    """
    device, dtype = points.device, points.dtype
    heights, widths = constants(list(zip(*[(float(h), float(w)) for h, w in grid_sizes])), dtype, device).unbind(0)
    counts = [height * width for height, width in grid_sizes]
    starts = constants([sum(counts[:level]) for level in range(len(counts))], torch.int64, device)
    columns, dx = _nearest_on_axis(points[..., 0], origins[:, 0], strides, widths, k)
    rows, dy = _nearest_on_axis(points[..., 1], origins[:, 1], strides, heights, k)

    i, j = constants(list(zip(*_pairs(k))), torch.int64, device).unbind(0)
    column, row = columns.index_select(-1, i), rows.index_select(-1, j)  # [..., L, pairs]
    squared = dx.index_select(-1, i) ** 2 + dy.index_select(-1, j) ** 2
    # unique also for the columns past the end, and ordered like the locations
    tie = row * (widths.long()[:, None] + k + 2) + column
    location = _sort(row * widths.long()[:, None] + column, _ranks(squared, tie), k) + starts[:, None]
    return location.clamp(0, sum(counts) - 1)
