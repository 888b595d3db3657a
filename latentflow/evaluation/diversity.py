"""How different are the pictures of one caption, beside how different real pictures are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.data.records import Record, spread_places

MANY = 16
"""Real pictures of one caption that are compared with one another at most."""

SPREAD = 512
"""Real pictures between which the spread is measured at most."""


@dataclass(frozen=True)
class Diversity:
    """``by_caption``: per split and record, the mean distance between its seeds' pictures; empty for a single seed.

    ``real_spread``: mean distance between real training pictures of any captions. ``real_caption``: the same between
    those that share a caption; None where hardly any do.
    """

    by_caption: dict[str, dict[str, float]]
    real_spread: float
    real_caption: float | None

    @property
    def units(self) -> dict[str, dict[str, float]]:
        return {f"diversity/{split}": values for split, values in self.by_caption.items() if values}

    @property
    def metrics(self) -> dict[str, float]:
        values = {name: sum(rows.values()) / len(rows) for name, rows in self.units.items()}
        values["diversity/real_spread"] = self.real_spread
        return values | ({"diversity/real_caption": self.real_caption} if self.real_caption is not None else {})

    @property
    def reference(self) -> float:
        """What the drawn pictures' diversity is held against."""
        return self.real_spread if self.real_caption is None else self.real_caption


def mean_distance(features: Tensor) -> float:
    """Mean Euclidean distance over all pairs of rows (n, d), n >= 2."""
    return torch.nn.functional.pdist(features.double()).mean().item()


def between_seeds(records: Sequence[Record], features: Tensor) -> dict[str, float]:
    """Per record the mean distance between the pictures of its caption: features (captions, seeds, d)."""
    if features.shape[1] < 2:
        return {}
    return {record.id: mean_distance(rows) for record, rows in zip(records, features, strict=True)}


def real_diversity(table: Sequence[Record], features: Tensor) -> tuple[float, float | None]:
    """``real_spread`` and ``real_caption`` of the training pictures among ``table``; features (n, d) in its order.

    A caption's own spread is told where at least half of the training records share theirs with another.
    """
    by_caption: dict[str, list[int]] = {}
    ids: list[str] = []
    places: list[int] = []
    for place, record in enumerate(table):
        if record.split == "train":
            by_caption.setdefault(record.caption, []).append(place)
            ids.append(record.id)
            places.append(place)
    chosen = [places[number] for number in spread_places(ids, SPREAD)]
    shared = [group for group in by_caption.values() if len(group) > 1]
    own = None
    if 2 * sum(map(len, shared)) >= len(places):
        own = sum(mean_distance(features[_some(group, table)]) for group in shared) / len(shared)
    return mean_distance(features[chosen]), own


def _some(group: list[int], table: Sequence[Record]) -> list[int]:
    return [group[number] for number in spread_places((table[place].id for place in group), MANY)]
