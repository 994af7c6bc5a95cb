"""The built-in data set: made at first use, the same everywhere, learned in minutes."""
import errno
import glob
import json
import logging
import os
import shutil

from PIL import Image

from fcos_core.build.lock import FileLock

from .coco import COCODataset
from .shapes_render import CLASSES, render

logger = logging.getLogger(__name__)

# Part of the folder name: a change of the pictures needs a new number, or old folders would be taken for new ones.
VERSION = 1
# split -> (number of pictures, seed of the first)
SPLITS = {"train": (800, 100000), "val": (100, 200000)}


class ShapesDataset(COCODataset):
    """Coloured shapes of five classes on cluttered ground: 800 pictures for training, 100 for validation.

    The pictures have sides of 192 to 320 pixels, 0 to 8 objects of 8 to 140 pixels, occlusion and truncation.

    Args:
        root (str): folder to make it in, or to find it in.
        split (str): "train" or "val".
        remove_images_without_annotations (bool): leave the pictures without objects out.
        transforms (callable | None): (image, target) -> (image, target).

    Raises:
        ValueError: unknown split.
        OSError: the folder cannot be written.
    """

    def __init__(self, root, split, remove_images_without_annotations=False, transforms=None):
        folder = make_shapes(root, split)
        super(ShapesDataset, self).__init__(
            os.path.join(folder, "instances.json"), os.path.join(folder, "images"),
            remove_images_without_annotations, transforms)


def make_shapes(root, split):
    """Make the pictures and the json file of a split unless they are there.

    Any number of processes may call this at once: one works, the others wait, and the folder appears complete or
    not at all.

    Args:
        root (str): folder that will hold the folder of the split.
        split (str): "train" or "val".

    Returns:
        str: folder with `instances.json` and `images`.
    """
    if split not in SPLITS:
        raise ValueError("make_shapes: expected split to be one of {}, got {!r}".format(sorted(SPLITS), split))
    folder = os.path.join(root, "{}_v{}".format(split, VERSION))
    if os.path.isdir(folder):
        return folder
    try:
        os.makedirs(root, exist_ok=True)
    except OSError as error:
        raise OSError("make_shapes: expected a folder that can be written, got {!r} ({}); set the environment variable "
                      "FCOS_CORE_DATA to one".format(root, error)) from error
    # The lock saves work only.  Where the file system has no locks several processes draw, and the first rename wins.
    with FileLock(folder + ".lock") as lock:
        if not os.path.isdir(folder):
            if lock.held:
                for left_over in glob.glob(glob.escape(folder) + ".*.tmp"):  # of a process that was killed
                    shutil.rmtree(left_over, ignore_errors=True)
            _make_split(folder, split)
    return folder


def _make_split(folder, split):
    count, seed = SPLITS[split]
    logger.info("Making the built-in data set shapes_%s: %d pictures in %s", split, count, folder)
    work = "{}.{}.tmp".format(folder, os.getpid())
    shutil.rmtree(work, ignore_errors=True)
    try:
        os.makedirs(os.path.join(work, "images"))
        data = {"info": {"description": "fcos_core shapes, version {}".format(VERSION)},
                "categories": [{"id": k + 1, "name": name} for k, name in enumerate(CLASSES)],
                "images": [], "annotations": []}
        for k in range(count):
            pixels, objects = render(seed + k)
            name = "{:06d}.png".format(k + 1)
            # Fast and weak compression: making the set takes seconds, reading a file is not slower.
            Image.fromarray(pixels).save(os.path.join(work, "images", name), compress_level=1)
            _enter(data, name, pixels.shape, objects)
        with open(os.path.join(work, "instances.json"), "w") as f:
            json.dump(data, f)
        _rename(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _enter(data, name, shape, objects):
    image_id = len(data["images"]) + 1
    data["images"].append({"id": image_id, "file_name": name, "height": shape[0], "width": shape[1]})
    for thing in objects:
        data["annotations"].append({
            "id": len(data["annotations"]) + 1, "image_id": image_id, "category_id": thing["label"],
            "bbox": thing["bbox"], "area": thing["area"], "iscrowd": 0})


def _rename(work, folder):
    try:
        os.rename(work, folder)
    except OSError as error:
        # Someone else was first; the contents are the same.
        if not os.path.isdir(folder) or error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.EACCES):
            raise
