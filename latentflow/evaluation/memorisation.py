"""Does the model draw its training pictures: how near the nearest one is, calibrated on real pictures it never saw.

The distance to the nearest training picture is divided by the mean distance to the ``NEIGHBOURS`` nearest ones, as
Carlini et al. 2023 (Extracting Training Data from Diffusion Models) do: a picture in a crowd of similar ones, or a
blurred one, is near to many, a copy is near to one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.evaluation.metrics import Share, share

NEIGHBOURS = 50
EXPECTED = 0.05
"""Share of the real held-out pictures that lie under the threshold, by its definition."""

CALIBRATION = 2048
"""Held-out pictures that are looked up at most."""

_BLOCK = 64


@dataclass(frozen=True)
class Nearness:
    """Per picture ``ratio``, small for a copy, and ``nearest``, the row of the nearest training picture."""

    ratio: Tensor
    nearest: Tensor


def nearness(pictures: Tensor, training: Tensor) -> Nearness:
    """Of features (n, d) among those of the training pictures (m, d), m >= 2. Among equal ones the ratio is 1."""
    ratios, nearest = [], []
    count = min(NEIGHBOURS, len(training))
    for block in pictures.split(_BLOCK):
        distance = torch.cdist(block, training, compute_mode="donot_use_mm_for_euclid_dist")
        found = distance.topk(count, dim=1, largest=False)
        mean = found.values.mean(1)
        ratios.append(torch.where(mean > 0, found.values[:, 0] / mean.clamp(min=1e-30), 1.0))
        nearest.append(found.indices[:, 0])
    return Nearness(torch.cat(ratios), torch.cat(nearest))


@dataclass(frozen=True)
class Memorisation:
    """What the drawn pictures of held-out captions and of free prompts are, beside real held-out pictures.

    ``test.ratio`` (captions, seeds); ``free.ratio`` (prompts,); ``heldout.ratio`` (real held-out pictures,).
    ``features`` names in what distances were taken.
    """

    test: Nearness
    free: Nearness
    heldout: Nearness
    features: str

    @property
    def threshold(self) -> float:
        """The ratio under which ``EXPECTED`` of the real held-out pictures lie."""
        return self.heldout.ratio.quantile(EXPECTED).item()

    @property
    def suspects(self) -> Share:
        """Share of the held-out captions' pictures under the threshold."""
        return share(self.test.ratio < self.threshold)

    @property
    def metrics(self) -> dict[str, float]:
        found = self.suspects
        values = {
            "memorised/test": found.mean,
            "memorised/test_low": found.low,
            "memorised/test_high": found.high,
            "memorised/threshold": self.threshold,
        }
        if len(self.free.ratio):
            values["memorised/free"] = (self.free.ratio < self.threshold).double().mean().item()
        return values

    def units(self, ids: list[str]) -> dict[str, dict[str, float]]:
        """Per held-out caption the share of its pictures under the threshold."""
        shares = (self.test.ratio < self.threshold).double().mean(1).tolist()
        return {"memorised/test": dict(zip(ids, shares, strict=True))}


def memorisation(training: Tensor, heldout: Tensor, test: Tensor, free: Tensor, features: str) -> Memorisation:
    """Of features: training (m, d), real held-out (h, d), drawn ``test`` (captions, seeds, d), ``free`` (p, d)."""
    flat = nearness(test.flatten(0, 1), training)
    shape = test.shape[:2]
    found = Nearness(flat.ratio.reshape(shape), flat.nearest.reshape(shape))
    return Memorisation(found, nearness(free, training), nearness(heldout, training), features)
