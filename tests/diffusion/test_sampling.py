"""The samplers walk as diffusers' schedulers do, at their order of accuracy, and arrive at the right distribution."""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torchdiffeq
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from mixtures import ONE, TRIANGLE, Mixture, interior
from torch import Generator, Tensor

from latentflow.diffusion import (
    DEFINITIONS,
    FLOW,
    SAMPLERS,
    Definition,
    Schedule,
    begin_at,
    ddpm,
    edm,
    flow,
    sample,
)
from latentflow.diffusion.definitions import betas_to_sigmas, scaled_linear_betas
from latentflow.diffusion.guidance import Predict
from latentflow.diffusion.sampling import Noise

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}

VE = Definition(
    "VE",
    "epsilon",
    lambda sigma: (torch.ones_like(sigma), sigma),
    lambda sigma: (torch.zeros_like(sigma), torch.ones_like(sigma)),
    sigma_max=80.0,
)
"""k-diffusion's and smalldiffusion's convention: x_t = x_0 + σ·x_T, and the model answers x_T."""


def wobble(xt: Tensor, sigma: Tensor) -> Tensor:
    """A model that is cheap, and so crooked in x_t and σ that an error of either shows."""
    crooked = torch.tanh(1.3 * xt + torch.cos(3 * sigma))
    return crooked + 0.3 * xt.flip(-1) / (1 + xt.square()) + 0.2 * torch.sin(5 * sigma)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(0), dtype=torch.float64)


def drawn_from(generator: Generator, dtype: torch.dtype) -> Noise:
    return lambda _, xt: torch.randn(xt.shape, generator=generator, dtype=dtype).to(xt)


def theirs(scheduler: Any, sigmas: Tensor, xt: Tensor, **extra: Any) -> list[Tensor]:
    """x_t after every step of one of diffusers' schedulers, which calls the model at ``sigmas``."""
    walk = []
    for timestep, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        if isinstance(scheduler, EDMEulerScheduler):
            # It warns of a step without; our input scale is no part of a step.
            scheduler.scale_model_input(xt, timestep)
        xt = scheduler.step(wobble(xt, sigma), timestep, xt, **extra).prev_sample
        walk.append(xt)
    return walk


def ours(definition: Definition, sigmas: Tensor, xt: Tensor, sampler: str, **extra: Any) -> list[Tensor]:
    """x_t after every step of ours, begun at ``xt``."""
    walk: list[Tensor] = []
    start = xt / definition.data(sigmas[0])[1]
    sample(definition, wobble, start, sigmas, sampler, callback=lambda _, xt, __: walk.append(xt), **extra)
    return walk


def as_they_are(sigmas: Tensor) -> Tensor:
    return sigmas


def from_ratio(ratio: Tensor) -> Tensor:
    """b/a, which diffusers calls σ on the VP path, as our σ = b."""
    return ratio.atan().sin()


FLOW_SIGMAS = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}

WALKS: list[tuple[Any, Definition, str, Callable[[Tensor], Tensor]]] = [
    (FlowMatchEulerDiscreteScheduler(shift=3.0), FLOW, "euler", as_they_are),
    (DPMSolverMultistepScheduler(**FLOW_SIGMAS, solver_order=1, flow_shift=2.0), FLOW, "euler", as_they_are),
    (DPMSolverMultistepScheduler(**FLOW_SIGMAS), FLOW, "dpm_solver_2m", as_they_are),
    (UniPCMultistepScheduler(**FLOW_SIGMAS, flow_shift=3.0), FLOW, "unipc", as_they_are),
    (FlowMatchHeunDiscreteScheduler(shift=2.0), FLOW, "heun", as_they_are),
    (DPMSolverMultistepScheduler(**SD, solver_order=1), ddpm(), "euler", from_ratio),
    (DPMSolverMultistepScheduler(**SD), ddpm(), "dpm_solver_2m", from_ratio),
    (DPMSolverMultistepScheduler(**SD, prediction_type="sample"), ddpm("sample"), "dpm_solver_2m", from_ratio),
    (UniPCMultistepScheduler(**SD), ddpm(), "unipc", from_ratio),
    (UniPCMultistepScheduler(**SD, prediction_type="v_prediction"), ddpm("v_prediction"), "unipc", from_ratio),
    (HeunDiscreteScheduler(**SD), VE, "heun", as_they_are),
    (EDMEulerScheduler(), edm(0.5), "euler", as_they_are),
    (EDMDPMSolverMultistepScheduler(), edm(0.5), "dpm_solver_2m", as_they_are),
]


@pytest.mark.parametrize(
    ("scheduler", "definition", "sampler", "to_ours"),
    WALKS,
    ids=[f"{type(walk[0]).__name__} {walk[1].prediction_type} {walk[2]}" for walk in WALKS],
)
@pytest.mark.parametrize("steps", [10, 50])
def test_the_walk_is_that_of_diffusers(
    scheduler: Any, definition: Definition, sampler: str, to_ours: Callable[[Tensor], Tensor], steps: int
) -> None:
    """They keep σ and x_t as float32, hence the tolerance."""
    scheduler.set_timesteps(steps)
    calls = to_ours(scheduler.sigmas.double())
    xt = getattr(scheduler, "init_noise_sigma", 1.0) * normal(2, 3, 4, 4)
    walk = theirs(scheduler, calls, xt)
    if sampler == "heun":
        walk = [*walk[1::2], walk[-1]]
    mine = ours(definition, calls.unique_consecutive(), xt, sampler)
    assert len(mine) == len(walk) == steps
    assert (mine[0] - walk[0]).abs().max() < 1e-6 * walk[0].abs().max()
    for one, other in zip(mine, walk, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


EXACT_BETAS = scaled_linear_betas()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("kind", "sampler"), [(DDIMScheduler, "euler"), (DDPMScheduler, "ancestral")])
def test_ddim_and_ddpm_agree_to_the_last_digits(kind: type, sampler: str, prediction_type: str) -> None:
    """With their table of ᾱ in float64, for they compute from it in its type; and with the same noise."""
    scheduler = kind(**SD, prediction_type=prediction_type, clip_sample=False)
    scheduler.alphas_cumprod = (1 - EXACT_BETAS).cumprod(0)
    scheduler.set_timesteps(50)
    sigmas = torch.cat([betas_to_sigmas(EXACT_BETAS)[scheduler.timesteps], torch.zeros(1).double()])
    xt = normal(2, 3, 4, 4)
    walk = theirs(scheduler, sigmas, xt, generator=Generator().manual_seed(1))
    mine = ours(ddpm(prediction_type), sigmas, xt, sampler, noise=drawn_from(Generator().manual_seed(1), xt.dtype))
    for one, other in zip(mine, walk, strict=True):
        assert (one - other).abs().max() < 1e-10 * other.abs().max()


@pytest.mark.parametrize(
    ("config", "definition", "to_ours"),
    [(FLOW_SIGMAS, FLOW, as_they_are), (SD, ddpm(), from_ratio)],
    ids=["flow", "vp"],
)
def test_ancestral_is_the_first_order_sde_solver(
    config: dict[str, Any], definition: Definition, to_ours: Callable[[Tensor], Tensor]
) -> None:
    """SDE-DPM-Solver++(1), which like all of DPM-Solver is no other on another path."""
    scheduler = DPMSolverMultistepScheduler(**config, solver_order=1, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(50)
    sigmas, xt = to_ours(scheduler.sigmas.double()), normal(2, 3, 4, 4)
    walk = theirs(scheduler, sigmas, xt, generator=Generator().manual_seed(1))
    noise = drawn_from(Generator().manual_seed(1), torch.float32)
    for one, other in zip(ours(definition, sigmas, xt, "ancestral", noise=noise), walk, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


@pytest.fixture(scope="module")
def smalldiffusion() -> ModuleType:
    """Its file of samplers alone: the package as a whole imports torchvision and einops."""
    package = importlib.util.find_spec("smalldiffusion")
    if package is None or package.origin is None:
        pytest.skip("smalldiffusion is not installed")
    spec = importlib.util.spec_from_file_location("samplers_alone", Path(package.origin).with_name("diffusion.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("sampler", "mu"), [("euler", 0.0), ("ancestral", 0.5)], ids=["ddim", "ddpm"])
def test_the_walk_is_that_of_smalldiffusion(smalldiffusion: ModuleType, sampler: str, mu: float) -> None:
    sigmas = smalldiffusion.ScheduleLDM().sample_sigmas(20).double()
    xt = sigmas[0] * normal(2, 3)
    draw = drawn_from(Generator().manual_seed(1), xt.dtype)
    model = SimpleNamespace(
        eval=lambda: None,
        predict_eps_cfg=lambda xt, sigma, condition, scale: wobble(xt, sigma),
        rand_input=lambda count: draw(0, xt),
    )
    here = SimpleNamespace(device="cpu")
    walk = list(smalldiffusion.samples(model, sigmas, mu=mu, xt=xt, accelerator=here))
    mine = ours(VE, sigmas, xt, sampler, noise=drawn_from(Generator().manual_seed(1), xt.dtype))
    for one, other in zip(mine, walk, strict=True):
        assert (one - other).abs().max() < 1e-12 * other.abs().max()


def test_smalldiffusions_sigma_is_the_ratio_of_our_coefficients(smalldiffusion: ModuleType) -> None:
    sigmas = betas_to_sigmas(EXACT_BETAS)
    a, b = ddpm().data(sigmas)
    assert torch.allclose(b / a, smalldiffusion.ScheduleLDM().sigmas.double(), rtol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_prediction_types_walk_alike(sampler: str) -> None:
    """One model, and what it would have said had it been trained to say something else."""
    answering = {kind: ddpm(kind) for kind in ("v_prediction", "epsilon", "sample", "flow_prediction")}
    sigmas, xT = Schedule()(ddpm(), 12), normal(2, 3, 4)
    ends = []
    for definition in answering.values():

        def predict(xt: Tensor, sigma: Tensor, definition: Definition = definition) -> Tensor:
            return answering["v_prediction"].convert(wobble(xt, sigma), xt, sigma, definition)

        noise = drawn_from(Generator().manual_seed(1), xT.dtype)
        ends.append(sample(definition, predict, xT, sigmas, sampler, noise=noise))
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], rtol=1e-9, atol=1e-9)


def adaptive(definition: Definition, mixture: Mixture, xt: Tensor, sigmas: Tensor) -> Tensor:
    """x_t at the last of ``sigmas``, along dx/dσ = a'·x_0 + b'·x_T with what the best model sees, by dopri5."""
    answers = mixture.answers(definition)

    def slope(sigma: Tensor, xt: Tensor) -> Tensor:
        _, (rate_a, rate_b) = torch.func.jvp(definition.data, (sigma,), (torch.ones_like(sigma),))
        x0, xT = definition.recover(xt, answers(xt, sigma), sigma)
        return rate_a * x0 + rate_b * xT

    return torchdiffeq.odeint(slope, xt, sigmas[[0, -1]], rtol=1e-10, atol=1e-10, method="dopri5")[-1]


def walked(definition: Definition, mixture: Mixture, xt: Tensor, steps: int, sampler: str, **extra: Any) -> Tensor:
    """x_t at the end of the interior grid, begun at ``xt``."""
    sigmas = interior(definition, steps)
    start = xt / definition.data(sigmas[0])[1]
    return sample(definition, mixture.answers(definition), start, sigmas, sampler, **extra)


CLOSE = {"euler": 0.05, "heun": 1e-3, "dpm_solver_2m": 1e-3, "unipc": 1e-3}
"""How near 128 steps come to the exact way; halving them must cost what the order says, see ORDERS."""

ORDERS = {"euler": 1, "heun": 2, "dpm_solver_2m": 2, "unipc": 3}
"""UniPC-2 corrects to one order more than it predicts."""


@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_deterministic_samplers_converge_to_the_adaptive_solver(build: Callable[[], Definition]) -> None:
    definition = build()
    sigmas = interior(definition, 1)
    a, b = definition.data(sigmas[0])
    x0 = TRIANGLE.draw(16, Generator().manual_seed(0))
    xt = a * x0 + b * normal(16, 2)
    exact = adaptive(definition, TRIANGLE, xt, sigmas)
    for sampler, order in ORDERS.items():
        coarse, fine = ((walked(definition, TRIANGLE, xt, n, sampler) - exact).abs().max().item() for n in (64, 128))
        assert fine < CLOSE[sampler]
        assert math.log2(coarse / fine) > order - 0.5


@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
@pytest.mark.parametrize("sampler", ORDERS)
def test_the_order_of_accuracy_on_a_gaussian(sampler: str, build: Callable[[], Definition]) -> None:
    """Whose way is known: x keeps its distance from the mean in standard deviations."""
    definition = build()
    mean, std = ONE.means[0, 0], ONE.stds[0]
    (a, a_end), (b, b_end) = definition.data(interior(definition, 1))
    deviation, deviation_end = torch.hypot(a * std, b), torch.hypot(a_end * std, b_end)
    distance = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    exact = a_end * mean + distance * deviation_end
    errors = [
        (walked(definition, ONE, a * mean + distance * deviation, steps, sampler) - exact).abs().max().item()
        for steps in (64, 128)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[sampler], abs=0.2)


@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
def test_the_weak_order_of_ancestral_on_a_gaussian(build: Callable[[], Definition]) -> None:
    """Every step is affine in x_t and the noise, so unit inputs give the coefficients, and these mean and variance."""
    definition = build()
    mean, variance = ONE.means[0, 0], ONE.stds[0].square()
    (a, a_end), (b, b_end) = definition.data(interior(definition, 1))
    errors = []
    for steps in (64, 128):
        # Row 0 is all zeros, row 1 begins at 1, and row 2 + i is given noise 1 at step i.
        unit = torch.eye(steps + 2, dtype=torch.float64)[:, :, None]
        still, *moved = walked(definition, ONE, unit[1], steps, "ancestral", noise=lambda i, _, unit=unit: unit[i + 2])
        of_start, *of_noise = (row - still for row in moved)
        assert (of_start * a * mean + still).item() == pytest.approx((a_end * mean).item(), abs=1e-12)
        total = of_start.square() * (a.square() * variance + b.square()) + sum(each.square() for each in of_noise)
        errors.append((total - a_end.square() * variance - b_end.square()).abs().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_right_mean_and_covariance_are_reached(sampler: str, build: Callable[[], Definition]) -> None:
    """From σ_max to data. The noise to begin with is spread evenly, so that 4096 stand for many more."""
    definition, generator, count = build(), Generator().manual_seed(0), 4096
    even = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(count, dtype=torch.float64)
    xT = torch.special.ndtri(even.clamp(1e-9, 1 - 1e-9))
    sigmas = Schedule("cosine")(definition, 60 if ORDERS.get(sampler, 1) > 1 else 150)
    drawn = sample(
        definition,
        TRIANGLE.answers(definition),
        xT,
        sigmas,
        sampler,
        x0=TRIANGLE.draw(count, generator),
        noise=drawn_from(generator, xT.dtype),
    )
    mean, covariance = TRIANGLE.mean(), TRIANGLE.covariance()
    # What is left is the steps' error, but for the noise of `ancestral`, of which four deviations hardly ever happen:
    # means of n draws deviate by std/√n, and their covariance, a mean of products, by at most √2·variance/√n.
    most = covariance.max().item()
    near = (4 * math.sqrt(most / count), 4 * most * math.sqrt(2 / count)) if sampler == "ancestral" else (0.005, 0.015)
    assert (drawn.mean(0) - mean).abs().max() < near[0]
    assert (drawn.T.cov() - covariance).abs().max() < near[1]


def knows(definition: Definition, x0: Tensor) -> Predict:
    """A model that answers as if all data were ``x0``."""

    def predict(xt: Tensor, sigma: Tensor) -> Tensor:
        a, b = definition.data(sigma)
        return definition.target(x0, (xt - a * x0) / b, sigma)

    return predict


@pytest.mark.parametrize("build", DEFINITIONS.values(), ids=DEFINITIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image_begins_at_the_noised_picture(sampler: str, build: Callable[[], Definition]) -> None:
    definition, x0, xT = build(), normal(2, 3, 4), normal(2, 3, 4).flip(0)
    sigmas = begin_at(Schedule("cosine")(definition, 10), 0.4)
    seen: list[Tensor] = []

    def predict(xt: Tensor, sigma: Tensor) -> Tensor:
        seen.append(xt)
        return knows(definition, x0)(xt, sigma)

    end = sample(definition, predict, xT, sigmas, sampler, x0=x0)
    assert torch.allclose(seen[0], definition.add_noise(x0, xT, sigmas[0]))
    assert len(seen) == (7 if sampler == "heun" else 4)
    assert torch.allclose(end, x0, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_call_of_the_model_per_step_and_one_of_the_callback(sampler: str) -> None:
    sigmas, x0 = Schedule()(FLOW, 5), normal(2, 3)
    asked: list[Tensor] = []
    told: list[tuple[int, Tensor, Tensor]] = []

    def predict(xt: Tensor, sigma: Tensor) -> Tensor:
        asked.append(sigma)
        return knows(FLOW, x0)(xt, sigma)

    end = sample(FLOW, predict, normal(2, 3), sigmas, sampler, callback=lambda *now: told.append(now))
    # Heun asks at both ends of each step but at data itself.
    expected = sigmas[:1].tolist() + sigmas[1:-1].repeat_interleave(2).tolist()
    assert [sigma.item() for sigma in asked] == (expected if sampler == "heun" else sigmas[:-1].tolist())
    assert all(sigma.shape == () and sigma.dtype == torch.float64 for sigma in asked)
    assert [done for done, _, _ in told] == [1, 2, 3, 4, 5]
    assert torch.equal(told[-1][1], end)
    for _, _, guess in told:
        assert torch.allclose(guess, x0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_walk_keeps_the_type_of_its_noise(sampler: str, dtype: torch.dtype) -> None:
    def end(dtype: torch.dtype) -> Tensor:
        noise = drawn_from(Generator().manual_seed(1), torch.float64)
        return sample(FLOW, wobble, normal(2, 3, 4).to(dtype), Schedule()(FLOW, 8), sampler, noise=noise)

    exact, rough = end(torch.float64), end(dtype)
    assert rough.dtype == dtype
    assert (rough.double() - exact).abs().max() < 16 * torch.finfo(dtype).eps


def test_ancestral_draws_from_torchs_generator_when_given_none() -> None:
    def drawn(seed: int) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return sample(FLOW, wobble, normal(2, 3), Schedule()(FLOW, 5), "ancestral")

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_an_unknown_sampler_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'eulr' is not one of euler, heun, .*ancestral"):
        sample(FLOW, wobble, normal(2, 3), Schedule()(FLOW, 5), "eulr")


def test_only_a_start_of_a_step_must_be_invertible() -> None:
    definition, x0 = flow("epsilon"), normal(2, 3)
    with pytest.raises(ValueError, match="epsilon cannot be inverted at σ=1"):
        sample(definition, wobble, x0, Schedule()(definition, 5))
    definition = flow("sample")
    end = sample(definition, lambda xt, sigma: x0, normal(2, 3), Schedule()(definition, 5), "heun")
    assert torch.allclose(end, x0)
