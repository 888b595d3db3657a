"""Classifier-free guidance: the answer is moved away from that for the empty condition."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""(x_t (n, ...), σ as a float64 scalar on the CPU) to the model's output (n, ...)."""

Conditional = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]
"""The same with the condition's tensors, batch first."""


@dataclass(frozen=True)
class Guidance:
    """How strongly, where and how much of the contrast is taken back.

    ``scale`` 1 is none (Ho & Salimans 2022). Outside of σ in [``low``, ``high``] only the condition is asked, at
    half the cost (Kynkäänniemi et al. 2024). ``rescale`` in [0, 1] mixes in the guided output at the conditional
    output's standard deviation per sample (Lin et al. 2023, φ).
    """

    scale: float = 1.0
    low: float = 0.0
    high: float = float("inf")
    rescale: float = 0.0

    def combine(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """u + scale·(c - u), rescaled; (n, ...) each."""
        guided = torch.lerp(unconditional, conditional, self.scale)
        if not self.rescale:
            return guided
        inner = tuple(range(1, guided.ndim))
        ratio = conditional.std(inner, keepdim=True) / guided.std(inner, keepdim=True).clamp_min(1e-12)
        return torch.lerp(guided, guided * ratio, self.rescale)

    def __call__(self, predict: Conditional, condition: Sequence[Tensor], empty: Sequence[Tensor]) -> Predict:
        """``predict`` under guidance, both halves in one call; ``condition`` and ``empty`` have n rows each."""
        both = [torch.cat(pair) for pair in zip(empty, condition, strict=True)]

        def guided(xt: Tensor, sigma: Tensor) -> Tensor:
            if self.scale == 1 or not self.low <= sigma <= self.high:
                return predict(xt, sigma, condition)
            unconditional, conditional = predict(torch.cat([xt, xt]), sigma, both).chunk(2)
            return self.combine(conditional, unconditional)

        return guided
