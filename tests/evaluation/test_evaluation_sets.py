"""Precision and recall, memorisation, diversity, and the plan behind them: on features and records made by hand."""

import math
import random

import pytest
import torch
from tiny import make_record

from latentflow.data.records import Record
from latentflow.evaluation.distances import set_distance
from latentflow.evaluation.diversity import between_seeds, mean_distance, real_diversity
from latentflow.evaluation.manifolds import coverage
from latentflow.evaluation.memorisation import memorisation, nearness
from latentflow.evaluation.metrics import frechet_distance
from latentflow.evaluation.plan import Captions, Plan, sampled_captions
from latentflow.evaluation.spaces import PIXELS8
from latentflow.params import EvaluateParams


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def record(number: int, caption: str = "", split: str = "train") -> Record:
    return make_record(f"id{number:04d}", caption or f"caption {number}", split)


def params(**changes: object) -> EvaluateParams:
    values = {"guidance": 2.0, "sampler": "euler", "steps": 2, "captions": 64, "seeds": 2, "seed": 7, "batch_size": 4}
    values |= {"reconstructions": 0, "grid": {"prompts": 0, "guidance": [], "steps": []}, "gallery_prompts": ["x"]}
    values |= {"weights": {"inception": "", "dinov2": "", "clip": "", "lpips": ""}}
    return EvaluateParams(**values | changes)


def test_precision_and_recall_of_equal_of_narrow_and_of_distant_sets():
    real = normal(300, 4)
    same = coverage(real, normal(300, 4, seed=1))
    assert same.precision > 0.8
    assert same.recall > 0.8
    narrow = coverage(real, 0.1 * normal(300, 4, seed=2))
    assert narrow.precision > 0.95
    assert narrow.recall < 0.05
    distant = coverage(real, normal(300, 4, seed=3) + 50)
    assert (distant.precision, distant.recall) == (0, 0)


def test_coverage_is_that_of_the_definition():
    real, drawn = normal(40, 3), normal(40, 3, seed=1) + 0.5

    def inside(points: torch.Tensor, centres: torch.Tensor) -> list[bool]:
        radius = [sorted((c - other).norm().item() for other in centres)[3] for c in centres]
        return [any((p - c).norm().item() <= r for c, r in zip(centres, radius, strict=True)) for p in points]

    found = coverage(real, drawn)
    assert found.precise.tolist() == inside(drawn, real)
    assert found.recalled.tolist() == inside(real, drawn)


def test_coverage_of_fewer_pictures_than_neighbours():
    assert coverage(normal(2, 3), normal(2, 3)).precision == 1


def test_a_copy_is_nearer_than_a_new_picture():
    training, heldout = normal(400, 8), normal(200, 8, seed=1)
    copies = training[:20].reshape(10, 2, 8) + 0.01
    found = memorisation(training, heldout, copies, training[:1], "features")
    assert found.suspects.mean == 1
    assert found.metrics["memorised/free"] == 1
    assert found.test.nearest.tolist() == torch.arange(20).reshape(10, 2).tolist()
    assert (found.heldout.ratio < found.threshold).double().mean().item() == pytest.approx(0.05, abs=0.01)
    fresh = memorisation(training, heldout, normal(100, 2, 8, seed=2), training[:0], "features")
    assert fresh.suspects.low <= 0.05 <= fresh.suspects.high
    assert "memorised/free" not in fresh.metrics
    assert sum(fresh.units([str(n) for n in range(100)])["memorised/test"].values()) / 100 == fresh.suspects.mean


def test_blurred_pictures_are_no_suspects():
    """They lie near the middle and so near to every training picture; the ratio sees that no single one is near."""
    training, heldout = normal(400, 8), normal(200, 8, seed=1)
    blurred = 0.3 * normal(50, 2, 8, seed=2)
    nearest = torch.cdist(heldout, training).amin(1)
    by_distance = torch.cdist(blurred.flatten(0, 1), training).amin(1) < nearest.quantile(0.05)
    suspects = memorisation(training, heldout, blurred, training[:0], "features").suspects
    assert suspects.mean < 0.25
    assert by_distance.double().mean() > 2 * suspects.mean


def test_a_crowd_of_equal_training_pictures_has_ratio_one():
    found = nearness(torch.zeros(1, 3).double(), torch.zeros(60, 3).double())
    assert found.ratio.item() == 1


def test_diversity_is_the_mean_distance_between_seeds():
    features = torch.tensor([[[0.0], [1.0], [3.0]], [[2.0], [2.0], [2.0]]])
    assert between_seeds([record(0), record(1)], features) == {"id0000": 2.0, "id0001": 0.0}
    assert between_seeds([record(0)], features[:1, :1]) == {}
    assert mean_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == 5


def test_real_diversity_is_that_of_a_caption_where_captions_repeat():
    table = [record(n, caption=f"digit {n % 2}") for n in range(20)]
    features = torch.tensor([[float(n % 2) * 10] for n in range(20)]).double()
    spread, own = real_diversity(table, features)
    assert own == 0
    assert spread == pytest.approx(10 * 100 / 190)
    assert real_diversity([record(n) for n in range(20)], features)[1] is None


def test_captions_are_sampled_by_the_records_alone():
    records = [record(number, split="test" if number % 10 == 0 else "train") for number in range(300)]
    chosen = sampled_captions(records, "train", 64)
    shuffled = random.Random(1).sample(records, len(records))
    assert chosen == sampled_captions(shuffled, "train", 64)
    assert sum(map(len, chosen.values())) == 64
    assert all(one.split == "train" for same in chosen.values() for one in same)
    assert len(sampled_captions(records, "test", 64)) == 30


def test_captions_that_repeat_are_drawn_as_often_as_the_sample_is_large():
    records = [record(n, caption=f"digit {n % 3}", split="test" if n % 5 == 0 else "train") for n in range(300)]
    plan = Plan.make(records, params())
    assert len(plan.train.records) == 3
    assert sum(plan.train.counts) == plan.train_records == 240
    assert plan.train.chances == pytest.approx([1.0] * 3, abs=1e-6)
    assert plan.train.seeds == math.ceil(64 / 3)
    assert len(plan.train.requests) >= 64
    unique = Plan.make([record(n, split="test" if n % 2 else "train") for n in range(200)], params())
    assert (unique.train.seeds, unique.train.counts) == (2, [1] * 64)
    assert unique.train.chances == pytest.approx([0.64] * 64)


def test_no_two_pictures_share_a_seed_but_the_free_prompts():
    plan = Plan.make([record(n, split="test" if n % 2 else "train") for n in range(200)], params())
    assert [request.seed for request in plan.asked] == list(range(7, 7 + len(plan.asked)))
    assert plan.requests[-1].seed == 7
    assert plan.train.requests[5].seed == plan.train.seed(2, 1)
    assert plan.train.requests[5].prompt == plan.train.records[2].caption


def test_a_set_distance_has_its_parts_and_units():
    records = [record(n) for n in range(30)]
    real, drawn = normal(30, 6), normal(10, 2, 6, seed=1)
    captions = Captions("train", records[:10], [1] * 10, [1 / 3] * 10, 2, 0)
    found = set_distance(PIXELS8, records, real, captions, drawn)
    assert found.frechet == pytest.approx(frechet_distance(real, drawn.flatten(0, 1)))
    assert (found.drawn, found.real) == (20, 30)
    units = found.units
    assert set(units["precision_pixels8"]) == {one.id for one in records[:10]}
    assert len(units["recall_pixels8"]) == 20
    assert sum(units["recall_pixels8"].values()) / 20 == found.metrics["recall_pixels8"]


def test_more_pictures_than_real_ones_are_compared_with_as_many():
    records = [record(n) for n in range(12)]
    captions = Captions("train", records[:10], [1] * 10, [1.0] * 10, 4, 0)
    found = set_distance(PIXELS8, records, normal(12, 3), captions, normal(10, 4, 3, seed=1))
    assert len(found.coverage.precise) == len(found.coverage.recalled) == 10
