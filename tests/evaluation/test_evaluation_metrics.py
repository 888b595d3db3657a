"""Formulas against values that are known otherwise: analytic ones, simulations, torchmetrics."""

import math

import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from latentflow.evaluation import metrics


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frechet_of_one_dimensional_gaussians_is_the_textbook_value():
    # (μ1-μ2)² + (σ1-σ2)²
    found = metrics.frechet_of_moments(*(torch.tensor(x) for x in ([1.0], [[4.0]], [3.0], [[9.0]])))
    assert found == pytest.approx(4 + 1)


def test_frechet_of_commuting_and_of_rotated_covariances():
    first, second = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    zero = torch.zeros(3)
    wanted = (first.sqrt() - second.sqrt()).square().sum().item()
    rotation, _ = torch.linalg.qr(normal(3, 3))
    for turn in (torch.eye(3).double(), rotation):
        covs = (turn @ torch.diag(values) @ turn.T for values in (first, second))
        cov1, cov2 = covs
        assert metrics.frechet_of_moments(zero, cov1, zero, cov2) == pytest.approx(wanted)


def test_frechet_survives_singular_covariances():
    features = normal(20, 50)
    assert metrics.frechet_distance(features, features) == pytest.approx(0, abs=1e-5)
    shifted = features + 2
    assert metrics.frechet_distance(features, shifted) == pytest.approx(4 * 50, rel=1e-6)


def test_frechet_equals_torchmetrics():
    first, second = normal(600, 24) @ normal(24, 24, seed=1), normal(500, 24, seed=2) + 0.3
    wanted = _compute_fid(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T)).item()
    assert metrics.frechet_distance(first, second) == pytest.approx(wanted, rel=1e-3)


def test_pixels8_is_the_mean_of_the_blocks():
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = metrics.pixels8(pictures).reshape(2, 3, 8, 8)
    assert found.shape == (2, 3, 8, 8)
    assert found[1, 2, 7, 0].item() == pytest.approx(pictures[1, 2, 28:, :4].double().mean().item() / 255)


@pytest.mark.parametrize(("hits", "pictures", "low", "high"), [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775)])
def test_wilson_is_the_published_interval(hits: int, pictures: int, low: float, high: float):
    assert metrics.wilson(hits / pictures, pictures) == pytest.approx((low, high), abs=1e-3)


def test_share_counts_captions_when_their_pictures_agree_and_pictures_when_they_do_not():
    copies = (torch.arange(100) % 4 == 0)[:, None].repeat(1, 2)
    share = metrics.share(copies)
    assert (share.mean, share.captions, share.pictures) == (0.25, 100, 200)
    assert (share.low, share.high) == pytest.approx(metrics.wilson(0.25, 100), abs=2e-3)
    apart = torch.stack([torch.arange(100) % 2 == 0, torch.arange(100) % 2 == 1], 1)
    assert metrics.share(apart).high == pytest.approx(metrics.wilson(0.5, 200)[1])


def test_share_of_none_or_all_still_has_an_interval():
    none, every = metrics.share(torch.zeros(50, 2)), metrics.share(torch.ones(50, 2))
    assert none.low == 0
    assert 0.05 < none.high < 0.1
    assert every.high == 1
    assert every.low == pytest.approx(1 - none.high)


def test_the_interval_covers_the_truth_about_95_times_in_100():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(500):
        # Some captions are easy, others are not: pictures of one caption go together.
        ease = torch.where(torch.rand(200, 1, generator=generator) < 0.5, 0.7, 0.1)
        share = metrics.share(torch.rand(200, 2, generator=generator) < ease)
        covered += share.low <= 0.4 <= share.high
    assert 0.92 <= covered / 500 <= 0.98


def test_psnr():
    clean = torch.zeros(4, 3, 8, 8)
    assert metrics.psnr(clean, clean + 0.1) == pytest.approx(20)
    assert metrics.psnr(clean, clean + 0.1, peak=2) == pytest.approx(20 + 20 * math.log10(2))
    assert metrics.psnr(clean, clean) == math.inf
