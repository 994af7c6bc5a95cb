"""`BoxList`: the boxes of one image together with per-box fields (labels, scores, masks, ...).

Geometry is in `box_ops`; this class keeps boxes, image size and fields consistent.
"""
import torch

from fcos_core.structures import box_ops

FLIP_LEFT_RIGHT = 0
FLIP_TOP_BOTTOM = 1

_MODES = ("xyxy", "xywh")


class BoxList(object):
    """M boxes of one image.

    Fields are stored under a name.  A tensor field has M rows and follows indexing and device moves.  A field of
    another type takes part in `crop`, `resize`, `transpose` and `to` if it has a method of that name, and is carried
    over otherwise.

    Args:
        bbox: [M, 4] tensor, array or list; M = 0 is fine, as is an empty list.  Stored as float32, whatever comes in;
            a float32 tensor is stored without a copy.
        image_size: (width, height) of the image in pixels.  Mind the order: everywhere else sizes are (height, width).
        mode: "xyxy" for x1 y1 x2 y2, "xywh" for x1 y1 and inclusive sizes.

    Raises:
        ValueError: wrong shape or unknown mode.
    """

    def __init__(self, bbox, image_size, mode="xyxy"):
        bbox = torch.as_tensor(bbox, dtype=torch.float32)
        if bbox.dim() == 1 and bbox.numel() == 0:
            bbox = bbox.reshape(0, 4)
        if bbox.dim() != 2 or bbox.size(-1) != 4:
            raise ValueError(
                f"BoxList: expected bbox of shape [M, 4], got {list(bbox.shape)}; "
                "give one row per box, also for a single box (boxes[i:i + 1] instead of boxes[i])"
            )
        self.bbox = bbox
        self.size = image_size
        self.mode = _check_mode("BoxList", mode)
        self.extra_fields = {}

    # fields

    def add_field(self, field, field_data):
        """Store `field_data` (one row per box) under the name `field`, replacing what was there."""
        self.extra_fields[field] = field_data

    def get_field(self, field):
        """Return the data of a field.

        Raises:
            KeyError: no such field; the message lists those that exist.
        """
        if field not in self.extra_fields:
            raise KeyError(f"get_field: expected one of the fields {self.fields()}, got {field!r}")
        return self.extra_fields[field]

    def has_field(self, field):
        """Tell whether a field of this name exists."""
        return field in self.extra_fields

    def fields(self):
        """List of field names."""
        return list(self.extra_fields)

    def copy_with_fields(self, fields, skip_missing=False):
        """New BoxList over the same boxes with the named fields only.

        Args:
            fields: a name or a list of names.
            skip_missing: leave out names that do not exist instead of raising KeyError.
        """
        if not isinstance(fields, (list, tuple)):
            fields = [fields]
        result = BoxList(self.bbox, self.size, self.mode)
        for field in fields:
            if self.has_field(field) or not skip_missing:
                result.add_field(field, self.get_field(field))
        return result

    # geometry

    def convert(self, mode):
        """Return the boxes in another mode ("xyxy" or "xywh"); self if it is the present one."""
        if _check_mode("convert", mode) == self.mode:
            return self
        to_mode = box_ops.xyxy_to_xywh if mode == "xywh" else box_ops.xywh_to_xyxy
        return self._replace(to_mode(self.bbox), mode=mode)

    def area(self):
        """Inclusive areas in square pixels, [M]."""
        if self.mode == "xyxy":
            return box_ops.area(self.bbox)
        return self.bbox[:, 2] * self.bbox[:, 3]

    def clip_to_image(self, remove_empty=True):
        """Move the corners into the image, x to [0, width - 1] and y to [0, height - 1].

        Args:
            remove_empty: afterwards drop the boxes without extent (x2 <= x1 or y2 <= y1).

        Returns:
            The clipped BoxList: self, or a selection of it.

        Note:
            Legacy: works in place, the tensor that the BoxList was made from is changed as well.
        """
        width, height = self.size
        corners = box_ops.clip(self._corners(), height, width)
        self.bbox.copy_(corners if self.mode == "xyxy" else box_ops.xyxy_to_xywh(corners))
        return self[box_ops.is_nonempty(corners)] if remove_empty else self

    def resize(self, size, *args, **kwargs):
        """Boxes for the image resized to `size`.

        Args:
            size: (width, height) in pixels.
            args, kwargs: handed on to the `resize` of fields that have one.

        Returns:
            A new BoxList of the same mode.

        Note:
            Legacy: with the same ratio for both sides the numbers are scaled in their own mode, otherwise as corners;
            in mode xywh the two differ by the pixel convention.
        """
        ratio_x, ratio_y = (float(new) / float(old) for new, old in zip(size, self.size))
        if ratio_x == ratio_y:
            bbox = self.bbox * ratio_x
        else:
            bbox = self._from_corners(box_ops.scale(self._corners(), ratio_x, ratio_y))
        return self._replace(bbox, size=size, call=lambda data: data.resize(size, *args, **kwargs), needs="resize")

    def transpose(self, method):
        """Boxes for the mirrored image.

        Args:
            method: FLIP_LEFT_RIGHT or FLIP_TOP_BOTTOM (the values of PIL).
        """
        width, height = self.size
        if method == FLIP_LEFT_RIGHT:
            corners = box_ops.flip_left_right(self._corners(), width)
        elif method == FLIP_TOP_BOTTOM:
            corners = box_ops.flip_top_bottom(self._corners(), height)
        else:
            raise ValueError(f"transpose: expected FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1), got {method!r}")
        return self._replace(self._from_corners(corners), call=lambda data: data.transpose(method), needs="transpose")

    def crop(self, box):
        """Boxes relative to a region of the image, clamped to it; boxes outside stay, with zero extent.

        Args:
            box: (x1, y1, x2, y2) of the region in pixels; the new size is (x2 - x1, y2 - y1).
        """
        bbox = self._from_corners(box_ops.crop(self._corners(), box))
        size = (box[2] - box[0], box[3] - box[1])
        return self._replace(bbox, size=size, call=lambda data: data.crop(box), needs="crop")

    # container

    def __len__(self):
        return self.bbox.shape[0]

    def __getitem__(self, item):
        """Select boxes, and rows of their fields, by slice, mask, list or index tensor."""
        result = BoxList(self.bbox[item], self.size, self.mode)
        for field, data in self.extra_fields.items():
            result.add_field(field, data[item])
        return result

    def to(self, device, non_blocking=False):
        """Copy with boxes and fields on `device`; fields without a method `to` are carried over."""
        result = BoxList(self.bbox.to(device, non_blocking=non_blocking), self.size, self.mode)
        for field, data in self.extra_fields.items():
            if isinstance(data, torch.Tensor):
                data = data.to(device, non_blocking=non_blocking)
            elif hasattr(data, "to"):
                data = data.to(device)
            result.add_field(field, data)
        return result

    def pin_memory(self):
        """Copy in page-locked memory, so that `to(..., non_blocking=True)` overlaps; called by torch's DataLoader."""
        result = BoxList(self.bbox.pin_memory(), self.size, self.mode)
        for field, data in self.extra_fields.items():
            result.add_field(field, data.pin_memory() if hasattr(data, "pin_memory") else data)
        return result

    def __repr__(self):
        width, height = self.size
        return (
            f"{type(self).__name__}(num_boxes={len(self)}, image_width={width}, image_height={height}, "
            f"mode={self.mode}, fields={self.fields()})"
        )

    # internals

    def _split_into_xyxy(self):
        """x1, y1, x2 and y2 of the boxes, four of [M, 1]."""
        return self._corners().split(1, dim=-1)

    def _copy_extra_fields(self, bbox):
        """Take over the fields of another BoxList."""
        for field in bbox.fields():
            self.add_field(field, bbox.get_field(field))

    def _corners(self):
        return self.bbox if self.mode == "xyxy" else box_ops.xywh_to_xyxy(self.bbox)

    def _from_corners(self, corners):
        return corners if self.mode == "xyxy" else box_ops.xyxy_to_xywh(corners)

    def _replace(self, bbox, size=None, mode=None, call=None, needs=None):
        """BoxList over new boxes that carries all fields; `call` transforms non-tensor fields with a method `needs`."""
        result = BoxList(bbox, self.size if size is None else size, mode or self.mode)
        for field, data in self.extra_fields.items():
            if call is not None and not isinstance(data, torch.Tensor) and hasattr(data, needs):
                data = call(data)
            result.add_field(field, data)
        return result


def _check_mode(function, mode):
    if mode not in _MODES:
        raise ValueError(f"{function}: expected mode 'xyxy' or 'xywh', got {mode!r}")
    return mode
