import itertools
import pickle

import pytest

from fcos_core.data.samplers import DistributedSampler, GroupedBatchSampler, IterationBasedBatchSampler

from .golden import GOLDEN

G = GOLDEN.meta["sampler"]


class Order(object):
    """A sampler over a given order that records its epochs; with `shift` it turns the order by the epoch."""

    def __init__(self, order, shift=False):
        self.order, self.shift, self.epoch, self.epochs = order, shift, 0, []

    def set_epoch(self, epoch):
        self.epoch = epoch
        self.epochs.append(epoch)

    def __iter__(self):
        turn = self.epoch % len(self.order) if self.shift else 0
        return iter(self.order[turn:] + self.order[:turn])

    def __len__(self):
        return len(self.order)


def grouped(size, drop=False, order=None):
    return GroupedBatchSampler(Order(order or G["order"]), G["group_ids"], size, drop)


@pytest.mark.parametrize("size, drop", list(itertools.product((2, 4), (False, True))))
def test_grouped_batches_equal_the_recorded_ones(size, drop):
    sampler = grouped(size, drop)
    want = G["grouped_b{}_drop{}".format(size, int(drop))]
    assert list(sampler) == want
    assert len(sampler) == len(want)
    assert list(sampler) == want  # the batches that len() prepared
    assert list(sampler) == want


def test_grouped_batches_of_a_part_of_the_data():
    assert list(grouped(2, order=G["subset_order"])) == G["grouped_subset_b2"]


def test_groups_are_never_mixed():
    for batch in grouped(4):
        assert len({G["group_ids"][index] for index in batch}) == 1


def test_counted_batches_are_the_ones_that_come():
    sampler = GroupedBatchSampler(Order(list(range(7)), shift=True), [0] * 7, 2)
    count = len(sampler)
    assert len(list(sampler)) == count == 4


@pytest.mark.parametrize("count, start", [(10, 0), (10, 4), (3, 0)])
def test_iterations_equal_the_recorded_ones(count, start):
    sampler = IterationBasedBatchSampler(grouped(4), count, start)
    assert list(sampler) == G["iter_n{}_start{}".format(count, start)]
    assert len(sampler) == count


def test_set_epoch_is_called_with_the_iteration_of_each_pass():
    order = Order(list(range(6)))
    list(IterationBasedBatchSampler(GroupedBatchSampler(order, [0] * 6, 2), 8))
    assert order.epochs == [0, 3, 6]


@pytest.mark.parametrize("start", [0, 1, 2, 5, 6, 11, 12])
def test_fast_forward_goes_on_where_the_run_stopped(start):
    def batches(start_iter):
        groups = [0, 1, 0, 0, 1, 1, 0]
        return list(IterationBasedBatchSampler(
            GroupedBatchSampler(Order(list(range(7)), shift=True), groups, 2), 12, start_iter, fast_forward=True,
            seed=5))

    whole, rest = batches(0), batches(start)
    assert len(whole) == 12 and rest == whole[start:]
    assert [[i.seed for i in b] for b in rest] == [[i.seed for i in b] for b in whole[start:]]


def test_fast_forward_through_shuffled_epochs():
    def batches(start_iter):
        return list(IterationBasedBatchSampler(
            GroupedBatchSampler(DistributedSampler(range(11), 3, 1, seed=4), [k % 2 for k in range(11)], 2),
            20, start_iter, fast_forward=True))

    for start in (0, 3, 7, 19, 20):
        assert batches(start) == batches(0)[start:]


def test_seeds_differ_by_iteration_place_and_process():
    def seeds(first):
        sampler = IterationBasedBatchSampler([[0, 1], [0, 1]], 4, seed=0, first_position=first)
        return [index.seed for batch in sampler for index in batch]

    assert len(set(seeds(0) + seeds(2))) == 16
    assert seeds(0) == seeds(0)
    batch = next(iter(IterationBasedBatchSampler([[7]], 1, seed=3)))
    assert batch == [7] and pickle.loads(pickle.dumps(batch))[0].seed == batch[0].seed


def test_nothing_to_iterate_over_is_an_error():
    with pytest.raises(ValueError, match="at least one batch"):
        next(iter(IterationBasedBatchSampler([], 3)))


@pytest.mark.parametrize("rank, epoch", list(itertools.product(range(3), (0, 3))))
def test_distributed_order_equals_the_recorded_one(rank, epoch):
    sampler = DistributedSampler(range(11), num_replicas=3, rank=rank)
    sampler.set_epoch(epoch)
    assert list(sampler) == G["distributed_n11_r3_rank{}_epoch{}".format(rank, epoch)]
    assert len(sampler) == 4


def test_distributed_without_shuffling():
    assert list(DistributedSampler(range(11), 3, 2, shuffle=False)) == G["distributed_noshuffle_rank2"]


def test_one_replica_sees_everything_in_a_reproducible_order():
    first, again, other = (list(DistributedSampler(range(50), seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first) == sorted(other) == list(range(50))


@pytest.mark.parametrize("count, replicas", [(1, 4), (2, 7), (5, 2)])
def test_every_replica_gets_the_same_amount_and_all_get_everything(count, replicas):
    parts = [list(DistributedSampler(range(count), replicas, rank)) for rank in range(replicas)]
    assert len({len(part) for part in parts}) == 1
    assert {index for part in parts for index in part} == set(range(count))


def test_rank_outside_the_replicas():
    with pytest.raises(ValueError, match="rank"):
        DistributedSampler(range(3), num_replicas=2, rank=2)
