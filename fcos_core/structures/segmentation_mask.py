"""`SegmentationMask`: the outlines of the objects of one image, as polygons or as bitmaps; a field of a BoxList.

No head of this package predicts masks; the structure is here for data sets and own heads that have them.  Sizes are
(width, height), as in BoxList.

Letters: M objects, H x W pixels of the image.
"""
import numpy as np
import torch
from torch.nn import functional as F

from fcos_core.structures.box_ops import PIXEL

FLIP_LEFT_RIGHT = 0
FLIP_TOP_BOTTOM = 1


def _check_method(method):
    if method not in (FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM):
        raise ValueError("transpose: expected FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1), got {!r}".format(method))


def _pair(size):
    return tuple(size) if isinstance(size, (tuple, list, torch.Size)) else (size, size)


class BinaryMaskList(object):
    """Bitmaps of M objects.

    Args:
        masks: [M, H, W] or [H, W] tensor, a list of [H, W] tensors, run lengths as pycocotools has them (a list of
            dicts), or a BinaryMaskList; stored as uint8, 0 or 1.
        size: (width, height) of the image, pixels.

    Raises:
        ValueError: bitmaps of another size.
    """

    def __init__(self, masks, size):
        self.size = tuple(size)
        width, height = self.size
        if isinstance(masks, BinaryMaskList):
            masks = masks.masks
        elif isinstance(masks, (list, tuple)):
            masks = [_decode(mask) if isinstance(mask, dict) else torch.as_tensor(mask) for mask in masks]
            masks = torch.stack(masks) if masks else torch.zeros(0, height, width)
        masks = masks if masks.dim() == 3 else masks[None]
        if tuple(masks.shape[1:]) != (height, width):
            raise ValueError(
                "BinaryMaskList: expected masks of height {} and width {}, got {}; size is (width, height)".format(
                    height, width, list(masks.shape)
                )
            )
        self.masks = (masks != 0).to(torch.uint8)

    def transpose(self, method):
        """Masks of the mirrored image."""
        _check_method(method)
        return BinaryMaskList(self.masks.flip(2 if method == FLIP_LEFT_RIGHT else 1), self.size)

    def crop(self, box):
        """Masks of the region (x1, y1, x2, y2), rounded to pixels and cut at the image, at least one pixel large."""
        width, height = self.size
        x1, y1, x2, y2 = (int(round(float(side))) for side in box)
        x1, y1 = min(max(x1, 0), width - 1), min(max(y1, 0), height - 1)
        x2, y2 = max(min(x2, width), x1 + 1), max(min(y2, height), y1 + 1)
        return BinaryMaskList(self.masks[:, y1:y2, x1:x2], (x2 - x1, y2 - y1))

    def resize(self, size):
        """Masks of the image resized to (width, height): a pixel counts where at least half of it is covered."""
        width, height = _pair(size)
        if len(self) == 0:
            return BinaryMaskList(self.masks.new_zeros(0, height, width), (width, height))
        resized = F.interpolate(self.masks[None].float(), size=(height, width), mode="bilinear", align_corners=False)
        return BinaryMaskList(resized[0] >= 0.5, (width, height))

    def convert_to_polygon(self):
        """The outlines as a PolygonList, of the outer borders only (needs OpenCV)."""
        import cv2

        polygons = []
        for mask in self.masks.cpu().numpy():
            # OpenCV 3 puts an image before contours and hierarchy, and writes into its input
            contours = cv2.findContours(mask.copy(), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[-2]
            outlines = [contour.reshape(-1).tolist() for contour in contours]
            polygons.append([outline for outline in outlines if len(outline) >= 6])
        return PolygonList(polygons, self.size)

    def to(self, *args, **kwargs):
        """Copy with the tensor moved; arguments as for `torch.Tensor.to`."""
        return BinaryMaskList(self.masks.to(*args, **kwargs), self.size)

    def __getitem__(self, index):
        return BinaryMaskList(self.masks[index], self.size)

    def __iter__(self):
        return iter(self.masks)

    def __len__(self):
        return len(self.masks)

    def __repr__(self):
        return "BinaryMaskList(num_instances={}, image_width={}, image_height={})".format(len(self), *self.size)


def _decode(run_lengths):
    from pycocotools import mask

    return torch.from_numpy(np.ascontiguousarray(mask.decode(run_lengths)))


class PolygonInstance(object):
    """The outline of one object, of one or several polygons.

    Args:
        polygons: list of flat lists, arrays or tensors x1 y1 x2 y2 ..., pixels, or a PolygonInstance; those of fewer
            than three points are left out.
        size: (width, height) of the image, pixels.
    """

    def __init__(self, polygons, size):
        polygons = polygons.polygons if isinstance(polygons, PolygonInstance) else polygons
        polygons = [torch.as_tensor(polygon, dtype=torch.float32).reshape(-1) for polygon in polygons]
        self.polygons = [polygon for polygon in polygons if len(polygon) >= 6]
        self.size = tuple(size)

    def transpose(self, method):
        """Outline in the mirrored image."""
        _check_method(method)
        axis, extent = (0, self.size[0]) if method == FLIP_LEFT_RIGHT else (1, self.size[1])
        flipped = [polygon.clone() for polygon in self.polygons]
        for polygon in flipped:
            polygon[axis::2] = extent - PIXEL - polygon[axis::2]
        return PolygonInstance(flipped, self.size)

    def crop(self, box):
        """Outline relative to the region (x1, y1, x2, y2); parts outside keep their place outside."""
        x1, y1, x2, y2 = (float(side) for side in box)
        size = (max(x2 - x1, 1), max(y2 - y1, 1))
        return PolygonInstance([polygon - _xy(polygon, x1, y1) for polygon in self.polygons], size)

    def resize(self, size):
        """Outline in the image resized to (width, height)."""
        ratios = [float(new) / float(old) for new, old in zip(_pair(size), self.size)]
        return PolygonInstance([polygon * _xy(polygon, *ratios) for polygon in self.polygons], _pair(size))

    def convert_to_binarymask(self):
        """Bitmap [H, W], uint8 (needs pycocotools)."""
        from pycocotools import mask

        width, height = (int(round(side)) for side in self.size)
        if not self.polygons:
            return torch.zeros(height, width, dtype=torch.uint8)
        parts = mask.frPyObjects([polygon.double().numpy().tolist() for polygon in self.polygons], height, width)
        return _decode(mask.merge(parts))

    def __len__(self):
        return len(self.polygons)

    def __repr__(self):
        return "PolygonInstance(num_groups={}, image_width={}, image_height={})".format(len(self), *self.size)


def _xy(polygon, x, y):
    """x, y, x, y, ... as long as the polygon."""
    return polygon.new_tensor([x, y]).repeat(len(polygon) // 2)


class PolygonList(object):
    """Outlines of M objects.

    Args:
        polygons: list of M lists of flat lists, list of PolygonInstances, or a PolygonList.
        size: (width, height) of the image, pixels.
    """

    def __init__(self, polygons, size):
        polygons = polygons.polygons if isinstance(polygons, PolygonList) else polygons
        self.polygons = [PolygonInstance(polygon, size) for polygon in polygons]
        self.size = tuple(size)

    def transpose(self, method):
        """Outlines in the mirrored image."""
        return PolygonList([polygon.transpose(method) for polygon in self.polygons], self.size)

    def crop(self, box):
        """See PolygonInstance.crop."""
        size = (max(float(box[2] - box[0]), 1), max(float(box[3] - box[1]), 1))
        return PolygonList([polygon.crop(box) for polygon in self.polygons], size)

    def resize(self, size):
        """Outlines in the image resized to (width, height)."""
        return PolygonList([polygon.resize(size) for polygon in self.polygons], _pair(size))

    def convert_to_binarymask(self):
        """The same as a BinaryMaskList (needs pycocotools)."""
        masks = [polygon.convert_to_binarymask() for polygon in self.polygons]
        return BinaryMaskList(masks, tuple(int(round(side)) for side in self.size))

    def to(self, *args, **kwargs):
        """Self: polygons stay on the CPU."""
        return self

    def __getitem__(self, item):
        """Select objects by number, slice, list, index tensor or mask."""
        if isinstance(item, int):
            chosen = [self.polygons[item]]
        elif isinstance(item, slice):
            chosen = self.polygons[item]
        else:
            index = torch.as_tensor(item)
            if index.dtype in (torch.bool, torch.uint8):
                index = torch.nonzero(index, as_tuple=True)[0]
            chosen = [self.polygons[number] for number in index.reshape(-1).tolist()]
        return PolygonList(chosen, self.size)

    def __iter__(self):
        return iter(self.polygons)

    def __len__(self):
        return len(self.polygons)

    def __repr__(self):
        return "PolygonList(num_instances={}, image_width={}, image_height={})".format(len(self), *self.size)


class SegmentationMask(object):
    """Outlines of the M objects of an image, in one of two forms.

    Args:
        instances: what PolygonList (mode "poly") or BinaryMaskList (mode "mask") take.
        size: (width, height) of the image, pixels.
        mode: "poly" or "mask".

    Raises:
        ValueError: another mode.
    """

    _FORMS = {"poly": PolygonList, "mask": BinaryMaskList}

    def __init__(self, instances, size, mode="poly"):
        if mode not in self._FORMS:
            raise ValueError("SegmentationMask: expected mode 'poly' or 'mask', got {!r}".format(mode))
        self.size = tuple(size)
        self.mode = mode
        self.instances = self._FORMS[mode](instances, size)

    def transpose(self, method):
        """Masks of the mirrored image."""
        return self._of(self.instances.transpose(method))

    def crop(self, box):
        """Masks relative to the region (x1, y1, x2, y2)."""
        return self._of(self.instances.crop(box))

    def resize(self, size, *args, **kwargs):
        """Masks of the image resized to (width, height)."""
        return self._of(self.instances.resize(size))

    def to(self, *args, **kwargs):
        """Copy with tensors moved; polygons stay on the CPU."""
        return self._of(self.instances.to(*args, **kwargs))

    def convert(self, mode):
        """The same in the other form; self if it is the present one."""
        if mode == self.mode:
            return self
        other = self.instances.convert_to_binarymask if mode == "mask" else self.instances.convert_to_polygon
        if mode not in self._FORMS:
            raise ValueError("SegmentationMask.convert: expected mode 'poly' or 'mask', got {!r}".format(mode))
        instances = other()
        return SegmentationMask(instances, instances.size, mode)

    def get_mask_tensor(self):
        """Bitmaps [M, H, W] uint8; of a single object [H, W]."""
        return self.convert("mask").instances.masks.squeeze(0)

    def __getitem__(self, item):
        return self._of(self.instances[item])

    def __iter__(self):
        """One SegmentationMask after the other, each of a single object."""
        return (self[number] for number in range(len(self)))

    def __len__(self):
        return len(self.instances)

    def _of(self, instances):
        return SegmentationMask(instances, instances.size, self.mode)

    def __repr__(self):
        return "SegmentationMask(num_instances={}, image_width={}, image_height={}, mode={})".format(
            len(self), self.size[0], self.size[1], self.mode
        )
