"""The order of training: a function of (seed, step) that visits every row, bucket by bucket, window by window."""

import pytest
import torch

from latentflow.data.order import Order
from latentflow.devices import step_generator


def drawn(order: Order, steps: range) -> list[tuple[int, list[int]]]:
    return [(bucket, rows.tolist()) for bucket, rows in map(order.at, steps)]


def rows_of(order: Order, bucket: int, steps: range) -> list[int]:
    return [row for found, rows in drawn(order, steps) if found == bucket for row in rows]


def test_one_bucket_is_a_permutation_per_epoch_cut_into_batches() -> None:
    epochs = [torch.randperm(20, generator=step_generator(7, "order", epoch)) for epoch in range(3)]
    wanted = torch.cat(epochs).split(8)
    order = Order(7, 8, ((12, 8),))
    for step in range(7):
        bucket, rows = order.at(step)
        assert bucket == 0
        assert torch.equal(rows, wanted[step])


@pytest.mark.parametrize("window", [0, 1, 2, 5, 99])
def test_any_step_can_be_asked_first(window: int) -> None:
    counts = ((5, 3, 9, 4), (2, 2), (30,))
    whole = drawn(Order(3, 6, counts, window), range(60))
    for step in (59, 17, 40, 0):
        assert drawn(Order(3, 6, counts, window), range(step, step + 1)) == whole[step : step + 1]


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_an_epoch_visits_every_row_once_and_another_epoch_in_another_order(window: int) -> None:
    order = Order(0, 7, ((7, 7, 14, 7),), window)
    first, second = (rows_of(order, 0, steps) for steps in (range(5), range(5, 10)))
    assert sorted(first) == sorted(second) == list(range(35))
    assert first != second


def test_buckets_take_turns_in_proportion_and_each_goes_through_its_own_epochs() -> None:
    order = Order(1, 4, ((40,), (20,), (1,)))
    turns = [bucket for bucket, _ in drawn(order, range(160))]
    assert [turns.count(bucket) for bucket in range(3)] == [100, 50, 10]
    assert turns[:16] != turns[16:32]
    assert sorted(rows_of(order, 0, range(16))) == list(range(40))
    assert sorted(rows_of(order, 1, range(16))) == list(range(20))
    assert rows_of(order, 2, range(16)) == [0] * 4


def test_batches_of_one_bucket_follow_one_another_whatever_came_between() -> None:
    order, alone = Order(1, 4, ((10,), (12,))), Order(1, 4, ((10,),))
    assert rows_of(order, 0, range(40))[:60] == rows_of(alone, 0, range(15))


def test_a_window_needs_its_shards_alone() -> None:
    shards, size, window = 12, 100, 3
    order = Order(5, 10, ((size,) * shards,), window)
    rows = torch.tensor(rows_of(order, 0, range(shards * size // 10)))
    windows = [set((part // size).tolist()) for part in rows.split(window * size)]
    assert [len(part) for part in windows] == [window] * 4
    assert set.union(*windows) == set(range(shards))
    assert windows[0] != {0, 1, 2}
    assert order.horizon == 30
    inside = rows[: window * size]
    assert inside.tolist() != inside.sort().values.tolist()
    assert len({row // size for row in inside[:20].tolist()}) == window


def test_another_seed_is_another_order() -> None:
    assert drawn(Order(0, 8, ((64,),)), range(8)) != drawn(Order(1, 8, ((64,),)), range(8))


def test_a_batch_larger_than_its_bucket_wraps_around() -> None:
    _, rows = Order(0, 10, ((4,),)).at(0)
    assert sorted(rows[:4].tolist()) == sorted(rows[4:8].tolist()) == [0, 1, 2, 3]
