"""From noise to data, along a schedule, with any definition.

A sample that is noised along the path moves by dx = x_0·da + x_T·db, where (x_0, x_T) is what the model sees in x_t.
With both held fixed this integrates to the seed's iteration, `euler`; the others see the change of x_0 and x_T. In
λ = ln(a/b), half the log signal-to-noise ratio, the exact solution is

    x' = (b'/b)·x + b'·∫ e^λ·x_0(λ) dλ,

on which the multistep solvers rest (Lu et al. 2022). All coefficients are numbers on the host, known before the first
call of the model; the device is never waited for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from latentflow.diffusion.definition import Definition
from latentflow.diffusion.guidance import Predict

Noise = Callable[[int, Tensor], Tensor]
"""(step, x_t) to fresh standard normal noise like x_t."""

Callback = Callable[[int, Tensor, Tensor], None]
"""(steps done, x_t after the step, the model's guess of x_0 in it)."""


@dataclass(frozen=True)
class Point:
    """A definition at one σ: its four coefficients as numbers, and λ = ln(a/b), infinite at both ends."""

    sigma: Tensor
    a: float
    b: float
    c: float
    d: float
    det: float

    @property
    def log_snr(self) -> float:
        if self.a <= 0:
            return -math.inf
        return math.inf if self.b <= 0 else math.log(self.a / self.b)

    def x0(self, xt: Tensor, output: Tensor) -> Tensor:
        """The data that the model sees in x_t."""
        return _sum(self.d / self.det, xt, -self.b / self.det, output)

    def xT(self, xt: Tensor, output: Tensor) -> Tensor:
        """The noise that the model sees in x_t."""
        return _sum(self.a / self.det, output, -self.c / self.det, xt)


def points(definition: Definition, sigmas: Tensor) -> list[Point]:
    """The definition along a schedule. Raises ValueError where a σ from which a step must start is singular."""
    definition.invertible(sigmas[:-1])
    columns = [column.tolist() for column in (*definition.matrix(sigmas), definition.determinant(sigmas))]
    return [Point(sigma, *row) for sigma, *row in zip(sigmas.double(), *columns, strict=True)]


class Sampler(Protocol):
    """One way to get from a point to the next; a sampler object serves one run, since it may remember."""

    def step(self, index: int, xt: Tensor, output: Tensor, now: Point, then: Point) -> Tensor:
        """x_t at ``then``, given x_t and the model's output at ``now``."""


@torch.no_grad()
def sample(
    definition: Definition,
    predict: Predict,
    xT: Tensor,
    sigmas: Tensor,
    sampler: str = "euler",
    x0: Tensor | None = None,
    noise: Noise | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Data (n, ...) from noise ``xT`` (n, ...), by one call of ``predict`` per step (`heun`: two).

    ``sigmas`` is a schedule, or the rest of one (``schedules.begin_at``) on which ``x0`` is first noised by ``xT``:
    image-to-image. ``noise`` is what `ancestral` adds; torch's own generator when left out.
    Raises ValueError for an unknown sampler or where the definition cannot be inverted.
    """
    path = points(definition, sigmas)
    method = make(sampler, predict, noise)
    first = path[0]
    xt = first.b * xT if x0 is None else first.a * x0 + first.b * xT
    for index, (now, then) in enumerate(pairwise(path)):
        output = predict(xt, now.sigma)
        seen = now.x0(xt, output) if callback else None
        xt = method.step(index, xt, output, now, then)
        if callback and seen is not None:
            callback(index + 1, xt, seen)
    return xt


def make(name: str, predict: Predict, noise: Noise | None = None) -> Sampler:
    """A fresh sampler by name."""
    if name == "euler":
        return Euler()
    if name == "heun":
        return Heun(predict)
    if name == "dpm_solver_2m":
        return DPMSolver2M()
    if name == "unipc":
        return UniPC()
    if name == "ancestral":
        return Ancestral(noise or (lambda _, xt: torch.randn_like(xt)))
    raise ValueError(f"sampler {name!r} is not one of {', '.join(SAMPLERS)}")


SAMPLERS = ("euler", "heun", "dpm_solver_2m", "unipc", "ancestral")


class Euler:
    """The seed's iteration, x' = a'·x_0 + b'·x_T: first order; DDIM on the VP path (Song et al. 2021)."""

    def step(self, index: int, xt: Tensor, output: Tensor, now: Point, then: Point) -> Tensor:
        of_xt = (then.a * now.d - then.b * now.c) / now.det
        of_output = (then.b * now.a - then.a * now.b) / now.det
        return _sum(of_xt, xt, of_output, output)


class Heun:
    """The trapezoid rule on dx = x_0·da + x_T·db: second order at two calls; Euler on the last step to data.

    On the VE path it is Algorithm 1 of Karras et al. (2022).
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def step(self, index: int, xt: Tensor, output: Tensor, now: Point, then: Point) -> Tensor:
        ahead = Euler().step(index, xt, output, now, then)
        if then.b == 0:
            return ahead
        return self.corrected(xt, output, now, ahead, self._predict(ahead, then.sigma), then)

    @staticmethod
    def corrected(xt: Tensor, output: Tensor, now: Point, ahead: Tensor, output_ahead: Tensor, then: Point) -> Tensor:
        """The step once more, with the mean of (x_0, x_T) at both of its ends."""
        x0 = now.x0(xt, output) + then.x0(ahead, output_ahead)
        xT = now.xT(xt, output) + then.xT(ahead, output_ahead)
        return xt + _sum((then.a - now.a) / 2, x0, (then.b - now.b) / 2, xT)


class DPMSolver2M:
    """DPM-Solver++(2M) (Lu et al. 2022): x_0 extrapolated along λ from the last two points; second order.

    The first step and the one to data, where λ is infinite, are Euler's.
    """

    def __init__(self) -> None:
        self._past: tuple[Point, Tensor] | None = None

    def step(self, index: int, xt: Tensor, output: Tensor, now: Point, then: Point) -> Tensor:
        x0 = now.x0(xt, output)
        past, self._past = self._past, (now, x0)
        if past and then.b > 0:
            ahead = (then.log_snr - now.log_snr) / (now.log_snr - past[0].log_snr) / 2
            x0 = _sum(1 + ahead, x0, -ahead, past[1])
        return _towards(x0, xt, now, then)


class UniPC:
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023): each new output first corrects the step that led to it."""

    def __init__(self) -> None:
        self._before: tuple[Point, Tensor, Tensor] | None = None
        self._earlier: tuple[Point, Tensor] | None = None

    def step(self, index: int, xt: Tensor, output: Tensor, now: Point, then: Point) -> Tensor:
        x0 = now.x0(xt, output)
        if self._before:
            xt = self._corrected(x0, now)
            self._earlier = self._before[0], self._before[2]
        self._before = now, xt, x0
        predicted = x0
        if self._earlier and then.b > 0:
            earlier, x0_earlier = self._earlier
            ratio = (earlier.log_snr - now.log_snr) / (then.log_snr - now.log_snr)
            predicted = _sum(1 - 0.5 / ratio, x0, 0.5 / ratio, x0_earlier)
        return _towards(predicted, xt, now, then)

    def _corrected(self, x0: Tensor, now: Point) -> Tensor:
        """x_t at ``now`` once more, now that x_0 is known there too."""
        assert self._before
        before, xt, x0_before = self._before
        if not self._earlier:
            return _towards(_sum(0.5, x0_before, 0.5, x0), xt, before, now)
        earlier, x0_earlier = self._earlier
        h = now.log_snr - before.log_snr
        ratio = (earlier.log_snr - before.log_snr) / h
        scale = math.expm1(-h)
        first = scale / -h - 1
        second = first / -h - 0.5
        b1, b2 = first / scale, 2 * second / scale
        of_earlier = (b2 - b1) / (ratio - 1)
        of_now = b1 - of_earlier
        mixed = _sum(1 - of_now - of_earlier / ratio, x0_before, of_now, x0)
        return _towards(_sum(1.0, mixed, of_earlier / ratio, x0_earlier), xt, before, now)


class Ancestral:
    """Euler with the noise of the path's own reverse process put back in; DDPM on the VP path (Ho et al. 2020).

    From σ' to σ the path adds noise of variance v = b² - (a/a')²·b'², so given x_0 the way back has variance
    b'²·v/b²; the rest of b' keeps the direction of x_T. Weak order 1.
    """

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def step(self, index: int, xt: Tensor, output: Tensor, now: Point, then: Point) -> Tensor:
        added = now.b**2 - (now.a / then.a * then.b) ** 2
        fresh = then.b / now.b * math.sqrt(max(0.0, added))
        kept = math.sqrt(max(0.0, then.b**2 - fresh**2))
        back = _sum(then.a, now.x0(xt, output), kept, now.xT(xt, output))
        return torch.add(back, self._noise(index, xt), alpha=fresh) if fresh else back


def _towards(x0: Tensor, xt: Tensor, now: Point, then: Point) -> Tensor:
    """The exact solution for a constant x_0: (b'/b)·x + (a' - a·b'/b)·x_0."""
    shrink = then.b / now.b
    return _sum(shrink, xt, then.a - now.a * shrink, x0)


def _sum(first: float, x: Tensor, second: float, y: Tensor) -> Tensor:
    return torch.add(first * x, y, alpha=second)
