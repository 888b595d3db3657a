"""From noise to data: the σ grid, guidance, and the iteration."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from latentflow.diffusion.definition import Definition


def sampling_sigmas(steps: int, sigma_max: float = 1.0, shift: float = 1.0) -> Tensor:
    """``steps + 1`` strictly decreasing σ from ``sigma_max`` to 0, float64; ``shift`` > 1 stays longer near noise."""
    sigmas = torch.linspace(sigma_max, 0, steps + 1, dtype=torch.float64)
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): u + scale·(c - u); 1 is no guidance."""
    return unconditional + scale * (conditional - unconditional)


@torch.no_grad()
def euler(definition: Definition, predict: Callable[[Tensor, Tensor], Tensor], xT: Tensor, sigmas: Tensor) -> Tensor:
    """Iterates the seed's step along ``sigmas`` from ``xT`` (n, ...); ``predict(x_t, sigma)`` is the model's output."""
    _, b = definition.data(sigmas[0].double())
    xt = b.to(xT.dtype) * xT
    for sigma, sigma_next in pairwise(sigmas):
        xt = definition.step(xt, predict(xt, sigma), sigma, sigma_next)
    return xt
