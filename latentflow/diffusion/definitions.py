"""The definitions that have a name: four paths, each with what its models are usually trained to answer.

On all paths but the trigonometric one σ is the noise's own coefficient b:

    path                a(σ)           b(σ)         σ in
    flow matching       1 - σ          σ            [0, 1]
    VP (DDPM)           √(1 - σ²)      σ            [0, √(1 - ᾱ_T)]
    trigonometric       cos(πσ/2)      sin(πσ/2)    [0, 1]
    VE (EDM)            1              σ            [0, 80]
"""

import importlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentflow.diffusion.definition import Coefficients, Definition

PREDICTIONS: dict[str, Callable[[Coefficients], Coefficients]] = {
    "flow_prediction": lambda data: lambda sigma: (-torch.ones_like(sigma), torch.ones_like(sigma)),
    "epsilon": lambda data: lambda sigma: (torch.zeros_like(sigma), torch.ones_like(sigma)),
    "sample": lambda data: lambda sigma: (torch.ones_like(sigma), torch.zeros_like(sigma)),
    "v_prediction": lambda data: lambda sigma: (-data(sigma)[1], data(sigma)[0]),
}
"""Model coefficients (c, d) by diffusers' names: x_T - x_0, x_T, x_0, and a·x_T - b·x_0 (Salimans & Ho 2022)."""


def _flow_path(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return 1 - sigma, sigma


def _vp_path(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return (1 - sigma.square()).clamp_min(0).sqrt(), sigma


def _trigonometric_path(sigma: Tensor) -> tuple[Tensor, Tensor]:
    # sin(π/2·(1-σ)) is cos(π/2·σ), but exactly 0 at σ = 1.
    return torch.sin(math.pi / 2 * (1 - sigma)), torch.sin(math.pi / 2 * sigma)


def _ve_path(sigma: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(sigma), sigma


def flow(prediction_type: str = "flow_prediction") -> Definition:
    """x_t = (1-σ)·x_0 + σ·x_T (Lipman et al. 2023, Liu et al. 2023); for the velocity det M = 1 everywhere."""
    return Definition("flow matching", prediction_type, _flow_path, PREDICTIONS[prediction_type](_flow_path))


def trigonometric(prediction_type: str = "v_prediction") -> Definition:
    """x_t = cos(πσ/2)·x_0 + sin(πσ/2)·x_T (Albergo & Vanden-Eijnden 2023; TrigFlow, Lu & Song 2025)."""
    model = PREDICTIONS[prediction_type](_trigonometric_path)
    return Definition("trigonometric path", prediction_type, _trigonometric_path, model)


BETA_START, BETA_END = 0.00085, 0.012
"""Stable Diffusion's."""


def scaled_linear_betas(count: int = 1000, start: float = BETA_START, end: float = BETA_END) -> Tensor:
    """The betas of Stable Diffusion: √β rises along a line; float64 (count,)."""
    return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64).square()


def linear_betas(count: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """The betas of DDPM (Ho et al. 2020); float64 (count,)."""
    return torch.linspace(start, end, count, dtype=torch.float64)


def ddpm(prediction_type: str = "epsilon", betas: Tensor | None = None) -> Definition:
    """x_t = √ᾱ·x_0 + √(1-ᾱ)·x_T with ᾱ = Π(1-β) (Ho et al. 2020), σ = √(1-ᾱ), and any σ between those of the table.

    ``betas`` (T,) default to Stable Diffusion's. The timestep is the table's index, 0 to T-1, and σ = 0 stands one
    before it; between entries index and σ follow straight lines. The time is the index, so that equal steps of time
    are diffusers' `trailing` timesteps.
    """
    table = betas_to_sigmas(scaled_linear_betas() if betas is None else betas)
    extended = torch.cat([torch.zeros(1, dtype=torch.float64), table])
    places = torch.arange(len(extended), dtype=torch.float64) - 1

    def timestep(sigma: Tensor) -> Tensor:
        return _interpolate(sigma, extended, places).clamp_min(0)

    def time_to_sigma(time: Tensor) -> Tensor:
        return _interpolate(time * len(table) - 1, places, extended)

    return Definition(
        "DDPM",
        prediction_type,
        _vp_path,
        PREDICTIONS[prediction_type](_vp_path),
        sigma_max=table[-1].item(),
        timestep=timestep,
        time_to_sigma=time_to_sigma,
    )


def betas_to_sigmas(betas: Tensor) -> Tensor:
    """σ = √(1-ᾱ) of every entry of a beta table, float64."""
    return (1 - (1 - betas.double()).cumprod(0)).sqrt()


def edm(sigma_data: float = 1.0, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Definition:
    """x_t = x_0 + σ·x_T with the preconditioning of Karras et al. (2022) as its model definition.

    Their denoiser is x_0 = c_skip·x_t + c_out·F, so F = (x_0 - c_skip·x_t) / c_out, which is a combination of x_0 and
    x_T: c = σ / (σ_data·h) and d = -σ_data / h with h = √(σ² + σ_data²). x_t enters the model divided by h, and the
    timestep is ln(σ)/4, kept finite by ``sigma_min``. Time runs along their spacing with ρ = 7 from ``sigma_min`` to
    ``sigma_max``, moved down so that it begins at 0.
    """
    first, last = sigma_min ** (1 / 7), sigma_max ** (1 / 7)

    def width(sigma: Tensor) -> Tensor:
        return (sigma.square() + sigma_data**2).sqrt()

    def model(sigma: Tensor) -> tuple[Tensor, Tensor]:
        return sigma / (sigma_data * width(sigma)), -sigma_data / width(sigma)

    def time_to_sigma(time: Tensor) -> Tensor:
        spaced = (first + time * (last - first)) ** 7 - first**7
        return torch.where(time >= 1, sigma_max, spaced * (sigma_max / (sigma_max - sigma_min)))

    return Definition(
        "EDM",
        "edm",
        _ve_path,
        model,
        sigma_max=sigma_max,
        timestep=lambda sigma: sigma.clamp_min(sigma_min).log() / 4,
        input_scale=lambda sigma: 1 / width(sigma),
        time_to_sigma=time_to_sigma,
    )


FLOW = flow()

DEFINITIONS: dict[str, Callable[[], Definition]] = {
    "flow": flow,
    "ddpm_epsilon": lambda: ddpm("epsilon"),
    "ddpm_v_prediction": lambda: ddpm("v_prediction"),
    "ddpm_sample": lambda: ddpm("sample"),
    "trigonometric": trigonometric,
    "edm": edm,
}
"""What `diffusion.definition` may name, besides a user's own as ``module:name``."""


def find(name: str) -> Definition:
    """The definition of a name, or a user's own at ``module:name`` (a Definition or a function that returns one).

    Raises ValueError that says what was found instead.
    """
    if name in DEFINITIONS:
        return DEFINITIONS[name]()
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        known = ", ".join(DEFINITIONS)
        raise ValueError(f"definition {name!r} is neither one of {known} nor your own as module:name")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, TypeError) as error:
        raise ValueError(f"definition {name!r}: the module cannot be imported ({error})") from error
    except AttributeError:
        raise ValueError(f"definition {name!r}: the module {module} has no {attribute}") from None
    try:
        definition = found() if callable(found) else found
    except TypeError as error:
        raise ValueError(f"definition {name!r} cannot be called without arguments ({error})") from error
    if not isinstance(definition, Definition):
        raise ValueError(f"definition {name!r} is a {type(definition).__name__}, not a latentflow.diffusion.Definition")
    return definition


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """Piecewise linear through the increasing points (xs, ys), exact at them; constant beyond the ends."""
    x, xs, ys = x.double(), xs.to(x.device), ys.to(x.device)
    x = x.clamp(xs[0], xs[-1])
    right = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return torch.lerp(ys[right - 1], ys[right], share)
