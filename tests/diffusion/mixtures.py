"""Mixtures of Gaussians, for which the best answer that a model could give is known."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from latentflow.diffusion import Definition
from latentflow.diffusion.guidance import Predict


@dataclass(frozen=True)
class Mixture:
    """Round Gaussians: ``shares`` (k,) that sum to 1, ``means`` (k, dim) and ``stds`` (k,), float64."""

    shares: Tensor
    means: Tensor
    stds: Tensor

    def draw(self, count: int, generator: Generator) -> Tensor:
        """(count, dim) of the data."""
        which = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        normal = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.stds[which, None] * normal

    def mean(self) -> Tensor:
        """(dim,)."""
        return self.shares @ self.means

    def covariance(self) -> Tensor:
        """(dim, dim)."""
        off = self.means - self.mean()
        within = (self.shares * self.stds.square()).sum() * torch.eye(len(self.means[0]), dtype=torch.float64)
        return within + (self.shares[:, None] * off).T @ off

    def answers(self, definition: Definition) -> Predict:
        """The model without any error: the mean of c·x_0 + d·x_T over all that could have become x_t."""

        def predict(xt: Tensor, sigma: Tensor) -> Tensor:
            a, b, c, d = definition.matrix(sigma)
            variances = (a * self.stds).square() + b.square()
            off = xt[:, None] - a * self.means
            logits = self.shares.log() - off.square().sum(-1) / (2 * variances) - len(xt[0]) / 2 * variances.log()
            share = logits.softmax(-1)[..., None]
            x0 = (share * (self.means + (a * self.stds.square() / variances)[:, None] * off)).sum(1)
            xT = (share * (b / variances)[:, None] * off).sum(1)
            return c * x0 + d * xT

        return predict


TRIANGLE = Mixture(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[-1.0, -0.5], [1.0, -0.5], [0.2, 1.2]], dtype=torch.float64),
    torch.tensor([0.4, 0.3, 0.5], dtype=torch.float64),
)

ONE = Mixture(torch.ones(1).double(), torch.tensor([[0.7]]).double(), torch.tensor([0.5]).double())
"""A single Gaussian on the line: every sampler's step is affine, and so is the exact way."""


def interior(definition: Definition, steps: int) -> Tensor:
    """σ at equal steps of the angle between data and noise, without the ends, where λ is infinite."""
    return definition.sigma_at_angle(torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64) * math.pi / 2)
