"""Kernel distances: torchmetrics' values, no bias however captions repeat, intervals that cover; CMMD's formula."""

import math

import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from latentflow.evaluation.kernels import GROUPS, Occurrence, cmmd, groups_of, kernel_distance


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_picture_per_caption_is_torchmetrics_kid():
    first, second = normal(700, 16), normal(700, 16, seed=1) * 1.2 + 0.1
    found = kernel_distance(first, second[:, None])
    assert found.value == pytest.approx(poly_mmd(first, second).item(), rel=1e-9)
    assert len(found.by_group) == GROUPS


def test_it_is_unbiased_also_for_unequal_sizes():
    found = [kernel_distance(normal(60, 8, seed=s), normal(20, 1, 8, seed=1000 + s)).value for s in range(100)]
    mean, error = sum(found) / 100, torch.tensor(found).std().item() / math.sqrt(100)
    assert abs(mean) < 3 * error
    assert min(found) < 0  # An estimate that is never negative would be biased.


def occurrence(counts: list[int], chances: list[float], asked: torch.Tensor) -> Occurrence:
    return Occurrence(torch.tensor(counts), torch.tensor(chances, dtype=torch.float64), asked)


def clustered(captions: torch.Tensor, seed: int) -> torch.Tensor:
    """One picture per caption number: its cluster's centre and noise."""
    return normal(10, 6, seed=99)[captions] * 2 + normal(len(captions), 6, seed=seed)


def test_few_captions_that_repeat_are_no_bias():
    """Ten captions with many pictures each, as in a labelled set: drawn like the data, the distance is 0 on average."""
    found, naive = [], []
    captions = torch.arange(10)
    for trial in range(50):
        real = clustered(torch.arange(400) % 10, seed=2 * trial)
        drawn = clustered(captions.repeat_interleave(8), seed=2 * trial + 1).unflatten(0, (10, 8))
        found.append(kernel_distance(real, drawn, occurrence([40] * 10, [1.0] * 10, torch.arange(400) % 10)).value)
        naive.append(kernel_distance(real, drawn[:, :1]).value)
    assert abs(sum(found) / 50) < 3 * torch.tensor(found).std().item() / math.sqrt(50)
    # With a single picture of each no pair shares a caption, though a tenth of the real pairs do.
    assert sum(naive) / 50 < -5 * torch.tensor(naive).std().item() / math.sqrt(50)


def test_frequent_captions_count_as_often_as_they_occur():
    """Two captions, one nine times as frequent: weights make up for drawing both equally often."""
    shift = torch.tensor([0.0, 3.0])[:, None, None]
    found = []
    for trial in range(100):
        rare = (torch.arange(200) % 10 == 0).double()[:, None] * 3
        real = normal(200, 4, seed=3 * trial) + rare
        drawn = normal(2, 20, 4, seed=3 * trial + 1) + shift
        found.append(
            kernel_distance(real, drawn, occurrence([180, 20], [1, 1], (torch.arange(200) % 10 == 0).long())).value
        )
    assert abs(sum(found) / 100) < 3 * torch.tensor(found).std().item() / math.sqrt(100)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    # The expectation of the polynomial kernel between two standard normals that are 0.5 apart, by a large sample.
    real = normal(500, 4, seed=1)
    truth = kernel_distance(real, normal(4000, 4, seed=2)[:, None] + 0.5).value
    covered = 0
    for trial in range(100):
        found = kernel_distance(real, normal(100, 2, 4, seed=10 + trial) + 0.5)
        covered += abs(found.value - truth) <= (found.half_width or 0)
    assert 0.88 <= covered / 100 <= 1


def test_captions_that_were_sampled_stand_for_the_others():
    """Many captions of one record each and one of many records: a sample of the records is unbiased as well."""
    found = []
    generator = torch.Generator().manual_seed(5)
    for trial in range(60):
        frequent = torch.rand(300, generator=generator) < 0.5
        centres = normal(300, 3, seed=1000 + trial)
        centres[frequent] = 2.0
        real = centres + normal(300, 3, seed=2000 + trial)
        chosen = torch.randperm(300, generator=generator)[:30]
        rare = chosen[~frequent[chosen]]
        asked = torch.cat([centres[rare], torch.full((1, 3), 2.0, dtype=torch.float64)])[:, None]
        drawn = asked + normal(len(asked), 3, 3, seed=3000 + trial)
        counts = [1] * len(rare) + [int(frequent.sum())]
        place_of = {int(row): place for place, row in enumerate(rare)}
        asked = torch.tensor([place_of.get(row, len(rare) if frequent[row] else -1) for row in range(300)])
        known = occurrence(counts, [1 - 0.9**count for count in counts], asked)
        found.append(kernel_distance(real, drawn, known).value)
    assert abs(sum(found) / 60) < 3 * torch.tensor(found).std().item() / math.sqrt(60)


def test_groups_are_captions_unless_there_are_more_seeds():
    assert groups_of(100, 2)[65].tolist() == [1, 1]
    assert groups_of(3, 5).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_a_jackknife_of_pictures_averages_to_the_estimate():
    found = kernel_distance(normal(50, 5), normal(40, 5, seed=1)[:, None])
    assert sum(found.by_group) / len(found.by_group) == pytest.approx(found.value, rel=1e-9)


def test_two_captions_are_too_few_for_an_interval():
    found = kernel_distance(normal(50, 5), normal(2, 1, 5, seed=1))
    assert (found.half_width, found.by_group) == (None, [])


def test_cmmd_is_the_published_formula():
    first, second = (torch.nn.functional.normalize(normal(n, 12, seed=n), dim=1) for n in (30, 20))

    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return sum(math.exp(-((x - y) ** 2).sum().item() / 200) for x in a for y in b) / (len(a) * len(b))

    wanted = 1000 * (mean(first, first) + mean(second, second) - 2 * mean(first, second))
    assert cmmd(first, second) == pytest.approx(wanted, rel=1e-9)
    assert cmmd(first, first) == pytest.approx(0, abs=1e-9)
