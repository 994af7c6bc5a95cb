"""Batches of images of similar shape."""
from torch.utils.data.sampler import BatchSampler


class GroupedBatchSampler(BatchSampler):
    """Makes batches whose members belong to the same group, as close as possible to the order of the sampler.

    Within a group the order is the sampler's; the batches follow each other in the order of their first members.

    Args:
        sampler: iterable of indices into the data set; it may cover a part of it.
        group_ids (sequence[int]): group of every image of the data set.
        batch_size (int): >= 1.
        drop_uneven (bool): leave out batches that are smaller than batch_size.
    """

    def __init__(self, sampler, group_ids, batch_size, drop_uneven=False):
        self.sampler = sampler
        self.group_ids = [int(group) for group in group_ids]
        self.batch_size = batch_size
        self.drop_uneven = drop_uneven
        self._prepared = None

    def _batches(self):
        batches, open_batch = [], {}
        for index in self.sampler:
            group = self.group_ids[index]
            batch = open_batch.get(group)
            if batch is None:
                # Entered when it is opened, hence sorted by first member.
                batch = open_batch[group] = []
                batches.append(batch)
            batch.append(index)
            if len(batch) == self.batch_size:
                del open_batch[group]
        if self.drop_uneven:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        return batches

    def __iter__(self):
        # The batches that were counted by len() are the ones that come next, even if the sampler is random.
        batches, self._prepared = self._prepared or self._batches(), None
        return iter(batches)

    def __len__(self):
        if self._prepared is None:
            self._prepared = self._batches()
        return len(self._prepared)
