"""How far the drawn pictures as a set are from the real ones, in one space of features."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.data.records import Record, spread_places
from latentflow.evaluation import kernels
from latentflow.evaluation.kernels import KernelDistance, Occurrence, kernel_distance
from latentflow.evaluation.manifolds import Coverage, coverage
from latentflow.evaluation.metrics import frechet_of_moments
from latentflow.evaluation.plan import Captions
from latentflow.evaluation.spaces import Space


@dataclass(frozen=True)
class SetDistance:
    """``frechet``, ``kernel`` and ``coverage`` between ``drawn`` pictures and ``real`` training pictures."""

    space: Space
    drawn: int
    real: int
    frechet: float
    kernel: KernelDistance
    coverage: Coverage
    coverage_captions: list[str]
    coverage_real: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        space, kernel = self.space, self.kernel
        interval = {} if kernel.half_width is None else {f"{space.kernel}_half_width": kernel.half_width}
        return {
            space.frechet: self.frechet,
            space.kernel: kernel.value,
            **interval,
            f"precision_{space.name}": self.coverage.precision,
            f"recall_{space.name}": self.coverage.recall,
        }

    @property
    def units(self) -> dict[str, dict[str, float]]:
        """By group of captions, by caption, by real picture."""
        precise = self.coverage.precise.unflatten(0, (len(self.coverage_captions), -1)).double().mean(1).tolist()
        return {
            self.space.kernel: {f"group {number}": value for number, value in enumerate(self.kernel.by_group)},
            f"precision_{self.space.name}": dict(zip(self.coverage_captions, precise, strict=True)),
            f"recall_{self.space.name}": dict(
                zip(self.coverage_real, self.coverage.recalled.double().tolist(), strict=True)
            ),
        }


def set_distance(
    space: Space, records: Sequence[Record], real: Tensor, captions: Captions, drawn: Tensor
) -> SetDistance:
    """Between ``real`` (n, d), the features of ``records``, and ``drawn`` (captions, seeds, d)."""
    ids = [record.id for record in records]
    count, seeds = drawn.shape[:2]
    counts, chances = (torch.tensor(values, dtype=torch.float64) for values in (captions.counts, captions.chances))
    weights = (counts / chances).repeat_interleave(seeds)
    place_of = {record.caption: place for place, record in enumerate(captions.records)}
    reference = spread_places(ids, kernels.REFERENCE)
    asked = torch.tensor([place_of.get(records[place].caption, -1) for place in reference])
    used = max(1, min(seeds, min(len(real), kernels.REFERENCE) // count))
    compared = spread_places(ids, min(count * used, len(ids)))
    return SetDistance(
        space=space,
        drawn=count * seeds,
        real=len(real),
        frechet=frechet_of_moments(*_moments(real), *_moments(drawn.flatten(0, 1), weights)),
        kernel=kernel_distance(real[reference], drawn, Occurrence(counts, chances, asked)),
        coverage=coverage(real[compared], drawn[:, :used].flatten(0, 1)),
        coverage_captions=[record.id for record in captions.records],
        coverage_real=[ids[place] for place in compared],
    )


def _moments(features: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and covariance of rows, float64; ``weights`` say how often a row counts."""
    features = features.double()
    if weights is None:
        return features.mean(0), torch.cov(features.T)
    return (weights[:, None] * features).sum(0) / weights.sum(), torch.cov(features.T, aweights=weights)
