"""`Keypoints`: named points of the objects of one image, as a field of a BoxList.

No head of this package predicts keypoints; the structure is here for data sets and own heads that have them.

Letters: M objects, K keypoints of an object.
"""
import torch

from fcos_core.structures.box_ops import PIXEL

FLIP_LEFT_RIGHT = 0
FLIP_TOP_BOTTOM = 1


class Keypoints(object):
    """Keypoints of M objects.

    Args:
        keypoints: [M, K, 3] x, y, visibility (0: not annotated, 1: hidden, 2: visible), or rows of 3 * K numbers;
            stored as float32.
        size: (width, height) of the image, pixels.
        mode: kept, without meaning.
    """

    # index, for each keypoint, of the one that it becomes in the mirror; subclasses that can be mirrored have it
    FLIP_INDS = None

    def __init__(self, keypoints, size, mode=None):
        keypoints = torch.as_tensor(keypoints, dtype=torch.float32)
        self.keypoints = keypoints.reshape(len(keypoints), -1, 3) if len(keypoints) else keypoints.reshape(0, 0, 3)
        self.size = size
        self.mode = mode
        self.extra_fields = {}

    def crop(self, box):
        """Keypoints relative to a region (x1, y1, x2, y2); those outside of it become unannotated."""
        x, y = self.keypoints[..., 0] - box[0], self.keypoints[..., 1] - box[1]
        width, height = box[2] - box[0], box[3] - box[1]
        outside = (x < 0) | (y < 0) | (x > width) | (y > height)
        moved = torch.stack((x, y, self.keypoints[..., 2]), dim=-1).masked_fill(outside[..., None], 0.0)
        return self._replace(moved, (width, height))

    def resize(self, size, *args, **kwargs):
        """Keypoints for the image resized to (width, height)."""
        ratios = [float(new) / float(old) for new, old in zip(size, self.size)]
        return self._replace(self.keypoints * self.keypoints.new_tensor(ratios + [1.0]), size)

    def transpose(self, method):
        """Keypoints for the image mirrored left to right, where left and right change their names, too.

        Raises:
            ValueError: another method, or a class without FLIP_INDS.
        """
        if method != FLIP_LEFT_RIGHT or self.FLIP_INDS is None:
            raise ValueError(
                "{}.transpose: expected FLIP_LEFT_RIGHT (0) and a class with FLIP_INDS, got method {!r}; derive a "
                "class that says which keypoints change places".format(type(self).__name__, method)
            )
        flipped = self.keypoints[:, self.FLIP_INDS].clone()
        flipped[..., 0] = self.size[0] - PIXEL - flipped[..., 0]
        # what is not annotated lies at the origin
        return self._replace(flipped.masked_fill((flipped[..., 2] == 0)[..., None], 0.0), self.size)

    def to(self, *args, **kwargs):
        """Copy with the tensors moved or cast; arguments as for `torch.Tensor.to`."""
        result = type(self)(self.keypoints.to(*args, **kwargs), self.size, self.mode)
        for field, data in self.extra_fields.items():
            result.add_field(field, data.to(*args, **kwargs) if hasattr(data, "to") else data)
        return result

    def __len__(self):
        return len(self.keypoints)

    def __getitem__(self, item):
        """Select objects, and rows of the fields."""
        result = type(self)(self.keypoints[item], self.size, self.mode)
        for field, data in self.extra_fields.items():
            result.add_field(field, data[item])
        return result

    def add_field(self, field, field_data):
        """Store `field_data` (one row per object) under the name `field`."""
        self.extra_fields[field] = field_data

    def get_field(self, field):
        """Return the data of a field."""
        return self.extra_fields[field]

    def _replace(self, keypoints, size):
        result = type(self)(keypoints, size, self.mode)
        result.extra_fields = dict(self.extra_fields)
        return result

    def __repr__(self):
        return "{}(num_instances={}, image_width={}, image_height={})".format(
            type(self).__name__, len(self), *self.size
        )


def _create_flip_indices(names, flip_map):
    """Index of the mirrored keypoint for each name; `flip_map` names those that change places, in one direction."""
    partner = dict(flip_map)
    partner.update({right: left for left, right in flip_map.items()})
    return torch.tensor([names.index(partner.get(name, name)) for name in names])


_SIDED = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")


class PersonKeypoints(Keypoints):
    """The 17 keypoints of persons in COCO."""

    NAMES = ["nose"] + ["{}_{}".format(side, part) for part in _SIDED for side in ("left", "right")]
    FLIP_MAP = {"left_" + part: "right_" + part for part in _SIDED}


def kp_connections(keypoints):
    """Pairs of indices into a list of names of keypoints, to draw a person by lines."""
    lines = []
    for side in ("left_", "right_"):
        lines += [(side + "eye", "nose"), (side + "eye", side + "ear"), (side + "shoulder", side + "elbow")]
        lines += [(side + "elbow", side + "wrist"), (side + "shoulder", side + "hip")]
        lines += [(side + "hip", side + "knee"), (side + "knee", side + "ankle")]
    lines += [("left_eye", "right_eye"), ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip")]
    return [(keypoints.index(one), keypoints.index(other)) for one, other in lines]


PersonKeypoints.FLIP_INDS = _create_flip_indices(PersonKeypoints.NAMES, PersonKeypoints.FLIP_MAP)
PersonKeypoints.CONNECTIONS = kp_connections(PersonKeypoints.NAMES)


def keypoints_to_heat_map(keypoints, rois, heatmap_size):
    """The cell of a square grid over each box in which each keypoint lies.

    Args:
        keypoints: [M, K, 3] x, y, visibility.
        rois: [M, 4] xyxy pixels.
        heatmap_size: cells along a side.

    Returns:
        index [M, K] int64, row * heatmap_size + column, 0 where invalid; valid [M, K] int64, 1 for an annotated
        keypoint inside its box (far sides included).
    """
    x1, y1, x2, y2 = (side[:, None] for side in rois.unbind(1))
    x, y, visibility = keypoints.unbind(-1)
    column = torch.floor((x - x1) * (heatmap_size / (x2 - x1))).to(torch.int64)
    row = torch.floor((y - y1) * (heatmap_size / (y2 - y1))).to(torch.int64)
    last = heatmap_size - 1
    column = torch.where(x == x2, torch.full_like(column, last), column)
    row = torch.where(y == y2, torch.full_like(row, last), row)
    inside = (column >= 0) & (row >= 0) & (column <= last) & (row <= last)
    valid = (inside & (visibility > 0)).to(torch.int64)
    return (row * heatmap_size + column) * valid, valid
