"""A diffusion model is two definitions; noising, target, recovery and the iteration are derived from them.

    data definition    x_t = a·x_0 + b·x_T        C_t   = (a, b)
    model definition   ε̂   = c·x_0 + d·x_T        C_t^ε = (c, d)

with x_0 the data and x_T the noise. Stacked, M_t = [C_t; C_t^ε] maps (x_0, x_T) to (x_t, ε̂), so

    (x_0, x_T) = M_t⁻¹ (x_t, ε̂)      and      x_{t-1} = C_{t-1} M_t⁻¹ (x_t, ε̂).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Coefficients = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Definition:
    """A data and a model definition over σ in [0, ``sigma_max``]; σ grows with the noise.

    ``data`` and ``model`` map float64 σ of any shape to their two coefficients of the same shape.
    ``timestep`` is what the denoiser is told in place of σ.
    """

    name: str
    prediction_type: str
    data: Coefficients
    model: Coefficients
    timestep: Callable[[Tensor], Tensor]
    sigma_max: float = 1.0

    def add_noise(self, x0: Tensor, xT: Tensor, sigma: Tensor) -> Tensor:
        """x_t = a·x_0 + b·x_T. ``x0``, ``xT``: (n, ...); ``sigma``: (n,) or a scalar."""
        a, b = self._coefficients(self.data, sigma, x0)
        return a * x0 + b * xT

    def target(self, x0: Tensor, xT: Tensor, sigma: Tensor) -> Tensor:
        """What the model should answer, c·x_0 + d·x_T; the velocity x_T - x_0 for flow matching."""
        c, d = self._coefficients(self.model, sigma, x0)
        return c * x0 + d * xT

    def determinant(self, sigma: Tensor) -> Tensor:
        """det M = a·d - b·c at each σ, float64; 0 where x_t and the output do not determine (x_0, x_T)."""
        sigma = sigma.double()
        (a, b), (c, d) = self.data(sigma), self.model(sigma)
        return a * d - b * c

    def recover(self, xt: Tensor, output: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, x_T) = M⁻¹ (x_t, output). Raises ValueError where M is singular."""
        a, b = self._coefficients(self.data, sigma, xt)
        c, d = self._coefficients(self.model, sigma, xt)
        determinant = self._nonzero_determinant(sigma, xt)
        return (d * xt - b * output) / determinant, (a * output - c * xt) / determinant

    def step(self, xt: Tensor, output: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The seed's iteration x_{t-1} = C_{t-1} M_t⁻¹ (x_t, output), from σ to σ_next."""
        x0, xT = self.recover(xt, output, sigma)
        return self.add_noise(x0, xT, sigma_next)

    def _coefficients(self, which: Coefficients, sigma: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        first, second = which(sigma.double())
        return _per_sample(first, like), _per_sample(second, like)

    def _nonzero_determinant(self, sigma: Tensor, like: Tensor) -> Tensor:
        determinant = self.determinant(sigma)
        singular = determinant.abs() < 1e-12
        if singular.any():
            where = sigma.double()[singular].flatten()[0].item()
            raise ValueError(
                f"{self.name} with prediction type {self.prediction_type} cannot be inverted at σ={where:g}: "
                f"the determinant of [C_t; C_t^ε] is {determinant[singular].flatten()[0].item():.1e}."
            )
        return _per_sample(determinant, like)


def _per_sample(coefficient: Tensor, like: Tensor) -> Tensor:
    """Shapes an (n,) or scalar coefficient to broadcast over (n, ...) and casts it to the samples' type."""
    coefficient = coefficient.to(device=like.device, dtype=like.dtype)
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - 1)) if coefficient.ndim else coefficient


def _flow_data(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - sigma, sigma


def _velocity(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return -torch.ones_like(sigma), torch.ones_like(sigma)


def _thousandths(sigma: Tensor) -> Tensor:
    return 1000 * sigma


FLOW = Definition("flow matching", "flow_prediction", _flow_data, _velocity, _thousandths)
"""x_t = (1-σ)·x_0 + σ·x_T, ε̂ = x_T - x_0 (Lipman et al. 2023, Liu et al. 2023); det M = 1 everywhere."""

DEFINITIONS = {"flow": FLOW}
