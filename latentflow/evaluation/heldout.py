"""Held-out flow-matching loss at fixed σ with fixed noise: a number that can be compared between steps and models."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.diffusion import Definition
from latentflow.errors import LatentflowError
from latentflow.evaluation.metrics import Z95

TIMES = (0.05, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95)
"""Midpoints of ten equal parts of [0, 1], so that their mean estimates the loss under uniform times."""

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SigmaLoss:
    """Mean squared error at one σ and the half width of its 95 % interval over the samples."""

    sigma: float
    mean: float
    half_width: float


@dataclass(frozen=True)
class HeldoutLoss:
    """The loss at every σ, and its mean over them with an interval over samples (a sample's σ are not independent)."""

    by_sigma: list[SigmaLoss]
    mean: float
    half_width: float
    samples: int


def heldout_sigmas(definition: Definition) -> list[float]:
    """The σ of ``TIMES``; for flow matching the same numbers."""
    sigmas: list[float] = definition.time_to_sigma(torch.tensor(TIMES, dtype=torch.float64)).tolist()
    return sigmas


def heldout_loss(
    predict: Predict,
    x0: Tensor,
    text: Tensor,
    text_mask: Tensor,
    definition: Definition,
    sigmas: Sequence[float],
    seed: int,
    batch_size: int,
) -> HeldoutLoss:
    """Loss of ``predict(xt, sigma, text, text_mask)`` over every sample at every σ.

    ``x0`` (n, ...), ``text`` (n, T, W) and ``text_mask`` (n, T) lie on the model's device. The noise of sample i at
    σ j follows from (seed, i, j) alone: the batch size and the other samples have no part in it.
    Raises LatentflowError when there is no sample.
    """
    count = len(x0)
    if count == 0:
        raise LatentflowError("the held-out split holds no samples: raise ingest.validation_fraction or test_fraction.")
    # σ outermost: one batch's samples are neighbours, and predictions of equal σ are computed together.
    pairs = [(i, j) for j in range(len(sigmas)) for i in range(count)]
    losses: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            rows = torch.tensor([i for i, _ in batch], device=x0.device)
            sigma = torch.tensor([sigmas[j] for _, j in batch], dtype=torch.float64, device=x0.device)
            clean = x0[rows].float()
            noise = torch.stack([_noise(x0.shape[1:], seed, i, j) for i, j in batch]).to(x0.device)
            output = predict(definition.add_noise(clean, noise, sigma), sigma, text[rows], text_mask[rows])
            error = output.float() - definition.target(clean, noise, sigma)
            losses.append(error.square().flatten(1).mean(1).double().cpu())
    table = torch.cat(losses).reshape(len(sigmas), count)
    by_sigma = [SigmaLoss(float(s), row.mean().item(), _half_width(row)) for s, row in zip(sigmas, table, strict=True)]
    per_sample = table.mean(0)
    return HeldoutLoss(by_sigma, per_sample.mean().item(), _half_width(per_sample), count)


def _noise(shape: torch.Size, seed: int, sample: int, level: int) -> Tensor:
    """Standard normal noise on the CPU, so that every device sees the same."""
    key = int.from_bytes(hashlib.sha256(f"heldout {seed} {sample} {level}".encode()).digest()[:4])
    return torch.randn(shape, generator=torch.Generator().manual_seed(key))


def _half_width(values: Tensor) -> float:
    """Half the 95 % interval of a mean; one value alone says nothing, so its interval reaches from 0 to twice it."""
    return Z95 * values.std().item() / math.sqrt(len(values)) if len(values) > 1 else values.abs().mean().item()
