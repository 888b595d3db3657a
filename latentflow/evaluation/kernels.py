"""Kernel distances between sets of features: KID's polynomial kernel, unbiased, with an interval; CMMD's Gaussian one.

Features are (n, d), one row per picture. Sums run in float64, by blocks of rows, so that memory stays small.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.evaluation.metrics import Z95

_BLOCK = 512
GROUPS = 64
"""Groups for the interval at most; more would cost much and change it little."""

REFERENCE = 10_000
"""Real pictures that a kernel distance reads at most; all pairs of more would take minutes."""

Kernel = Callable[[Tensor, Tensor], Tensor]


def polynomial(first: Tensor, second: Tensor) -> Tensor:
    """KID's kernel (x·y/d + 1)³ of all pairs, (n, d) and (m, d) to (n, m). Bińkowski et al. 2018."""
    return (first @ second.T / first.shape[1] + 1).pow(3)


def gaussian(first: Tensor, second: Tensor, width: float = 10.0) -> Tensor:
    """CMMD's kernel exp(-|x-y|²/(2·width²)). Jayasumana et al. 2024, Rethinking FID."""
    return torch.exp(-torch.cdist(first, second).square() / (2 * width**2))


@dataclass(frozen=True)
class KernelDistance:
    """An estimate, the half width of its 95 % interval, and the jackknife's pseudo-values behind that interval.

    There is no interval (None) and there are no pseudo-values for fewer than three groups.

    A pseudo-value belongs to a fixed group of the drawn pictures; their mean is the estimate but for the jackknife's
    own correction, so two models that drew the same prompts compare group by group.
    """

    value: float
    half_width: float | None
    by_group: list[float]


def groups_of(captions: int, seeds: int) -> Tensor:
    """(captions, seeds) int64: which pictures are left out together for the interval.

    The independent unit is the caption, of which others could have been asked; where there are more seeds than
    captions (a few captions that the data repeat) it is the seed.
    """
    rows, columns = torch.arange(captions)[:, None], torch.arange(seeds)
    unit = rows.expand(captions, seeds) if captions >= seeds else columns.expand(captions, seeds)
    return unit % GROUPS


@dataclass(frozen=True)
class Occurrence:
    """How the asked captions occur in the data, so that pairs of pictures are weighed as pairs of records are.

    ``counts`` (captions,): how many records have each; ``chances`` (captions,): with what probability it was chosen;
    ``asked`` (real,): which asked caption each real picture has, -1 where none.
    """

    counts: Tensor
    chances: Tensor
    asked: Tensor

    @classmethod
    def once(cls, captions: int, real: int) -> "Occurrence":
        """Of captions that are all asked and that no real picture has."""
        ones = torch.ones(captions, dtype=torch.float64)
        return cls(ones, ones, torch.full((real,), -1))


def kernel_distance(real: Tensor, drawn: Tensor, occurrence: Occurrence | None = None) -> KernelDistance:
    """Squared MMD with KID's kernel between real features (n, d) and drawn ones (captions, seeds, d).

    It estimates the U-statistic over pairs of different records, a drawn picture standing for a record with its
    caption (Horvitz and Thompson's weights): two seeds of a caption that one record has are no pair, those of a
    frequent one are, and a drawn picture is held against all real ones but the one it stands for. So it is unbiased,
    also where few captions repeat: equal distributions give 0 on average, and small negative values are normal. All
    pictures must be drawn with noise of their own.
    """
    captions, seeds, width = drawn.shape
    real, rows = real.double(), drawn.reshape(-1, width).double()
    known = occurrence or Occurrence.once(captions, len(real))
    count, chance = known.counts.double(), known.chances.double()
    group = groups_of(captions, seeds).flatten()
    member = torch.nn.functional.one_hot(group).double()
    caption = torch.arange(captions).repeat_interleave(seeds)
    # Pairs of one caption weigh count·(count-1)/chance in all, those of two captions the product of count/chance.
    alone = chance * (count - 1) / count * seeds / max(seeds - 1, 1)
    others = (count - 1) / count
    each = (count / chance / seeds)[caption]
    pairs, pair_weights = torch.zeros(2, member.shape[1], member.shape[1], dtype=torch.float64)
    crossed, crossed_weights = torch.zeros(2, len(rows), dtype=torch.float64)
    for block, start in _blocks(rows):
        own = slice(start, start + len(block))
        weights = each[own, None] * each
        same = caption[own, None] == caption
        weights = torch.where(same, weights * alone[caption], weights)
        weights[torch.arange(len(block)), torch.arange(start, start + len(block))] = 0
        pairs += member[own].T @ (weights * polynomial(block, rows)) @ member
        pair_weights += member[own].T @ weights @ member
        across = torch.where(caption[own, None] == known.asked, others[caption[own], None], 1.0)
        crossed[own] = (across * polynomial(block, real)).sum(1)
        crossed_weights[own] = across.sum(1)
    by_group = member.T @ (each * crossed), member.T @ (each * crossed_weights)
    within = _within(real)
    whole = _estimate(pairs, pair_weights, *by_group) + within
    left_out = [
        float(
            _estimate(pairs[keep][:, keep], pair_weights[keep][:, keep], by_group[0][keep], by_group[1][keep]) + within
        )
        for keep in _without_one(member.shape[1])
    ]
    pseudo = [len(left_out) * float(whole) - (len(left_out) - 1) * value for value in left_out]
    return KernelDistance(float(whole), _half_width(pseudo), pseudo)


def _estimate(pairs: Tensor, pair_weights: Tensor, crossed: Tensor, weights: Tensor) -> Tensor:
    return pairs.sum() / pair_weights.sum() - 2 * crossed.sum() / weights.sum()


def _without_one(count: int) -> Iterator[Tensor]:
    """Every choice of all groups but one; none where that would leave no two pictures."""
    if count > 2:
        for number in range(count):
            yield torch.arange(count) != number


def _half_width(pseudo: list[float]) -> float | None:
    if not pseudo:
        return None
    return Z95 * torch.tensor(pseudo, dtype=torch.float64).std().item() / math.sqrt(len(pseudo))


def _within(real: Tensor) -> float:
    """Mean kernel over pairs of different real pictures."""
    total = sum(polynomial(block, real).sum().item() for block, _ in _blocks(real))
    own = (real.square().sum(1) / real.shape[1] + 1).pow(3).sum().item()
    return (total - own) / (len(real) * (len(real) - 1))


def cmmd(real: Tensor, drawn: Tensor) -> float:
    """CMMD of unit-length CLIP embeddings (n, d) and (m, d): 1000 times the squared MMD with the Gaussian kernel.

    As published the means run over all pairs, a picture with itself included, so it is biased upwards by about
    1000·(1 - mean kernel)·(1/n + 1/m): compare it only at equal sizes.
    """
    real, drawn = real.double(), drawn.double()
    return 1000 * (_mean(real, real) + _mean(drawn, drawn) - 2 * _mean(real, drawn))


def _mean(first: Tensor, second: Tensor) -> float:
    return sum(gaussian(block, second).sum().item() for block, _ in _blocks(first)) / (len(first) * len(second))


def _blocks(rows: Tensor) -> Iterator[tuple[Tensor, int]]:
    for start in range(0, len(rows), _BLOCK):
        yield rows[start : start + _BLOCK], start
