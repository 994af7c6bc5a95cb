"""From one map per pyramid level to one tensor over all locations.

Shape letters, here and in the heads: N images, L levels, R locations of all levels together (with A anchors at each
location: R anchors), C foreground classes, M boxes of the image that has most.
"""
import torch

# Elements of the largest temporary tensor of an assignment.  More boxes than fit are handled in pieces, with the same
# result: 2^24 floats are 64 MiB, and about a dozen of them live at a time.
MAX_ELEMENTS = 1 << 24


def flatten_levels(maps, anchors=1):
    """Join per-level maps into one tensor over all locations, or all anchors.

    Args:
        maps: list of L tensors [N, anchors * C, H_l, W_l]; channel a * C + c belongs to anchor a.
        anchors: predictions at each location.

    Returns:
        [N, R, C]: level by level, inside a level row by row, at a location anchor by anchor.
    """
    flat = []
    for m in maps:
        num_images, channels = m.shape[:2]
        m = m.flatten(2).view(num_images, anchors, channels // anchors, -1)
        flat.append(m.permute(0, 3, 1, 2).reshape(num_images, -1, channels // anchors))
    return torch.cat(flat, dim=1)


def constants(values, dtype, device):
    """Numbers of the host as a tensor on `device`, without waiting for it (torch.tensor(..., device=...) waits)."""
    tensor = torch.tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def box_chunks(num_boxes, elements_per_box, most=None):
    """Cut the M boxes of a batch into pieces whose temporary tensors stay below MAX_ELEMENTS.

    Args:
        num_boxes: M.
        elements_per_box: elements that the largest temporary tensor has for each box.
        most: at most this many boxes in a piece, or None.

    Returns:
        list of slices over the axis of boxes, in order.
    """
    step = max(1, min(MAX_ELEMENTS // max(1, elements_per_box), most or num_boxes))
    return [slice(start, min(start + step, num_boxes)) for start in range(0, num_boxes, step)]


def level_locations(height, width, stride, device, offset=0.5):
    """Centres of the cells of one level: x = s // 2 + s * column, y = s // 2 + s * row.

    Args:
        offset: of the first location, in strides, instead of a half; rounded down to whole pixels.

    Returns:
        [height * width, 2] float32 (x, y), pixels of the network input, row by row.
    """
    first = int(stride * offset)
    xs = torch.arange(0, width * stride, step=stride, dtype=torch.float32, device=device) + first
    ys = torch.arange(0, height * stride, step=stride, dtype=torch.float32, device=device) + first
    return torch.stack((xs.repeat(height), ys.view(-1, 1).repeat(1, width).view(-1)), dim=1)


def per_location(values, counts, device, dtype=torch.float32):
    """Repeat one row per level over the locations of that level.

    Args:
        values: sequence of L numbers or of L equally long sequences.
        counts: L Python integers, locations of each level.

    Returns:
        [R] or [R, D].
    """
    rows = constants(values, dtype, device)
    return torch.cat([row.expand(count, *row.shape) for row, count in zip(rows, counts)], dim=0)


def pad_targets(targets, dtype, device, labels=None):
    """Ground truth of a batch as two tensors.

    Args:
        targets: list of N BoxLists with field "labels" (1..C); images without boxes are welcome.
        labels: list of N tensors [M_n] to take in place of that field, or None.

    Returns:
        boxes [N, M, 4] xyxy pixels, labels [N, M] int64; label 0 marks padding.
    """
    boxes = [t.convert("xyxy").bbox.to(device=device, dtype=dtype) for t in targets]
    labels = [t.get_field("labels") for t in targets] if labels is None else labels
    labels = [label.to(device=device, dtype=torch.int64) for label in labels]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(boxes, batch_first=True), pad(labels, batch_first=True)
