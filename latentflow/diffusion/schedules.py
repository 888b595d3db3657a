"""Along which σ a sampler walks from noise to data: n + 1 strictly decreasing values from σ_max to 0.

Most schedules are laid out on the definition's time u in [0, 1], where 1 is noise; `karras` is laid out on the noise
itself. Which one a model is drawn with is a matter of evaluation, except that the shift should be the one it was
trained for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentflow.diffusion.definition import Definition


@dataclass(frozen=True)
class Schedule:
    """A schedule by name with its dials; each says which schedules read it.

    shift: `shift`, the factor of ``shifted``. base_shift, max_shift: `dynamic_shift`, μ at 256 and at 4096 tokens.
    sigma_min, rho: `karras`, the last σ before 0 and the bend. sigmas: `given`, all σ from σ_max to 0.
    """

    name: str = "linear"
    shift: float = 1.0
    base_shift: float = 0.5
    max_shift: float = 1.15
    sigma_min: float = 0.002
    rho: float = 7.0
    sigmas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"schedule {self.name!r} is not one of {', '.join(SCHEDULES)}")
        for dial in ("shift", "sigma_min", "rho"):
            if not getattr(self, dial) > 0:
                raise ValueError(f"a schedule's {dial} must be above 0, found {getattr(self, dial)}")

    def __call__(self, definition: Definition, steps: int, tokens: int | None = None) -> Tensor:
        """``steps + 1`` σ of ``definition``, float64 on the CPU; ``tokens`` is the length of a picture's sequence.

        Raises ValueError where they do not start at σ_max, end at 0 and decrease in between.
        """
        if steps < 1:
            raise ValueError(f"a schedule needs at least 1 step, found {steps}")
        sigmas = SCHEDULES[self.name](self, definition, steps, tokens)
        check(sigmas, definition)
        return sigmas


def check(sigmas: Tensor, definition: Definition) -> None:
    """Raises ValueError that says what is wrong with a grid of σ."""
    first, last = sigmas[0].item(), sigmas[-1].item()
    if not math.isclose(first, definition.sigma_max, rel_tol=1e-9):
        raise ValueError(f"a schedule of {definition.name} starts at σ={definition.sigma_max:g}, found {first:g}")
    if last != 0:
        raise ValueError(f"a schedule ends at σ=0, found {last:g}")
    rising = ~(sigmas.diff() < 0)
    if rising.any():
        at = int(rising.nonzero()[0])
        raise ValueError(
            f"a schedule decreases from σ to σ, found {sigmas[at]:g} before {sigmas[at + 1]:g} at step {at}"
        )


def begin_at(sigmas: Tensor, strength: float) -> Tensor:
    """The rest of a schedule for image-to-image: the last ``strength`` share of its steps, at least one."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must lie in (0, 1], found {strength:g}")
    steps = len(sigmas) - 1
    return sigmas[steps - max(1, round(strength * steps)) :]


def shifted(time: Tensor, shift: float) -> Tensor:
    """s·u / (1 + (s-1)·u) (Esser et al. 2024): above 1 stays longer near noise; 0 and 1 stay where they are."""
    return shift * time / (1 + (shift - 1) * time)


def dynamic_mu(tokens: int, base_shift: float, max_shift: float) -> float:
    """μ on the line through (256, base_shift) and (4096, max_shift); the shift is e^μ (FLUX.1)."""
    return base_shift + (max_shift - base_shift) * (tokens - 256) / (4096 - 256)


def _times(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


def _ends(definition: Definition) -> tuple[Tensor, Tensor]:
    ends = torch.tensor([[definition.sigma_max], [0.0]], dtype=torch.float64)
    return ends[0], ends[1]


def _linear(schedule: Schedule, definition: Definition, steps: int, tokens: int | None) -> Tensor:
    """Equal steps of time; for DDPM diffusers' `trailing` timesteps, not rounded."""
    return definition.time_to_sigma(_times(steps))


def _shift(schedule: Schedule, definition: Definition, steps: int, tokens: int | None) -> Tensor:
    """Equal steps of time, shifted by a constant."""
    return definition.time_to_sigma(shifted(_times(steps), schedule.shift))


def _dynamic_shift(schedule: Schedule, definition: Definition, steps: int, tokens: int | None) -> Tensor:
    """Equal steps of time, shifted the more the longer a picture's sequence of tokens is."""
    if tokens is None:
        raise ValueError("the schedule dynamic_shift needs the number of tokens of a picture")
    mu = dynamic_mu(tokens, schedule.base_shift, schedule.max_shift)
    return definition.time_to_sigma(shifted(_times(steps), math.exp(mu)))


def _cosine(schedule: Schedule, definition: Definition, steps: int, tokens: int | None) -> Tensor:
    """Equal steps of the angle of (a, b): ᾱ falls as a squared cosine (Nichol & Dhariwal 2021)."""
    first, last = _ends(definition)
    return torch.cat([first, definition.sigma_at_angle(definition.angle(first) * _times(steps)[1:-1]), last])


def _karras(schedule: Schedule, definition: Definition, steps: int, tokens: int | None) -> Tensor:
    """Equal steps of the noise's 1/ρ-th power (Karras et al. 2022), then 0.

    The noise is b/a, as in their paper, where it is finite at σ_max, else σ itself, as for flow matching.
    """
    first, last = _ends(definition)
    a, b = definition.data(first)
    finite = bool(a > 1e-9)
    most = (b / a if finite else first) ** (1 / schedule.rho)
    least = schedule.sigma_min ** (1 / schedule.rho)
    noise = (least + torch.linspace(1, 0, steps, dtype=torch.float64) * (most - least)) ** schedule.rho
    inner = definition.sigma_at_angle(noise[1:].atan()) if finite else noise[1:]
    return torch.cat([first, inner, last])


def _discrete(schedule: Schedule, definition: Definition, steps: int, tokens: int | None) -> Tensor:
    """Whole thousandths of the time: for DDPM its table, at diffusers' `trailing` timesteps up to their rounding."""
    left = torch.arange(steps, -1, -1, dtype=torch.float64)
    return definition.time_to_sigma((1000 * left / steps).round() / 1000)


def _given(schedule: Schedule, definition: Definition, steps: int, tokens: int | None) -> Tensor:
    """The user's own σ; their number sets the steps."""
    if len(schedule.sigmas) != steps + 1:
        raise ValueError(f"{steps} steps need {steps + 1} given σ, found {len(schedule.sigmas)}")
    return torch.tensor(schedule.sigmas, dtype=torch.float64)


SCHEDULES: dict[str, Callable[[Schedule, Definition, int, int | None], Tensor]] = {
    "linear": _linear,
    "shift": _shift,
    "dynamic_shift": _dynamic_shift,
    "cosine": _cosine,
    "karras": _karras,
    "discrete": _discrete,
    "given": _given,
}
