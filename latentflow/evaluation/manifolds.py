"""Improved precision and recall: which drawn pictures lie among the real ones, which real ones among the drawn.

Kynkäänniemi et al. 2019, Improved Precision and Recall Metric for Assessing Generative Models. A set's manifold is
the union of balls around its features that reach to the k-th nearest neighbour of the same set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 3
_BLOCK = 1024


@dataclass(frozen=True)
class Coverage:
    """``precise`` (drawn,) bool: lies on the manifold of the real; ``recalled`` (real,) bool: the other way round."""

    precise: Tensor
    recalled: Tensor

    @property
    def precision(self) -> float:
        return self.precise.double().mean().item()

    @property
    def recall(self) -> float:
        return self.recalled.double().mean().item()


def coverage(real: Tensor, drawn: Tensor, k: int = NEIGHBOURS) -> Coverage:
    """Both over features (n, d) and (m, d); fair only for n = m, because more balls cover more.

    A set of no more than ``k`` pictures has no k-th neighbour: its farthest takes the place.
    """
    real, drawn = real.double(), drawn.double()
    return Coverage(_inside(drawn, real, k), _inside(real, drawn, k))


def _inside(points: Tensor, centres: Tensor, k: int) -> Tensor:
    radius = _radii(centres, k)
    blocks = [(_distance(block, centres) <= radius).any(1) for block in points.split(_BLOCK)]
    return torch.cat(blocks)


def _radii(centres: Tensor, k: int) -> Tensor:
    """Distance to the k-th nearest other point; a point is its own nearest, at distance 0."""
    place = min(k, len(centres) - 1) + 1
    return torch.cat([_distance(block, centres).kthvalue(place, dim=1).values for block in centres.split(_BLOCK)])


def _distance(first: Tensor, second: Tensor) -> Tensor:
    # Exact differences: a point's distance to itself must be 0.
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
