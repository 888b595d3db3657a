"""At which σ a denoiser is trained, and what each sample's error weighs.

Every density is the image of uniform numbers under a monotone function, so that it can be drawn freely or stratified:
one number per equal part of [0, 1], which lowers the variance of a batch's loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from latentflow.diffusion.definition import Definition
from latentflow.diffusion.schedules import shifted


@dataclass(frozen=True)
class Density:
    """A density of training times by name with its dials; each says which densities read it.

    mean, std: `logit_normal` and `log_normal`. mode_scale: `mode`. alpha, beta: `beta`. shift: `shifted`.
    """

    name: str = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    mode_scale: float = 1.29
    alpha: float = 1.0
    beta: float = 1.5
    shift: float = 1.0
    stratified: bool = False

    def __post_init__(self) -> None:
        if self.name not in DENSITIES:
            raise ValueError(f"σ density {self.name!r} is not one of {', '.join(DENSITIES)}")
        if min(self.alpha, self.beta) < 0.5:
            raise ValueError(f"a beta density needs alpha and beta of at least 1/2, found {self.alpha}, {self.beta}")

    def draw(self, definition: Definition, count: int, generator: Generator) -> Tensor:
        """``count`` σ of ``definition`` in (0, σ_max], float64 on the CPU."""
        uniform = torch.rand(count, generator=generator, dtype=torch.float64)
        if self.stratified:
            uniform = (torch.randperm(count, generator=generator) + uniform) / count
        # σ = 0 would be data itself, which has no noise to learn from and a logarithm of -∞.
        drawn = DENSITIES[self.name](self, definition, uniform.clamp(1e-9, 1 - 1e-9))
        return drawn.clamp_min(1e-9 * definition.sigma_max)


def _uniform(density: Density, definition: Definition, uniform: Tensor) -> Tensor:
    return definition.time_to_sigma(uniform)


def _shifted(density: Density, definition: Definition, uniform: Tensor) -> Tensor:
    """Uniform on a shifted grid."""
    return definition.time_to_sigma(shifted(uniform, density.shift))


def _logit_normal(density: Density, definition: Definition, uniform: Tensor) -> Tensor:
    """The time is the sigmoid of a normal (Esser et al. 2024); a mean above 0 draws nearer to noise."""
    return definition.time_to_sigma(torch.sigmoid(density.mean + density.std * torch.special.ndtri(uniform)))


def _log_normal(density: Density, definition: Definition, uniform: Tensor) -> Tensor:
    """ln(b/a) is a normal (Karras et al. 2022: mean -1.2, deviation 1.2) up to that of σ_max."""
    last = definition.angle(torch.tensor([definition.sigma_max], dtype=torch.float64))
    below = torch.special.ndtr((last.tan().log() - density.mean) / density.std)
    normal: Tensor = torch.special.ndtri(uniform * below)
    return definition.sigma_at_angle((density.mean + density.std * normal).exp().atan())


def _mode(density: Density, definition: Definition, uniform: Tensor) -> Tensor:
    """Heavy-tailed with its mode in the middle (Esser et al. 2024, eq. 20)."""
    bump = (math.pi / 2 * uniform).cos().square() - 1 + uniform
    return definition.time_to_sigma((1 - uniform - density.mode_scale * bump).clamp(1e-9, 1))


def _cosmap(density: Density, definition: Definition, uniform: Tensor) -> Tensor:
    """The cosine schedule's log signal-to-noise ratio on the straight path (Esser et al. 2024, eq. 21)."""
    return definition.time_to_sigma(1 - 1 / ((math.pi / 2 * uniform).tan() + 1))


def _beta(density: Density, definition: Definition, uniform: Tensor) -> Tensor:
    """Beta(alpha, beta); its quantiles by integration over sin²θ, where the density is bounded for dials ≥ 1/2."""
    theta = torch.linspace(0, math.pi / 2, 8193, dtype=torch.float64)
    rate = theta.sin() ** (2 * density.alpha - 1) * (math.pi / 2 - theta).sin() ** (2 * density.beta - 1)
    share = torch.cat([torch.zeros(1).double(), torch.cumulative_trapezoid(rate, theta)])
    share = share / share[-1]
    right = torch.searchsorted(share, uniform).clamp(1, len(share) - 1)
    part = (uniform - share[right - 1]) / (share[right] - share[right - 1])
    return definition.time_to_sigma(torch.lerp(theta[right - 1], theta[right], part).sin().square())


DENSITIES: dict[str, Callable[[Density, Definition, Tensor], Tensor]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "log_normal": _log_normal,
    "mode": _mode,
    "cosmap": _cosmap,
    "beta": _beta,
    "shifted": _shifted,
}


def weights(name: str, definition: Definition, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """The factor on each sample's squared error, float64 of ``sigma``'s shape; ``gamma`` caps min_snr_gamma."""
    if name not in WEIGHTINGS:
        raise ValueError(f"loss weighting {name!r} is not one of {', '.join(WEIGHTINGS)}")
    return WEIGHTINGS[name](definition, sigma.double(), gamma)


def _none(definition: Definition, sigma: Tensor, gamma: float) -> Tensor:
    return torch.ones_like(sigma)


def _min_snr_gamma(definition: Definition, sigma: Tensor, gamma: float) -> Tensor:
    """min(SNR, γ) on the error of x_0 (Hang et al. 2023), for any definition.

    At fixed x_t an error e of x_0 is an error -(det M / b)·e of the output, hence the factor (b / det M)².
    """
    a, b = definition.data(sigma)
    return (a / b).square().clamp_max(gamma) * (b / definition.determinant(sigma)).square()


def _sigma_sqrt(definition: Definition, sigma: Tensor, gamma: float) -> Tensor:
    """σ⁻² (Esser et al. 2024, as diffusers' training scripts spell it)."""
    return sigma.square().reciprocal()


def _cosmap_weight(definition: Definition, sigma: Tensor, gamma: float) -> Tensor:
    """2 / (π·(1 - 2σ + 2σ²)): the density of `cosmap`, as a weight."""
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))


def _bsmntw(definition: Definition, sigma: Tensor, gamma: float) -> Tensor:
    """A bell over the middle of [0, σ_max], 0 at both ends and 1 on average: exp(-2(σ/σ_max - 1/2)²) - exp(-1/2)."""
    bell = (-2 * (sigma / definition.sigma_max - 0.5).square()).exp() - math.exp(-0.5)
    return bell.clamp_min(0) / (math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - math.exp(-0.5))


WEIGHTINGS: dict[str, Callable[[Definition, Tensor, float], Tensor]] = {
    "none": _none,
    "min_snr_gamma": _min_snr_gamma,
    "sigma_sqrt": _sigma_sqrt,
    "cosmap": _cosmap_weight,
    "bsmntw": _bsmntw,
}
