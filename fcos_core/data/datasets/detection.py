"""What the data sets have in common: reading images, bad images, seeded transforms."""
import logging

import torch
from PIL import Image, ImageOps

from fcos_core.structures.bounding_box import BoxList

from ..seeding import seeded

logger = logging.getLogger(__name__)


class ImageReadError(RuntimeError):
    """An image is missing or cannot be decoded; the message names the file."""


def read_image(path):
    """Decode an image file.

    Args:
        path (str): any format that Pillow knows.

    Returns:
        PIL.Image.Image: mode RGB.

    Raises:
        ImageReadError: the file is missing, truncated or no image.
    """
    try:
        with open(path, "rb") as f:
            with Image.open(f) as image:
                return image.convert("RGB")
    except FileNotFoundError:
        cause = "there is no such file"
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others.
        cause = "{}: {}".format(type(error).__name__, error)
    raise ImageReadError("read_image: expected a readable image, got {!r} ({})".format(path, cause))


def image_size(path):
    """(width, height) from the header of an image file.

    Raises:
        ImageReadError: the file is missing or no image.
    """
    try:
        with open(path, "rb") as f:
            with Image.open(f) as image:
                return image.size
    except Exception as error:
        raise ImageReadError("image_size: expected an image, got {!r} ({}: {})".format(
            path, type(error).__name__, error)) from error


class DetectionDataset(torch.utils.data.Dataset):
    """Base of the data sets; a subclass says what is where, this class does the reading.

    A subclass has `__len__`, `image_path(i)`, `image_name(i)`, `get_img_info(i)` and `get_target(i)`.

    Args:
        transforms (callable | None): (image, target) -> (image, target).

    Attributes:
        categories (list[str]): names of the classes; label k is categories[k - 1].
        has_annotations (bool): False if there is nothing to train on or to score against.
    """

    categories = ()
    has_annotations = True

    def __init__(self, transforms=None):
        self._transforms = transforms
        self._on_bad_image = "raise"
        self._bad = None
        self._warned_size = False

    def handle_bad_images(self, action):
        """Choose what happens with an image that is missing or cannot be decoded.

        Args:
            action (str): "raise": ImageReadError.  "replace": the next good image takes its place (for training).
                "blank": a black image takes its place (for testing, where every image has one result; its objects
                count as not found).  The latter two warn once per file and count, see `num_bad_images`.
        """
        if action not in ("raise", "replace", "blank"):
            raise ValueError("handle_bad_images: expected raise, replace or blank, got {!r}".format(action))
        self._on_bad_image = action
        if action != "raise" and self._bad is None:
            # In shared memory, because worker processes find the bad images and the main process wants the number.
            self._bad = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    @property
    def num_bad_images(self):
        """Number of different images that could not be read so far, in all worker processes."""
        return 0 if self._bad is None else int(self._bad.sum())

    def image_path(self, index):
        """Path of image number `index`."""
        raise TypeError("image_path: expected {} to define it, got none".format(type(self).__name__))

    def get_target(self, index):
        """BoxList of image number `index`, mode xyxy, with the int64 field `labels`."""
        raise TypeError("get_target: expected {} to define it, got none".format(type(self).__name__))

    def __getitem__(self, index):
        """
        Args:
            index (int | SeededIndex): the latter fixes the random numbers that the transforms draw.

        Returns:
            tuple: image (as the transforms leave it, a PIL image without them), BoxList, index of the image (int).

        Raises:
            ImageReadError: see `handle_bad_images`.
        """
        if not -len(self) <= index < len(self):
            raise IndexError("{}: expected an index below {}, got "
                             "{}".format(type(self).__name__, len(self), int(index)))
        image, target, used = self._sample(int(index) % len(self))
        if self._transforms is not None:
            with seeded(getattr(index, "seed", None)):
                image, target = self._transforms(image, target)
        return image, target, used

    def _sample(self, first):
        for step in range(len(self)):
            index = (first + step) % len(self)
            try:
                return self._read(index) + (index,)
            except ImageReadError as error:
                if self._on_bad_image == "raise":
                    raise ImageReadError(
                        "{}; repair it, take it out of the annotations, or set DATALOADER.SKIP_BAD_IMAGES True to go "
                        "on without it".format(error)) from error
                self._note_bad(index, error)
                if self._on_bad_image == "blank":
                    info = self.get_img_info(index)
                    return Image.new("RGB", (info["width"], info["height"])), self.get_target(index), index
        raise ImageReadError(
            "{}: expected at least one readable image, got none of {}; check the image folder: {!r}".format(
                type(self).__name__, len(self), self.image_path(first)))

    def _note_bad(self, index, error):
        if not self._bad[index]:
            self._bad[index] = 1
            instead = "another image takes its place" if self._on_bad_image == "replace" else "taken as a black image"
            logger.warning("%s; %s (%d bad so far)", error, instead, self.num_bad_images)

    def _read(self, index):
        image = read_image(self.image_path(index))
        info = self.get_img_info(index)
        stated = (info["width"], info["height"])
        target = self.get_target(index)
        if image.size != stated:
            image, target = self._reconcile(index, image, target, stated)
        return image, target

    def _reconcile(self, index, image, target, stated):
        """The annotations state another size than the file has."""
        # Tools that obey the camera's orientation tag annotate the turned picture.
        turned = ImageOps.exif_transpose(image)
        if turned.size == stated:
            return turned, target
        if not self._warned_size:
            self._warned_size = True
            logger.warning(
                "%s: %s is %d x %d pixels, the annotations say %d x %d; boxes are cut to the real size (further images "
                "like this are not "
                "reported)", type(self).__name__, self.image_name(index), image.size[0], image.size[1],
                stated[0], stated[1])
        resized = BoxList(target.bbox.clone(), image.size, mode="xyxy")
        for field in target.fields():
            resized.add_field(field, target.get_field(field))
        return image, resized.clip_to_image(remove_empty=True)
