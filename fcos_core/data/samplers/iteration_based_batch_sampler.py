"""Batches for a number of iterations instead of epochs."""
from torch.utils.data.sampler import BatchSampler

from ..seeding import SeededIndex, mix_seed


class IterationBasedBatchSampler(BatchSampler):
    """Passes over a batch sampler again and again until a number of iterations is reached.

    Before each pass `set_epoch(iteration)` is called on the underlying sampler, if it has that method.

    Args:
        batch_sampler: the batches of one pass.
        num_iterations (int): iteration to stop at, counted from 0, also when starting later.
        start_iter (int): iteration to start at.
        fast_forward (bool): start with the batch that iteration start_iter has in a run from 0, by going through the
            indices (not the images) of the earlier ones.  False is the behaviour of the ancestors: a fresh pass.
        seed (int | None): if given, indices come as `SeededIndex`, with a seed from (seed, iteration, first_position +
            place in the batch).
        first_position (int): place of this process's first sample in the batch of all processes.
    """

    def __init__(self, batch_sampler, num_iterations, start_iter=0, fast_forward=False, seed=None, first_position=0):
        self.batch_sampler = batch_sampler
        self.num_iterations = num_iterations
        self.start_iter = start_iter
        self.fast_forward = fast_forward
        self.seed = seed
        self.first_position = first_position

    def __iter__(self):
        iteration = 0 if self.fast_forward else self.start_iter
        while iteration < self.num_iterations:
            sampler = getattr(self.batch_sampler, "sampler", None)
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(iteration)
            before = iteration
            for batch in self.batch_sampler:
                if iteration >= self.num_iterations:
                    break
                if iteration >= self.start_iter:
                    yield self._seed_batch(batch, iteration)
                iteration += 1
            if iteration == before:
                raise ValueError(
                    "IterationBasedBatchSampler: expected batch_sampler to yield at least one batch, got none; "
                    "the data set is empty, or every batch was dropped as uneven"
                )

    def _seed_batch(self, batch, iteration):
        if self.seed is None:
            return batch
        return [SeededIndex(index, mix_seed(self.seed, iteration, self.first_position + place))
                for place, index in enumerate(batch)]

    def __len__(self):
        return self.num_iterations
