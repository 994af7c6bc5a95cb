"""The part of the data that one process works on."""
import torch
from torch.utils.data.sampler import Sampler

from fcos_core.utils import comm


class DistributedSampler(Sampler):
    """Deals the data set out to the processes: each gets a contiguous part of one common order.

    The order is a random permutation that depends on the seed and on the epoch only, padded from its own start to a
    multiple of the number of processes, so that all have the same amount of work.  With one replica this is simply a
    reproducible shuffle.

    Args:
        dataset: anything with a length.
        num_replicas (int): number of processes; None asks torch.distributed (1 without it).
        rank (int): number of this process; None asks torch.distributed (0 without it).
        shuffle (bool): permute; otherwise the order of the data set.
        seed (int): >= 0; 0 gives the permutations that the ancestors drew.
    """

    def __init__(self, dataset, num_replicas=None, rank=None, shuffle=True, seed=0):
        self.dataset = dataset
        self.num_replicas = comm.get_world_size() if num_replicas is None else num_replicas
        self.rank = comm.get_rank() if rank is None else rank
        if not 0 <= self.rank < self.num_replicas:
            raise ValueError(
                "DistributedSampler: expected rank in 0 .. num_replicas - 1 = {}, got {}; "
                "pass both or neither".format(self.num_replicas - 1, self.rank)
            )
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.num_samples = -(-len(dataset) // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self):
        count = len(self.dataset)
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed((self.epoch + 1000003 * self.seed) % 2 ** 63)
            order = torch.randperm(count, generator=generator).tolist()
        else:
            order = list(range(count))
        first = self.num_samples * self.rank
        # Modulo instead of appending the start once: there may be more processes than images.
        return iter([order[i % count] for i in range(first, first + self.num_samples)])

    def __len__(self):
        return self.num_samples

    def set_epoch(self, epoch):
        """Choose the permutation of the next pass."""
        self.epoch = epoch
