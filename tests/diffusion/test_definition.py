"""The derived formulas, for flow matching and for any invertible pair of definitions."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentflow.diffusion import FLOW, Definition, draw_sigmas, euler, guide, sampling_sigmas

unit = st.floats(0.02, 0.98)
angle = st.floats(-3, 3)


def linear(first: float, second: float):
    def coefficients(sigma: Tensor) -> tuple[Tensor, Tensor]:
        return first + 0 * sigma, second + 0 * sigma

    return coefficients


def samples(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@given(c=angle, d=angle, sigma=unit, share=unit)
def test_a_step_with_the_exact_output_lands_on_the_data_definition(
    c: float, d: float, sigma: float, share: float
) -> None:
    definition = Definition("random", "custom", FLOW.data, linear(c, d), FLOW.timestep)
    now = torch.tensor([sigma, sigma / 2], dtype=torch.float64)
    then = now * share
    if definition.determinant(now).abs().min() < 1e-3:
        return
    x0, xT = samples(2, 3, 4)
    xt, output = definition.add_noise(x0, xT, now), definition.target(x0, xT, now)
    assert torch.allclose(definition.step(xt, output, now, then), definition.add_noise(x0, xT, then), atol=1e-9)
    for recovered, true in zip(definition.recover(xt, output, now), (x0, xT), strict=True):
        assert torch.allclose(recovered, true, atol=1e-9)


def test_flow_is_the_seeds() -> None:
    x0, xT = samples(5, 2, 2)
    sigma = torch.linspace(0, 1, 5, dtype=torch.float64)
    column = sigma[:, None, None]
    assert torch.equal(FLOW.add_noise(x0, xT, sigma), (1 - column) * x0 + column * xT)
    assert torch.equal(FLOW.target(x0, xT, sigma), xT - x0)
    assert torch.allclose(FLOW.determinant(sigma), torch.ones(5, dtype=torch.float64))
    xt, velocity, then = FLOW.add_noise(x0, xT, sigma), FLOW.target(x0, xT, sigma), sigma / 2
    assert torch.allclose(FLOW.step(xt, velocity, sigma, then), xt + (then - sigma)[:, None, None] * velocity)


def test_a_singular_step_says_where() -> None:
    noise = Definition("flow matching", "epsilon", FLOW.data, linear(0, 1), FLOW.timestep)
    x0, xT = samples(1, 2)
    with pytest.raises(ValueError, match=r"epsilon cannot be inverted at σ=1"):
        noise.recover(x0, xT, torch.tensor(1.0))


def test_euler_with_the_true_velocity_of_one_point_reaches_it() -> None:
    x0, xT = samples(4, 3)
    drawn = euler(FLOW, lambda xt, sigma: (xt - x0) / sigma, xT, sampling_sigmas(8))
    assert torch.allclose(drawn, x0, atol=1e-12)


def test_euler_equals_the_scheduler_that_ships() -> None:
    """The first-order flow DPM-Solver on its own grid, with integer timesteps, is the seed's step."""
    from latentflow.denoisers.schedulers import flow_dpm_solver

    scheduler = flow_dpm_solver(shift=1.0)
    scheduler.set_timesteps(12)
    _, xT = samples(4, 3)

    def predict(xt: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(xt) + sigma

    theirs = xT
    for index, timestep in enumerate(scheduler.timesteps):
        theirs = scheduler.step(predict(theirs, scheduler.sigmas[index].double()), timestep, theirs).prev_sample
    sigmas = scheduler.sigmas.double()
    ours = xT
    for sigma, sigma_next in pairwise(sigmas):
        ours = FLOW.step(ours, predict(ours, sigma), sigma, sigma_next)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_shifted_grid_matches_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    for shift in (1.0, 3.0):
        theirs = torch.tensor(FlowMatchEulerDiscreteScheduler(shift=shift).sigmas[::100].tolist(), dtype=torch.float64)
        raw = torch.linspace(1, 0.001, 1000, dtype=torch.float64)[::100]
        ours = shift * raw / (1 + (shift - 1) * raw)
        assert torch.allclose(ours, theirs, atol=1e-6)
        grid = sampling_sigmas(10, shift=shift)
        assert grid[0] == 1
        assert grid[-1] == 0
        assert (grid.diff() < 0).all()


def test_guidance() -> None:
    conditional, unconditional = samples(2, 2)
    assert torch.allclose(guide(conditional, unconditional, 1), conditional)
    assert torch.equal(guide(conditional, unconditional, 0), unconditional)


def test_training_sigmas() -> None:
    def drawn(how: str, mean: float = 0.0) -> Tensor:
        return draw_sigmas(20_000, how, mean, 1.0, torch.Generator().manual_seed(0))

    assert drawn("logit_normal").mean() == pytest.approx(0.5, abs=0.01)
    assert drawn("logit_normal", 0.8).median() == pytest.approx(0.69, abs=0.01)
    uniform = drawn("uniform").sort().values
    assert (uniform - torch.linspace(0, 1, 20_000, dtype=torch.float64)).abs().max() < 1e-3
