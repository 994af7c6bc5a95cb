"""A random choice of positives and negatives with a fixed share, as anchor-based losses without focal loss need it."""
import torch


class BalancedPositiveNegativeSampler(object):
    """Choose locations of each image to learn from.

    Args:
        batch_size_per_image: locations chosen of each image.
        positive_fraction: largest share of positives; what is missing is filled with negatives.
    """

    def __init__(self, batch_size_per_image, positive_fraction):
        self.batch_size_per_image = batch_size_per_image
        self.positive_fraction = positive_fraction

    def __call__(self, matched_idxs):
        """Choose.

        Args:
            matched_idxs: list of N tensors [R]: >= 1 positive, 0 negative, below: neither.

        Returns:
            Two lists of N tensors bool [R]: the positives and the negatives that were chosen.
        """
        positives, negatives = [], []
        for labels in matched_idxs:
            positive = torch.nonzero(labels >= 1, as_tuple=True)[0]
            negative = torch.nonzero(labels == 0, as_tuple=True)[0]
            num_positive = min(int(self.batch_size_per_image * self.positive_fraction), len(positive))
            num_negative = min(self.batch_size_per_image - num_positive, len(negative))
            positives.append(_some(labels, positive, num_positive))
            negatives.append(_some(labels, negative, num_negative))
        return positives, negatives


def _some(labels, index, count):
    """Mask bool [R] with `count` random ones of the places `index`."""
    chosen = index[torch.randperm(len(index), device=index.device)[:count]]
    return torch.zeros_like(labels, dtype=torch.bool).index_fill_(0, chosen, True)
