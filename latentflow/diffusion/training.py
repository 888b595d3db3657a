"""At which σ a denoiser is trained."""

import torch
from torch import Generator, Tensor


def draw_sigmas(count: int, how: str, mean: float, std: float, generator: Generator) -> Tensor:
    """Draws ``count`` training σ in (0, 1), float64.

    ``logit_normal``: sigmoid of a normal with ``mean`` and ``std`` (Esser et al. 2024); a mean above 0 draws
    nearer to noise. ``uniform``: one σ per equal part of [0, 1], in random order, which lowers the variance.
    """
    if how == "logit_normal":
        return torch.sigmoid(torch.randn(count, generator=generator, dtype=torch.float64) * std + mean)
    if how == "uniform":
        offsets = torch.rand(count, generator=generator, dtype=torch.float64)
        return (torch.randperm(count, generator=generator) + offsets) / count
    raise ValueError(f"unknown σ sampling {how!r}: expected logit_normal or uniform")
