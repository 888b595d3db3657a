"""A diffusion model is two definitions; noising, target, recovery and the iteration are derived from them.

    data definition    x_t = a·x_0 + b·x_T        C_t   = (a, b)
    model definition   ε̂   = c·x_0 + d·x_T        C_t^ε = (c, d)

with x_0 the data and x_T the noise. Stacked, M_t = [C_t; C_t^ε] maps (x_0, x_T) to (x_t, ε̂), so

    (x_0, x_T) = M_t⁻¹ (x_t, ε̂)      and      x_{t-1} = C_{t-1} M_t⁻¹ (x_t, ε̂).

Nothing here knows a particular path or prediction type; those are in ``definitions``.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Coefficients = Callable[[Tensor], tuple[Tensor, Tensor]]
Map = Callable[[Tensor], Tensor]

SINGULAR = 1e-12
"""Below this a determinant counts as zero: float64 coefficients leave about three digits there."""


def identity(sigma: Tensor) -> Tensor:
    """σ itself."""
    return sigma


def thousandths(sigma: Tensor) -> Tensor:
    """1000·σ, the timestep of models that count from 0 to 1000."""
    return 1000 * sigma


@dataclass(frozen=True)
class Definition:
    """A data and a model definition over σ in [0, ``sigma_max``]; σ = 0 is data and grows with the noise.

    Every function maps float64 σ of any shape, elementwise: ``data`` and ``model`` to their two coefficients,
    ``timestep`` to what the denoiser is told in place of σ, ``input_scale`` to the factor on x_t before the
    denoiser, ``time_to_sigma`` from a time in [0, 1] on which schedules and training densities are laid out
    (0 to σ = 0, 1 to ``sigma_max``; increasing).
    """

    name: str
    prediction_type: str
    data: Coefficients
    model: Coefficients
    sigma_max: float = 1.0
    timestep: Map = thousandths
    input_scale: Map = torch.ones_like
    time_to_sigma: Map = identity

    def add_noise(self, x0: Tensor, xT: Tensor, sigma: Tensor) -> Tensor:
        """x_t = a·x_0 + b·x_T. ``x0``, ``xT``: (n, ...); ``sigma``: (n,) or a scalar."""
        a, b = self.data(sigma.double())
        return _spread(a, x0) * x0 + _spread(b, x0) * xT

    def target(self, x0: Tensor, xT: Tensor, sigma: Tensor) -> Tensor:
        """What the model should answer, c·x_0 + d·x_T; for flow matching the velocity x_T - x_0."""
        c, d = self.model(sigma.double())
        return _spread(c, x0) * x0 + _spread(d, x0) * xT

    def determinant(self, sigma: Tensor) -> Tensor:
        """det M = a·d - b·c at each σ, float64; 0 where x_t and the output do not determine (x_0, x_T)."""
        a, b, c, d = self.matrix(sigma)
        return a * d - b * c

    def matrix(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, b, c, d) of M at each σ, float64."""
        sigma = sigma.double()
        return *self.data(sigma), *self.model(sigma)

    def recover(self, xt: Tensor, output: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, x_T) = M⁻¹ (x_t, output). Raises ValueError where M is singular."""
        a, b, c, d = self.matrix(sigma)
        det = self.invertible(sigma)
        x0 = _spread(d / det, xt) * xt - _spread(b / det, xt) * output
        xT = _spread(a / det, xt) * output - _spread(c / det, xt) * xt
        return x0, xT

    def step(self, xt: Tensor, output: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        """The seed's iteration x_{t-1} = C_{t-1} M_t⁻¹ (x_t, output). Raises ValueError where M is singular at σ."""
        a, b, c, d = self.matrix(sigma)
        a_next, b_next = self.data(sigma_next.double())
        det = self.invertible(sigma)
        of_xt, of_output = (a_next * d - b_next * c) / det, (b_next * a - a_next * b) / det
        return _spread(of_xt, xt) * xt + _spread(of_output, xt) * output

    def convert(self, output: Tensor, xt: Tensor, sigma: Tensor, to: "Definition") -> Tensor:
        """What a model of definition ``to`` would answer, at the σ and x_t that ``match`` gives.

        On one path these are σ and x_t themselves. Raises ValueError where M is singular at σ.
        """
        x0, xT = self.recover(xt, output, sigma)
        return to.target(x0, xT, self.match(sigma, to)[0])

    def match(self, sigma: Tensor, to: "Definition") -> tuple[Tensor, Tensor]:
        """(σ', k): where ``to`` has the same a/b, and the factor for which k·x_t lies on its path; float64.

        Raises ValueError where ``to`` ends before it is as noisy as σ.
        """
        sigma = sigma.double()
        if to.data is self.data:
            return sigma, torch.ones_like(sigma)
        matched = to.sigma_at_angle(self.angle(sigma))
        (a, b), (a_to, b_to) = self.data(sigma), to.data(matched)
        return matched, torch.hypot(a_to, b_to) / torch.hypot(a, b)

    def angle(self, sigma: Tensor) -> Tensor:
        """How far x_t is from data, as the angle of (a, b): 0 for data, π/2 for noise alone; float64."""
        a, b = self.data(sigma.double())
        return torch.atan2(b, a)

    def sigma_at_angle(self, angle: Tensor) -> Tensor:
        """The inverse of ``angle``, by bisection, float64. Raises ValueError beyond the angle of ``sigma_max``."""
        angle = angle.double()
        low, high = torch.zeros_like(angle), torch.full_like(angle, self.sigma_max)
        if (angle > self.angle(high) + SINGULAR).any():
            raise ValueError(f"{self.name} ends at σ={self.sigma_max:g}, before it is as noisy as what is asked for.")
        # Each round halves the interval: 80 leave less than a float64 can tell, also next to 0.
        for _ in range(80):
            middle = (low + high) / 2
            below = self.angle(middle) < angle
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high

    def invertible(self, sigma: Tensor) -> Tensor:
        """det M at each σ. Raises ValueError with definition, σ and determinant where it is 0."""
        determinant = self.determinant(sigma)
        singular = determinant.abs() < SINGULAR
        if singular.any():
            where = sigma.double()[singular].flatten()[0].item()
            raise ValueError(
                f"{self.name} with prediction type {self.prediction_type} cannot be inverted at σ={where:g}: "
                f"the determinant of [C_t; C_t^ε] is {determinant[singular].flatten()[0].item():.1e}."
            )
        return determinant


def _spread(coefficient: Tensor, like: Tensor) -> Tensor:
    """Shapes an (n,) or scalar coefficient to broadcast over (n, ...) and casts it to the samples' type."""
    coefficient = coefficient.to(device=like.device, dtype=like.dtype)
    return coefficient.reshape(coefficient.shape + (1,) * (like.ndim - 1)) if coefficient.ndim else coefficient
