"""Ranks on pictures made by hand, and captions that depend on the records alone."""

import pytest
import torch
from tiny import make_record

from latentflow.data.records import Record
from latentflow.evaluation import retrieval


def record(number: int, caption: str = "", split: str = "train") -> Record:
    return make_record(f"id{number:03d}", caption or f"caption {number}", split)


def grey(*levels: int) -> torch.Tensor:
    """Uniformly grey 32x32 pictures."""
    return torch.tensor(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)


def test_rank_and_nearest_on_grey_pictures():
    real = retrieval.features(grey(0, 50, 100, 150, 200))
    table = [record(number) for number in range(5)]
    right = retrieval.right_ones([table[0], table[3]], table)
    drawn = retrieval.features(grey(10, 90, 160, 0)).reshape(2, 2, -1)
    found = retrieval.retrieve(drawn, real, right)
    # 90 is nearer to 100, 50 than to 0 (rank 4 behind 100, 50, 150); 0 is farther from 150 than from 0, 50, 100.
    assert found.rank.tolist() == [[1, 4], [1, 4]]
    assert found.nearest.tolist() == [[0, 2], [3, 0]]
    assert found.top(1).mean == 0.5
    assert found.top(5).mean == 1


def test_pictures_equal_to_the_right_one_do_not_push_it_back():
    real = retrieval.features(grey(70, 70, 70, 200))
    table = [record(number) for number in range(4)]
    found = retrieval.retrieve(retrieval.features(grey(71))[None], real, retrieval.right_ones([table[2]], table))
    assert found.rank.item() == 1


def test_any_picture_of_the_asked_caption_is_right():
    table = [record(0, "cat"), record(1, "dog"), record(2, "cat", "test")]
    right = retrieval.right_ones([table[0]], table)
    assert right.tolist() == [[True, False, True]]
    real = retrieval.features(grey(0, 100, 200))
    assert retrieval.retrieve(retrieval.features(grey(190))[None], real, right).rank.item() == 1


def test_detail_finer_than_the_grid_is_not_seen():
    checker = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 254
    picture = checker.to(torch.uint8).expand(1, 3, 32, 32)
    torch.testing.assert_close(retrieval.features(picture), retrieval.features(grey(127)))


def test_chance_is_what_guessing_reaches():
    one = retrieval.right_ones([record(3)], [record(number) for number in range(100)])
    assert retrieval.chance(one, 5) == pytest.approx(0.05)
    both = torch.zeros(1, 100, dtype=torch.bool)
    both[0, :2] = True
    assert retrieval.chance(both, 1) == pytest.approx(0.02)
    assert retrieval.chance(one[:, :4], 5) == 1
