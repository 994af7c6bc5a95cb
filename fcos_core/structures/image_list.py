"""`ImageList`: a batch of images of different sizes in one zero-padded tensor."""
import torch


class ImageList(object):
    """Padded images and their true sizes.

    Args:
        tensors: [N, C, H, W], image n in its upper left corner, zeros to the right and below.
        image_sizes: list of N pairs (height, width) in pixels, before padding.
    """

    def __init__(self, tensors, image_sizes):
        self.tensors = tensors
        self.image_sizes = image_sizes

    def to(self, *args, **kwargs):
        """Copy with the tensor moved or cast; arguments as for `torch.Tensor.to`."""
        return ImageList(self.tensors.to(*args, **kwargs), self.image_sizes)

    def pin_memory(self):
        """Copy in page-locked memory, so that `to(..., non_blocking=True)` overlaps; called by torch's DataLoader."""
        return ImageList(self.tensors.pin_memory(), self.image_sizes)

    def __len__(self):
        return len(self.image_sizes)


def to_image_list(tensors, size_divisible=0):
    """Batch images by padding them with zeros at the right and at the bottom.

    Args:
        tensors: an ImageList (returned as it is), a list or tuple of [C, H, W] tensors, one [C, H, W] tensor, or a
            batch [N, C, H, W].
        size_divisible: pad height and width up to a multiple of this many pixels (the largest stride of the network);
            0: only up to the largest image.

    Returns:
        ImageList whose image_sizes are (height, width) before padding.

    Raises:
        TypeError: another type.
        ValueError: no images, or images of different channel numbers.
    """
    if isinstance(tensors, ImageList):
        return tensors
    if isinstance(tensors, torch.Tensor):
        batch = tensors if tensors.dim() == 4 else tensors[None]
        if batch.dim() != 4:
            raise ValueError(f"to_image_list: expected a tensor [C, H, W] or [N, C, H, W], got {list(tensors.shape)}")
        height, width = batch.shape[-2:]
        if _round_up(height, size_divisible) == height and _round_up(width, size_divisible) == width:
            return ImageList(batch, [(height, width)] * len(batch))
        tensors = batch.unbind(0)
    if not isinstance(tensors, (list, tuple)):
        raise TypeError(
            f"to_image_list: expected a tensor, a list of tensors or an ImageList, got {type(tensors).__name__}"
        )
    return _pad_and_stack(tensors, size_divisible)


def _pad_and_stack(images, size_divisible):
    if not images or any(image.dim() != 3 or image.shape[0] != images[0].shape[0] for image in images):
        raise ValueError(
            "to_image_list: expected at least one image [C, H, W] and the same C in all, "
            f"got shapes {[list(image.shape) for image in images]}"
        )
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height = _round_up(max(h for h, _ in sizes), size_divisible)
    width = _round_up(max(w for _, w in sizes), size_divisible)
    batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    for slot, image, (h, w) in zip(batch, images, sizes):
        slot[:, :h, :w].copy_(image)
    return ImageList(batch, sizes)


def _round_up(size, divisor):
    return -(-size // divisor) * divisor if divisor > 0 else size
