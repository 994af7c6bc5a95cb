"""From one map per pyramid level to one tensor over all locations.

Shape letters, here and in the heads: N images, L levels, R locations of all levels together, C foreground classes,
M boxes of the image that has most.
"""
import torch


def flatten_levels(maps):
    """Join per-level maps into one tensor over all locations.

    Args:
        maps: list of L tensors [N, C, H_l, W_l].

    Returns:
        [N, R, C]: level by level, inside a level row by row.
    """
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)


def level_locations(height, width, stride, device):
    """Centres of the cells of one level: x = s // 2 + s * column, y = s // 2 + s * row.

    Returns:
        [height * width, 2] float32 (x, y), pixels of the network input, row by row.
    """
    xs = torch.arange(0, width * stride, step=stride, dtype=torch.float32, device=device) + stride // 2
    ys = torch.arange(0, height * stride, step=stride, dtype=torch.float32, device=device) + stride // 2
    return torch.stack((xs.repeat(height), ys.view(-1, 1).repeat(1, width).view(-1)), dim=1)


def per_location(values, counts, device, dtype=torch.float32):
    """Repeat one row per level over the locations of that level.

    Args:
        values: sequence of L numbers or of L equally long sequences.
        counts: L Python integers, locations of each level.

    Returns:
        [R] or [R, D].
    """
    rows = torch.tensor(values, dtype=dtype, device=device)
    return torch.cat([row.expand(count, *row.shape) for row, count in zip(rows, counts)], dim=0)


def pad_targets(targets, dtype, device):
    """Ground truth of a batch as two tensors.

    Args:
        targets: list of N BoxLists with field "labels" (1..C); images without boxes are welcome.

    Returns:
        boxes [N, M, 4] xyxy pixels, labels [N, M] int64; label 0 marks padding.
    """
    boxes = [t.convert("xyxy").bbox.to(device=device, dtype=dtype) for t in targets]
    labels = [t.get_field("labels").to(device=device, dtype=torch.int64) for t in targets]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(boxes, batch_first=True), pad(labels, batch_first=True)
