"""Pictures and annotations to put into small data sets."""
import numpy as np
from PIL import Image


def picture(width, height, seed=0):
    """A PIL picture of random pixels."""
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)  # noqa: NPY002
    return Image.fromarray(pixels)


def box(image_id, bbox, category_id=1, **more):
    """A COCO annotation."""
    return dict(image_id=image_id, bbox=bbox, category_id=category_id, **more)
