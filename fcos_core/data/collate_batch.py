"""From a list of samples to a batch."""
from fcos_core.structures.image_list import to_image_list


class BatchCollator(object):
    """Pads the images of a batch to a common size.

    Args:
        size_divisible (int): height and width of the batch are rounded up to a multiple of this (0: not rounded).
    """

    def __init__(self, size_divisible=0):
        self.size_divisible = size_divisible

    def __call__(self, batch):
        """
        Args:
            batch (list): samples (image float32 [3, h, w], BoxList, index).

        Returns:
            tuple: ImageList (tensors [N, 3, H, W], zero-padded at the right and bottom), tuple of N BoxLists, tuple of
            N indices.
        """
        images, targets, ids = zip(*batch)
        return to_image_list(images, self.size_divisible), targets, ids


class BBoxAugCollator(object):
    """Leaves images as they come, for multi-scale testing, which resizes them itself.

    Args:
        cfg (CfgNode): what the images are for, so that whoever gets the loader can test with it; None if they know.
    """

    def __init__(self, cfg=None):
        self.cfg = cfg

    def __call__(self, batch):
        """
        Args:
            batch (list): samples (PIL image, BoxList, index).

        Returns:
            tuple: tuples of N images, N BoxLists and N indices.
        """
        images, targets, ids = zip(*batch)
        return images, targets, ids
