"""Numbers about pictures and their features: Fréchet distance, shares with intervals, PSNR. Torch only.

Pictures are uint8 (n, 3, h, w). Features are float64 (n, d) and always go by their name: ``pixels8`` is no FID.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Z95 = 1.959964


def pooled(pictures: Tensor, side: int) -> Tensor:
    """RGB averaged over a ``side`` x ``side`` grid, in [0, 1]: (n, 3, h, w) uint8 to (n, 3·side²) float64."""
    return adaptive_avg_pool2d(pictures.double() / 255, side).flatten(1)


def pixels8(pictures: Tensor) -> Tensor:
    """The features ``pixels8``: the picture averaged to 8x8 RGB, (n, 192). They see colour and layout only."""
    return pooled(pictures, 8)


def frechet_distance(real: Tensor, drawn: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two feature sets (n, d) and (m, d); n, m >= 2.

    It is biased upwards for small sets: compare only at equal sizes, and below some thousands read the kernel
    distance instead.
    """
    real, drawn = real.double(), drawn.double()
    return frechet_of_moments(real.mean(0), torch.cov(real.T), drawn.mean(0), torch.cov(drawn.T))


def frechet_of_moments(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """|μ1-μ2|² + tr(Σ1 + Σ2 - 2(Σ1Σ2)^½) in float64.

    tr (Σ1Σ2)^½ = tr (Σ1^½ Σ2 Σ1^½)^½, whose argument is symmetric and has real eigenvalues >= 0: no general
    matrix root, which has given wrong distances for nearly singular covariances.
    """
    cov1, cov2 = torch.atleast_2d(cov1.double()), torch.atleast_2d(cov2.double())
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    apart = (mean1.double() - mean2.double()).square().sum()
    return float(apart + cov1.trace() + cov2.trace() - 2 * cross)


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % interval; ``captions`` independent units of ``pictures`` in all."""

    mean: float
    low: float
    high: float
    captions: int
    pictures: int


def share(hits: Tensor) -> Share:
    """Proportion of True in ``hits`` (captions, seeds) with Wilson's interval at the effective sample size.

    Pictures of one caption succeed and fail together, so they are not independent trials. The effective size is
    the number of pictures divided by the design effect that the spread of the captions' means shows; it lies
    between the number of captions (copies of each other) and the number of pictures (independent).
    """
    captions, seeds = hits.shape
    per_caption = hits.double().mean(1)
    mean = per_caption.mean().item()
    size = float(captions)
    if captions > 1 and 0 < mean < 1:
        variance = per_caption.var().item() / captions
        size = min(max(mean * (1 - mean) / variance, captions), captions * seeds) if variance else captions * seeds
    low, high = wilson(mean, size)
    return Share(mean, low, high, captions, captions * seeds)


def wilson(mean: float, size: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion over ``size`` independent trials; never empty at 0 or 1."""
    centre = (mean + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 * math.sqrt(mean * (1 - mean) / size + Z95**2 / (4 * size**2)) / (1 + Z95**2 / size)
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def psnr(first: Tensor, second: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB over all values of two equal shapes; ``peak`` is the range (2 for [-1, 1])."""
    error = (first.double() - second.double()).square().mean().item()
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)
