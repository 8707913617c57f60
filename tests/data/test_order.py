"""The order of samples as a function of (seed, epoch, position)."""

import numpy as np
import pytest

from ovsl.data.order import PositionSampler, SectionSampler, group_order, orientation_order, row_order, sample_seed

SIZES = [10, 10, 10, 7, 1, 10, 3]


@pytest.mark.parametrize("interleave", [1, 3, 16])
def test_group_order_is_a_permutation_that_keeps_few_groups_open(interleave):
    order = group_order(SIZES, seed=1, epoch=0, interleave=interleave)
    assert sorted(order) == list(range(sum(SIZES)))
    group = np.repeat(np.arange(len(SIZES)), SIZES)[order]
    first = {g: np.flatnonzero(group == g)[0] for g in range(len(SIZES))}
    last = {g: np.flatnonzero(group == g)[-1] for g in range(len(SIZES))}
    for place in range(len(order)):
        assert sum(first[g] <= place <= last[g] for g in first) <= interleave


def test_group_order_mixes_groups_in_turn():
    order = group_order([8] * 6, seed=0, epoch=0, interleave=3)
    groups = order // 8
    for place in range(0, 24, 3):
        assert len(set(groups[place : place + 3])) == 3


@pytest.mark.parametrize("make", [lambda s, e: row_order(50, s, e), lambda s, e: group_order(SIZES, s, e, 3)])
def test_order_depends_on_seed_and_epoch_and_on_nothing_else(make):
    np.testing.assert_array_equal(make(3, 1), make(3, 1))
    assert make(3, 1).tolist() != make(3, 2).tolist()
    assert make(3, 1).tolist() != make(4, 1).tolist()


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("first", [0, 1])
def test_batches_of_one_orientation_are_those_of_two_queues(batch, first):
    portrait = np.random.default_rng(0).random(53) < 0.3
    order = row_order(53, 1, 0)
    queues, expected, rest = {True: [], False: []}, list(order[:first]), []
    for row in order[first:]:
        queue = queues[bool(portrait[row])]
        queue.append(row)
        if len(queue) == batch:
            expected += queue
            queue.clear()
    rest = [row for row in order[first:] if row in queues[True] + queues[False]]
    assert orientation_order(order, portrait, batch, first).tolist() == expected + rest


def test_sample_seeds_differ_by_seed_epoch_and_index():
    seeds = {sample_seed(s, e, i) for s in range(4) for e in range(4) for i in range(100)}
    assert len(seeds) == 1600


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_training_positions_do_not_depend_on_the_number_of_processes(world_size):
    batch = 8 // world_size
    samplers = [PositionSampler(lambda: 40, batch, 5, rank, world_size) for rank in range(world_size)]
    steps = zip(*samplers, strict=True)
    positions = [first + offset for step in steps for first in step for offset in range(batch)]
    assert positions == list(range(40, 80))


def test_position_sampler_asks_for_the_start_at_every_epoch():
    consumed = 0
    sampler = PositionSampler(lambda: consumed, batch_size=2, steps=3)
    assert list(sampler) == [0, 2, 4]
    consumed = 6
    assert list(sampler) == [6, 8, 10]


@pytest.mark.parametrize("rows", [1, 13, 16])
@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_sections_cover_every_row_once_and_keep_workers_on_their_part(rows, batch_size, workers, world_size):
    samplers = [SectionSampler(rows, batch_size, workers, rank, world_size) for rank in range(world_size)]
    seen = [row for sampler in samplers for batch in sampler for row in batch]
    assert sorted(seen) == list(range(rows))
    sizes = [sum(map(len, sampler)) for sampler in samplers]
    assert max(sizes) - min(sizes) <= 1
    for sampler in samplers:
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for worker in range(max(1, workers)):
            own = [row for batch in batches[worker :: max(1, workers)] for row in batch]
            assert own == list(range(own[0], own[0] + len(own))) if own else True
