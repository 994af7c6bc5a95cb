import copy
import pickle
import random

import numpy as np
import pytest
import torch

from fcos_core.data.seeding import SeededIndex, mix_seed, seeded


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def test_inside_the_numbers_depend_on_the_seed_only():
    with seeded(7):
        first = draw()
    draw()
    with seeded(7):
        assert draw() == first
    with seeded(8):
        assert all(a != b for a, b in zip(draw(), first))


def test_outside_the_generators_go_on_as_if_nothing_had_happened():
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    want = [draw(), draw()]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    got = [draw()]
    with pytest.raises(KeyError), seeded(1):
        draw()
        raise KeyError
    got.append(draw())
    assert got == want


def test_none_leaves_the_generators_alone():
    random.seed(3)
    want = random.random()
    random.seed(3)
    with seeded(None):
        assert random.random() == want


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_seeded_index_is_an_index_and_keeps_its_seed(clone):
    index = clone(SeededIndex(5, 17))
    assert index == 5 and [10, 11, 12, 13, 14, 15][index] == 15 and hash(index) == hash(5) and index.seed == 17


def test_mixed_seeds_fit_numpy_and_spread():
    values = [mix_seed(a, b, c) for a in range(8) for b in range(32) for c in range(8)]
    assert len(set(values)) == len(values)
    assert 0 <= min(values) and max(values) < 2 ** 32
    bits = np.unpackbits(np.array(values, ">u4").view(np.uint8).reshape(-1, 4), axis=1).mean(0)
    assert bits.min() > 0.45 and bits.max() < 0.55
    assert mix_seed(1, 2) != mix_seed(2, 1) != mix_seed(2, 1, 0)
    assert mix_seed(2 ** 70) == mix_seed(2 ** 70 % 2 ** 64)
