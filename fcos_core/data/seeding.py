"""Random numbers of the data side that depend on nothing but the run's seed and the place of a sample in it.

The batch sampler hands out `SeededIndex` instead of plain indices; the data set runs the random transforms of a sample
inside `seeded(index.seed)`.  So an image is flipped and scaled the same way whatever the number of worker processes,
and a resumed run sees what the uninterrupted run would have seen.
"""
import contextlib
import random

import numpy as np
import torch

_MASK = 2 ** 64 - 1


class SeededIndex(int):
    """An index into a data set that carries the seed of this use of the sample.

    Args:
        index (int): position in the data set.
        seed (int): 0 <= seed < 2**32.
    """

    def __new__(cls, index, seed):
        self = super(SeededIndex, cls).__new__(cls, index)
        self.seed = seed
        return self

    def __reduce__(self):
        # int pickles by value alone and would lose the seed on the way to a worker process.
        return SeededIndex, (int(self), self.seed)


def mix_seed(*numbers):
    """Hash of a few integers to 0 .. 2**32 - 1; neighbouring inputs give unrelated outputs.

    The finaliser of SplitMix64 (Steele et al., Fast Splittable Pseudorandom Number Generators, 2014) after each number.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 32


@contextlib.contextmanager
def seeded(seed):
    """Inside, the generators of Python, numpy and torch (CPU) start from `seed`; afterwards they are as before.

    Args:
        seed (int): 0 <= seed < 2**32; None changes nothing.
    """
    if seed is None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (users' transforms draw from the global generator)
    # Not torch.manual_seed: that also seeds the GPUs, which a worker process must not touch.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
