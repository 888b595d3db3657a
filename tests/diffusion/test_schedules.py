"""Every schedule is a grid for every definition, and those that diffusers has are its own."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from latentflow.diffusion import DEFINITIONS, FLOW, SCHEDULES, Definition, Schedule, begin_at, ddpm, edm
from latentflow.diffusion.definitions import betas_to_sigmas, linear_betas, scaled_linear_betas
from latentflow.diffusion.schedules import check

ROUNDING = 1e-6
"""Of σ in [0, 1], which diffusers keeps as float32."""


@pytest.mark.parametrize("steps", [1, 2, 13, 50])
@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "given"])
@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_every_schedule_is_a_grid_of_every_definition(build: Callable[[], Definition], name: str, steps: int) -> None:
    definition = build()
    sigmas = Schedule(name, shift=3.0)(definition, steps, tokens=1024)
    assert sigmas.dtype == torch.float64
    assert len(sigmas) == steps + 1
    assert sigmas[0].item() == pytest.approx(definition.sigma_max, rel=1e-12)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def of_diffusers(steps: int, **config: Any) -> Tensor:
    """The flow grid of diffusers over the times that we start from."""
    scheduler = FlowMatchEulerDiscreteScheduler(**{key: value for key, value in config.items() if key != "mu"})
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1], mu=config.get("mu"))
    return scheduler.sigmas.double()


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_shift_is_diffusers(shift: float) -> None:
    assert torch.allclose(Schedule("shift", shift=shift)(FLOW, 20), of_diffusers(20, shift=shift), atol=ROUNDING)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (1024, 0.63)])
def test_the_dynamic_shift_is_diffusers(tokens: int, mu: float) -> None:
    theirs = of_diffusers(20, use_dynamic_shifting=True, mu=mu)
    assert torch.allclose(Schedule("dynamic_shift")(FLOW, 20, tokens), theirs, atol=ROUNDING)


def test_the_dynamic_shift_asks_for_tokens() -> None:
    with pytest.raises(ValueError, match="dynamic_shift needs the number of tokens"):
        Schedule("dynamic_shift")(FLOW, 20)


def test_flows_karras_grid_is_diffusers() -> None:
    """Theirs bends between the first and the last time that it is given."""
    theirs = of_diffusers(20, use_karras_sigmas=True)
    ours = Schedule("karras", sigma_min=theirs[-2].item())(FLOW, 20)
    assert torch.allclose(ours, theirs, atol=ROUNDING)


def test_ddpms_karras_grid_is_diffusers() -> None:
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, use_karras_sigmas=True
    )
    scheduler.set_timesteps(20)
    # Theirs is b/a, ours b.
    theirs = scheduler.sigmas.double().atan().sin()
    ours = Schedule("karras", sigma_min=scheduler.sigmas[-2].item())(ddpm(), 20)
    assert torch.allclose(ours, theirs, atol=ROUNDING)


def test_edms_karras_grid_is_diffusers() -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=50, rho=5)
    scheduler.set_timesteps(20)
    ours = Schedule("karras", sigma_min=0.01, rho=5)(edm(sigma_max=50), 20)
    assert torch.allclose(ours, scheduler.sigmas.double(), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 80, 1000])
def test_the_discrete_grid_is_at_diffusers_trailing_timesteps(steps: int) -> None:
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    definition = ddpm()
    timesteps = definition.timestep(Schedule("discrete")(definition, steps)[:-1])
    assert torch.allclose(timesteps, timesteps.round(), atol=1e-9)
    assert timesteps.round().long().tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize(
    ("kind", "betas", "ends"),
    [("scaled_linear", scaled_linear_betas(), (0.00085, 0.012)), ("linear", linear_betas(), (1e-4, 0.02))],
)
def test_the_beta_tables_are_diffusers(kind: str, betas: Tensor, ends: tuple[float, float]) -> None:
    scheduler = DDPMScheduler(beta_schedule=kind, beta_start=ends[0], beta_end=ends[1])
    assert torch.allclose(betas, scheduler.betas.double(), rtol=1e-5)
    assert torch.allclose(betas_to_sigmas(betas), (1 - scheduler.alphas_cumprod.double()).sqrt(), atol=ROUNDING)


def test_the_cosine_grid_takes_equal_steps_of_the_angle() -> None:
    for definition in (FLOW, ddpm(), edm()):
        steps = definition.angle(Schedule("cosine")(definition, 8)).diff()
        assert torch.allclose(steps, steps[0].expand(8), rtol=1e-9)


def test_linear_is_an_unrounded_discrete() -> None:
    definition = ddpm()
    # 7 does not divide 1000, 8 does.
    ours, whole = (Schedule(name)(definition, 8) for name in ("linear", "discrete"))
    assert torch.allclose(ours, whole, atol=1e-12)
    ours, whole = (definition.timestep(Schedule(name)(definition, 7)) for name in ("linear", "discrete"))
    assert 0.1 < (ours - whole).abs().max() <= 0.5


def test_given_sigmas_are_taken_as_they_are() -> None:
    assert Schedule("given", sigmas=(1.0, 0.4, 0.0))(FLOW, 2).tolist() == [1, 0.4, 0]
    with pytest.raises(ValueError, match="3 steps need 4 given σ, found 3"):
        Schedule("given", sigmas=(1.0, 0.4, 0.0))(FLOW, 3)


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ((0.9, 0.5, 0.0), r"a schedule of flow matching starts at σ=1, found 0\.9"),
        ((1.0, 0.5, 0.1), r"a schedule ends at σ=0, found 0\.1"),
        ((1.0, 0.5, 0.5, 0.0), r"decreases from σ to σ, found 0\.5 before 0\.5 at step 1"),
        ((1.0, 0.2, 0.5, 0.0), r"decreases from σ to σ, found 0\.2 before 0\.5 at step 1"),
        ((math.nan, 0.5, 0.0), "starts at σ=1, found nan"),
        ((1.0, math.nan, 0.0), "decreases from σ to σ, found 1 before nan at step 0"),
    ],
)
def test_what_is_no_grid_is_refused(sigmas: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check(torch.tensor(sigmas, dtype=torch.float64), FLOW)
    with pytest.raises(ValueError, match=sentence):
        Schedule("given", sigmas=sigmas)(FLOW, len(sigmas) - 1)


def test_an_unknown_schedule_or_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'lineer' is not one of linear, shift, .*given"):
        Schedule("lineer")
    with pytest.raises(ValueError, match="at least 1 step, found 0"):
        Schedule()(FLOW, 0)


@pytest.mark.parametrize(("strength", "left"), [(1.0, 10), (0.5, 5), (0.26, 3), (0.001, 1)])
def test_image_to_image_begins_within_the_schedule(strength: float, left: int) -> None:
    sigmas = Schedule()(FLOW, 10)
    assert torch.equal(begin_at(sigmas, strength), sigmas[10 - left :])


@pytest.mark.parametrize("strength", [0.0, 1.1, -0.5, math.nan])
def test_a_strength_outside_of_its_range_is_refused(strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength must lie in \(0, 1\]"):
        begin_at(Schedule()(FLOW, 10), strength)
