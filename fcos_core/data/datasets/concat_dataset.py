"""Several data sets one after the other."""
import bisect

from torch.utils.data.dataset import ConcatDataset as _ConcatDataset

from ..seeding import SeededIndex


class ConcatDataset(_ConcatDataset):
    """Data sets joined to one, for training on all of them; the index counts through."""

    @property
    def categories(self):
        """Class names, those of the first part that has any (`build_dataset` made sure that all agree)."""
        return next((part.categories for part in self.datasets if part.categories), [])

    @property
    def has_annotations(self):
        """False if no part has any."""
        return any(getattr(part, "has_annotations", True) for part in self.datasets)

    @property
    def num_bad_images(self):
        """Number of different images that could not be read so far."""
        return sum(getattr(part, "num_bad_images", 0) for part in self.datasets)

    def get_idxs(self, idx):
        """(number of the part, index in it) of the sample with the running index idx."""
        part = bisect.bisect_right(self.cumulative_sizes, idx)
        return part, idx - (self.cumulative_sizes[part - 1] if part else 0)

    def __getitem__(self, idx):
        """(image, target, running index) of a sample."""
        if not -len(self) <= idx < len(self):
            raise IndexError("ConcatDataset: expected an index below {}, got {}".format(len(self), int(idx)))
        part, inner = self.get_idxs(int(idx) % len(self))
        seed = getattr(idx, "seed", None)
        image, target, used = self.datasets[part][inner if seed is None else SeededIndex(inner, seed)]
        # Where a bad image was replaced, `used` is not `inner`.
        return image, target, int(used) + (self.cumulative_sizes[part - 1] if part else 0)

    def get_img_info(self, idx):
        """dict with at least `height` and `width` of a sample."""
        part, inner = self.get_idxs(idx)
        return self.datasets[part].get_img_info(inner)

    def image_name(self, idx):
        """Name of the image of a sample, for messages."""
        part, inner = self.get_idxs(idx)
        return self.datasets[part].image_name(inner)
