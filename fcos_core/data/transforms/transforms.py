"""Transforms of an image together with its boxes."""
import random

import numpy as np
import torch
from PIL import Image

from fcos_core.structures.bounding_box import FLIP_LEFT_RIGHT


class Compose(object):
    """Applies transforms one after the other.

    Args:
        transforms (list): callables (image, target) -> (image, target).
    """

    def __init__(self, transforms):
        self.transforms = transforms

    def __call__(self, image, target):
        for transform in self.transforms:
            image, target = transform(image, target)
        return image, target

    def __repr__(self):
        return "{}({})".format(type(self).__name__, ", ".join(repr(t) for t in self.transforms))


class Resize(object):
    """Resizes a PIL image so that its short side has a given length, unless the long side would exceed a limit.

    Args:
        min_size (int | sequence[int]): length of the short side in pixels; one of a sequence is drawn for each image.
        max_size (int | None): limit of the long side in pixels.
    """

    def __init__(self, min_size, max_size):
        self.min_size = tuple(min_size) if isinstance(min_size, (list, tuple, range)) else (min_size,)
        if not self.min_size:
            raise ValueError("Resize: expected min_size to hold at least one length, got none; set INPUT.MIN_SIZE_*")
        self.max_size = max_size

    def get_size(self, image_size):
        """Size after resizing.

        Args:
            image_size (tuple[int, int]): (width, height).

        Returns:
            tuple[int, int]: (height, width), mind the order.
        """
        width, height = image_size
        short, long = min(width, height), max(width, height)
        size = random.choice(self.min_size)
        if self.max_size is not None and long / float(short) * size > self.max_size:
            size = int(round(self.max_size * short / float(long)))
        if short == size:
            return height, width
        # Legacy: the long side is cut off, not rounded.  At least one pixel, for extremely long images.
        size = max(size, 1)
        if width < height:
            return max(int(size * height / width), 1), size
        return size, max(int(size * width / height), 1)

    def __call__(self, image, target=None):
        """Resized (image, target), or the image alone if there is no target."""
        height, width = self.get_size(image.size)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.BILINEAR)
        if target is None:
            return image
        return image, target.resize(image.size)

    def __repr__(self):
        return "Resize(min_size={}, max_size={})".format(self.min_size, self.max_size)


class RandomHorizontalFlip(object):
    """Mirrors image and boxes left to right with a probability.

    Args:
        prob (float): 0 .. 1.
    """

    def __init__(self, prob=0.5):
        self.prob = prob

    def __call__(self, image, target):
        if random.random() < self.prob:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
            target = target.transpose(FLIP_LEFT_RIGHT)
        return image, target

    def __repr__(self):
        return "RandomHorizontalFlip(prob={})".format(self.prob)


class ToTensor(object):
    """PIL image (RGB) or uint8 array [h, w, 3] -> float32 tensor [3, h, w] in 0 .. 1."""

    def __call__(self, image, target):
        # [h, w, 3]; np.array copies, because torch wants writable memory.
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
        tensor = torch.empty((3,) + tuple(pixels.shape[:2]), dtype=torch.float32)
        return tensor.copy_(pixels.permute(2, 0, 1)).div_(255), target

    def __repr__(self):
        return "ToTensor()"


class Normalize(object):
    """Subtracts a mean and divides by a standard deviation, per channel.

    Args:
        mean (sequence[float]): three values, in the order and range that the network sees.
        std (sequence[float]): three values.
        to_bgr255 (bool): first turn RGB in 0 .. 1 into BGR in 0 .. 255.
    """

    def __init__(self, mean, std, to_bgr255=True):
        self.mean = mean
        self.std = std
        self.to_bgr255 = to_bgr255

    def __call__(self, image, target=None):
        """Normalised (image, target), or the image alone if there is no target; image: float32 [3, h, w], RGB."""
        # In place on a copy: one pass over memory per step.
        image = image[[2, 1, 0]].mul_(255) if self.to_bgr255 else image.clone()
        image.sub_(torch.tensor(self.mean, dtype=image.dtype, device=image.device).reshape(-1, 1, 1))
        if any(value != 1 for value in self.std):
            image.div_(torch.tensor(self.std, dtype=image.dtype, device=image.device).reshape(-1, 1, 1))
        if target is None:
            return image
        return image, target

    def __repr__(self):
        return "Normalize(mean={}, std={}, to_bgr255={})".format(self.mean, self.std, self.to_bgr255)
