"""Training σ follow their densities, and each sample's error weighs what the papers say."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
    compute_snr,
)
from torch import Generator, Tensor

from latentflow.diffusion import (
    DEFINITIONS,
    DENSITIES,
    FLOW,
    WEIGHTINGS,
    Definition,
    Density,
    ddpm,
    edm,
    flow,
    trigonometric,
    weights,
)
from latentflow.diffusion.definitions import betas_to_sigmas, scaled_linear_betas


def drawn(density: Density, definition: Definition = FLOW, count: int = 20_000, seed: int = 0) -> Tensor:
    return density.draw(definition, count, Generator().manual_seed(seed))


def normal_share(x: Tensor) -> Tensor:
    """Of a standard normal, below x."""
    return torch.special.ndtr(x)


def karras_time(sigma: Tensor) -> Tensor:
    """The time of an EDM σ: Karras' spacing with ρ = 7 from 0.002 to 80, moved down to begin at 0."""
    first, last = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return ((sigma * (80 - 0.002) / 80 + 0.002) ** (1 / 7) - first) / (last - first)


@pytest.mark.parametrize(
    ("density", "definition", "share_below"),
    [
        (Density("uniform"), FLOW, lambda t: t),
        (Density("logit_normal"), FLOW, lambda t: normal_share(t.logit())),
        (Density("logit_normal", mean=0.8, std=0.5), FLOW, lambda t: normal_share((t.logit() - 0.8) / 0.5)),
        (Density("log_normal", mean=-1.2, std=1.2), edm(), lambda t: normal_share((t.log() + 1.2) / 1.2)),
        (Density("cosmap"), FLOW, lambda t: 2 / math.pi * ((2 * t - 1).atan() + math.pi / 4)),
        (Density("mode", mode_scale=0.0), FLOW, lambda t: t),
        (Density("shifted", shift=3.0), FLOW, lambda t: t / (3 - 2 * t)),
        (Density("beta", alpha=1.0, beta=1.0), FLOW, lambda t: t),
        (Density("beta", alpha=1.0, beta=1.5), FLOW, lambda t: 1 - (1 - t) ** 1.5),
        (Density("beta", alpha=0.5, beta=0.5), FLOW, lambda t: 2 / math.pi * t.sqrt().asin()),
        (Density("beta", alpha=2.0, beta=2.0), FLOW, lambda t: 3 * t**2 - 2 * t**3),
        (Density("beta", alpha=8.0, beta=1.0), FLOW, lambda t: t**8),
        (Density("uniform"), trigonometric(), lambda t: t),
        (Density("uniform"), edm(), karras_time),
        # Times are the table's indices, and 0 stands before the first of them.
        (Density("uniform"), ddpm(), lambda t: (ddpm().timestep(t) + 1) / 1000),
    ],
    ids=lambda value: value.name if isinstance(value, Density | Definition) else "",
)
@pytest.mark.parametrize("stratified", [False, True])
def test_a_density_has_its_closed_form(
    density: Density, definition: Definition, share_below: Callable[[Tensor], Tensor], stratified: bool
) -> None:
    """Under its own distribution function any density becomes uniform; one draw per part leaves no gap at all."""
    count = 20_000
    sigma = drawn(Density(**vars(density) | {"stratified": stratified}), definition, count)
    share = share_below(sigma).sort().values
    even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    # Kolmogorov: the largest gap of free draws exceeds 2/√n once in 1500 seeds. DDPM's time below its first index
    # is not told from it, which is a thousandth of all; EDM's ends at 80, which cuts 2 in a million off a log-normal.
    gap = {"DDPM": 1e-3, "EDM": 2e-6}.get(definition.name, 0)
    assert (share - even).abs().max() < gap + (0.51 / count if stratified else 2 / math.sqrt(count))


@pytest.mark.parametrize(
    ("density", "theirs"),
    [
        (Density("logit_normal", mean=0.3, std=0.8), {"logit_mean": 0.3, "logit_std": 0.8}),
        (Density("mode"), {"mode_scale": 1.29}),
        (Density("mode", mode_scale=-0.7), {"mode_scale": -0.7}),
    ],
)
def test_a_density_is_that_of_diffusers(density: Density, theirs: dict[str, Any]) -> None:
    count, at = 200_000, torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
    other = compute_density_for_timestep_sampling(density.name, count, generator=Generator().manual_seed(0), **theirs)
    ours = drawn(Density(**vars(density) | {"stratified": True}), count=count)
    # Theirs are free draws, whose share below a point deviates by at most 1/(2√n).
    below = (other.double().sort().values < ours.quantile(at)[:, None]).double().mean(-1)
    assert (below - at).abs().max() < 4 * 0.5 / math.sqrt(count)


def test_a_beta_density_is_that_of_torch() -> None:
    ours = drawn(Density("beta", alpha=0.7, beta=3.2, stratified=True))
    theirs = torch.distributions.Beta(torch.tensor(0.7).double(), torch.tensor(3.2).double())
    assert ours.mean().item() == pytest.approx(theirs.mean.item(), rel=1e-4)
    assert ours.var().item() == pytest.approx(theirs.variance.item(), rel=1e-3)


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_drawn_sigmas_are_noisy_and_within_the_definition(
    build: Callable[[], Definition], name: str, stratified: bool
) -> None:
    definition = build()
    sigma = drawn(Density(name, shift=3.0, stratified=stratified), definition)
    assert sigma.dtype == torch.float64
    assert sigma.shape == (20_000,)
    assert (sigma > 0).all()
    assert (sigma <= definition.sigma_max).all()
    again, other = (drawn(Density(name, shift=3.0, stratified=stratified), definition, seed=seed) for seed in (0, 1))
    assert torch.equal(sigma, again)
    assert not torch.equal(sigma, other)


@pytest.mark.parametrize("uniform", [0.0, 1.0])
@pytest.mark.parametrize("name", DENSITIES)
@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_the_rarest_draws_are_noisy_and_within_the_definition(
    build: Callable[[], Definition], name: str, uniform: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = build()
    monkeypatch.setattr(torch, "rand", lambda count, **options: torch.full((count,), uniform, dtype=torch.float64))
    sigma = drawn(Density(name, std=2.0, shift=3.0), definition, count=1)
    assert 0 < sigma.item() <= definition.sigma_max


def test_stratified_draws_take_one_of_each_part_in_any_order() -> None:
    sigma = drawn(Density("uniform", stratified=True), count=64)
    assert torch.equal((sigma * 64).long().sort().values, torch.arange(64))
    assert not torch.equal(sigma.sort().values, sigma)


def test_stratified_draws_have_much_steadier_means() -> None:
    def deviation(stratified: bool) -> float:
        density = Density("logit_normal", stratified=stratified)
        return torch.stack([drawn(density, count=64, seed=seed).mean() for seed in range(50)]).std().item()

    # 64 parts of one draw each: the mean's deviation falls with n^(3/2) in place of n^(1/2).
    assert deviation(True) < deviation(False) / 16


SIGMAS = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [
        ("epsilon", lambda snr, capped: capped / snr),
        ("v_prediction", lambda snr, capped: capped / (snr + 1)),
        ("sample", lambda snr, capped: capped),
    ],
)
def test_min_snr_gamma_on_the_vp_path_is_the_papers(
    prediction_type: str, expected: Callable[[Tensor, Tensor], Tensor], gamma: float
) -> None:
    betas = scaled_linear_betas()
    scheduler = DDPMScheduler()
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    snr = compute_snr(scheduler, torch.arange(1000)).double()
    ours = weights("min_snr_gamma", ddpm(prediction_type), betas_to_sigmas(betas), gamma)
    assert torch.allclose(ours, expected(snr, snr.clamp_max(gamma)), rtol=1e-5)


@pytest.mark.parametrize("build", [*DEFINITIONS.values(), lambda: flow("epsilon"), lambda: trigonometric("sample")])
def test_min_snr_gamma_weighs_the_error_of_the_data_alike(build: Callable[[], Definition]) -> None:
    """Whatever the model is to say: an error of its answer counts as the error of x_0 that it makes at this x_t."""
    definition = build()
    sigma = definition.sigma_max * SIGMAS
    xt, answer, error = torch.randn((3, 25, 4), generator=Generator().manual_seed(0), dtype=torch.float64)
    of_data = definition.recover(xt, answer + error, sigma)[0] - definition.recover(xt, answer, sigma)[0]
    a, b = definition.data(sigma)
    expected = (a / b).square().clamp_max(5) * of_data.square().sum(-1)
    assert torch.allclose(weights("min_snr_gamma", definition, sigma) * error.square().sum(-1), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["sigma_sqrt", "cosmap"])
def test_a_weighting_is_that_of_diffusers(name: str) -> None:
    theirs = compute_loss_weighting_for_sd3(name, SIGMAS).double()
    assert torch.allclose(weights(name, FLOW, SIGMAS), theirs, rtol=1e-6)


@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_bsmntw_is_a_bell_of_mean_1(build: Callable[[], Definition]) -> None:
    definition = build()
    bell = weights("bsmntw", definition, definition.sigma_max * torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert bell[[0, -1]].abs().max() < 1e-12
    assert (bell[:501].diff() > 0).all()
    assert torch.allclose(bell, bell.flip(0), atol=1e-12)
    assert torch.trapezoid(bell, dx=1e-3).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_weights_are_finite_float64_of_the_shape_of_sigma(build: Callable[[], Definition], name: str) -> None:
    definition = build()
    sigma = definition.sigma_max * torch.tensor([[0.001, 0.5], [0.9, 0.999]])
    assert sigma.dtype == torch.float32
    ours = weights(name, definition, sigma)
    assert ours.dtype == torch.float64
    assert ours.shape == sigma.shape
    assert ours.isfinite().all()
    assert (ours > 0).all()


def test_no_weighting_weighs_all_alike() -> None:
    assert torch.equal(weights("none", FLOW, SIGMAS), torch.ones_like(SIGMAS))


def test_refusals_name_the_choices() -> None:
    with pytest.raises(ValueError, match=r"σ density 'logitnormal' is not one of uniform, logit_normal, .*shifted"):
        Density("logitnormal")
    with pytest.raises(ValueError, match=r"loss weighting 'min_snr' is not one of none, min_snr_gamma, .*bsmntw"):
        weights("min_snr", FLOW, SIGMAS)
