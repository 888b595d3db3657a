"""Held-out flow-matching loss at fixed σ with fixed noise: a number that can be compared between steps and models."""

import hashlib
import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSplit
from latentflow.diffusion import Definition
from latentflow.errors import LatentflowError
from latentflow.evaluation.metrics import Z95

TIMES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
"""Midpoints of ten equal parts of [0, 1], so that their mean estimates the loss under uniform times."""

CAP = 2048
"""Samples that are measured at most: more of them would narrow the interval little and cost much."""

Predict = Callable[[Tensor, Tensor, Condition], Tensor]


@dataclass(frozen=True)
class Group:
    """Held-out samples of one shape: ``read`` gives x_0 (n, *shape) and conditions of some of them.

    ``read`` takes rows (n,) int64 from 0 to ``count`` - 1 and puts the tensors on the model's device.
    """

    count: int
    shape: tuple[int, ...]
    read: Callable[[Tensor], tuple[Tensor, Condition]]


@dataclass(frozen=True)
class SigmaLoss:
    """Mean squared error at one σ and the half width of its 95 % interval over the samples."""

    sigma: float
    mean: float
    half_width: float


@dataclass(frozen=True)
class HeldoutLoss:
    """The loss at every σ, and its mean over them with an interval over samples (a sample's σ are not independent).

    ``per_sample`` is every sample's mean over σ, in the groups' order.
    """

    by_sigma: list[SigmaLoss]
    mean: float
    half_width: float
    per_sample: list[float]

    @property
    def samples(self) -> int:
        return len(self.per_sample)


def heldout_sigmas(definition: Definition) -> list[float]:
    """The σ of ``TIMES``; for flow matching the same numbers."""
    sigmas: list[float] = definition.time_to_sigma(torch.tensor(TIMES, dtype=torch.float64)).tolist()
    return sigmas


def heldout_groups(split: EncodedSplit, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Group]:
    """The split's samples by bucket; of more than ``CAP``, those whose ids have the smallest hashes."""

    def group(bucket: int, rows: Tensor) -> Group:
        def read(chosen: Tensor) -> tuple[Tensor, Condition]:
            samples = split.samples(bucket, rows[chosen])
            return samples.latents.to(device, dtype), samples.condition.begun(samples.latents).to(device, dtype)

        return Group(len(rows), split.buckets[bucket].shape, read)

    return [group(bucket, rows) for bucket, rows in enumerate(_capped(split)) if len(rows)]


def heldout_ids(split: EncodedSplit) -> list[str]:
    """The records' ids in the order in which ``heldout_loss`` numbers the samples of ``heldout_groups``."""
    return [name for bucket, rows in enumerate(_capped(split)) for name in split.ids(bucket, rows)]


def _capped(split: EncodedSplit) -> list[Tensor]:
    """Per bucket the rows to measure, in their order."""
    rows = [torch.arange(bucket.count) for bucket in split.buckets]
    if len(split) <= CAP:
        return rows
    hashes = [
        [hashlib.sha256(name.encode()).digest() for name in split.ids(bucket, every)]
        for bucket, every in enumerate(rows)
    ]
    last = heapq.nsmallest(CAP, (digest for bucket in hashes for digest in bucket))[-1]
    return [torch.tensor([row for row, digest in enumerate(bucket) if digest <= last]) for bucket in hashes]


def heldout_loss(
    predict: Predict,
    groups: Sequence[Group],
    definition: Definition,
    sigmas: Sequence[float],
    seed: int,
    batch_size: int,
) -> HeldoutLoss:
    """Loss of ``predict(xt, sigma, condition)`` over every sample at every σ.

    Samples are numbered through the groups. The noise of sample i at σ j follows from (seed, i, j) alone: the batch
    size and the other samples have no part in it. Raises LatentflowError when there is no sample.
    """
    if not sum(group.count for group in groups):
        raise LatentflowError("the held-out split holds no samples: raise ingest.validation_fraction or test_fraction.")
    tables, count = [], 0
    with torch.no_grad():
        for group in groups:
            tables.append(_losses(predict, group, count, definition, sigmas, seed, batch_size))
            count += group.count
    table = torch.cat(tables, dim=1)
    by_sigma = [SigmaLoss(float(s), row.mean().item(), _half_width(row)) for s, row in zip(sigmas, table, strict=True)]
    per_sample = table.mean(0)
    return HeldoutLoss(by_sigma, per_sample.mean().item(), _half_width(per_sample), per_sample.tolist())


def _losses(
    predict: Predict,
    group: Group,
    first: int,
    definition: Definition,
    sigmas: Sequence[float],
    seed: int,
    batch_size: int,
) -> Tensor:
    """A group's losses (σ, samples) float64; its samples are numbered from ``first``."""
    # σ outermost: one batch's samples are neighbours, and predictions of equal σ are computed together.
    pairs = [(i, j) for j in range(len(sigmas)) for i in range(group.count)]
    losses: list[Tensor] = []
    for start in range(0, len(pairs), batch_size):
        batch = pairs[start : start + batch_size]
        clean, condition = group.read(torch.tensor([i for i, _ in batch]))
        sigma = torch.tensor([sigmas[j] for _, j in batch], dtype=torch.float64, device=clean.device)
        noise = torch.stack([_noise(group.shape, seed, first + i, j) for i, j in batch]).to(clean)
        output = predict(definition.add_noise(clean, noise, sigma), sigma, condition)
        error = output.to(clean.dtype) - definition.target(clean, noise, sigma)
        losses.append(error.square().flatten(1).mean(1).double().cpu())
    return torch.cat(losses).reshape(len(sigmas), group.count)


def _noise(shape: tuple[int, ...], seed: int, sample: int, level: int) -> Tensor:
    """Standard normal noise on the CPU, so that every device sees the same."""
    key = int.from_bytes(hashlib.sha256(f"heldout {seed} {sample} {level}".encode()).digest()[:4])
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))


def _half_width(values: Tensor) -> float:
    """Half the 95 % interval of a mean; one value alone says nothing, so its interval reaches from 0 to twice it."""
    return Z95 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else values.abs().mean().item()
