"""Each pretrained family on a tiny checkpoint of its own layout: its conditions, latents and losses are its own."""

from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
import trainings
from checkpoints import Tiny
from diffusers import FlowMatchEulerDiscreteScheduler
from scripts import TIMESTEPS
from tuning import GUIDANCE, PROMPTS, called, conditions, noise, opened, packed, started

from latentflow import denoisers
from latentflow.denoisers.schedulers import to_diffusers
from latentflow.diffusion import sample
from latentflow.diffusion.definitions import betas_to_sigmas, scaled_linear_betas
from latentflow.registry.pyfunc_model import guided
from latentflow.training.batches import Batch
from latentflow.training.body import Body
from latentflow.training.parallel import parallel

STEPS = 4


@torch.no_grad()
def test_our_encoding_and_sampler_give_the_pipelines_latents(folder: Path, tiny: Tiny) -> None:
    (told, kind), (empty, _) = conditions(folder, tiny, PROMPTS), conditions(folder, tiny, ["", ""])
    denoiser, diffusion, pipeline = started(folder, tiny, kind), denoisers.trained_with(folder), opened(folder)
    family, start = denoiser.family, noise(tiny)
    tokens = denoiser.tokens(start.shape[1:])
    if not family.flow_pipeline:
        # Of flow's schedulers for other pipelines' too, this one alone takes timesteps that are not whole.
        flow = FlowMatchEulerDiscreteScheduler(shift=diffusion.schedule.shift)
        of_others = diffusion.name != "flow"
        pipeline.register_modules(scheduler=to_diffusers(diffusion, "euler", tokens) if of_others else flow)
    takes = "sigmas" in signature(pipeline.__call__).parameters
    sigmas = {"sigmas": torch.linspace(1, 1 / STEPS, STEPS).tolist()} if family.flow_pipeline and takes else {}
    theirs = called(
        pipeline,
        tiny,
        prompt=PROMPTS,
        num_inference_steps=STEPS,
        latents=packed(start, tiny, told.frame),
        **sigmas,
        **guided(type(pipeline).__name__, GUIDANCE, len(PROMPTS)),
    )
    predict = family.guidance(GUIDANCE)(
        lambda xt, sigma, given: denoiser.predict(xt, sigma, told.filled(given)), told.tensors(), empty.tensors()
    )
    grid = diffusion.sigmas(STEPS, tokens)
    if diffusion.name == "flow":
        if family.flow_pipeline and not tiny.whitened:
            torch.testing.assert_close(pipeline.scheduler.sigmas.double(), grid, atol=1e-6, rtol=0)
        grid = pipeline.scheduler.sigmas.double()
    # A pipeline begins with its latents as they are, our sampler with b·x_T.
    begun = start / diffusion.definition.data(grid[:1])[1].item()
    ours = sample(diffusion.definition, predict, begun, grid)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@torch.no_grad()
def test_whatever_the_family_reads_changes_the_answer(folder: Path, tiny: Tiny) -> None:
    """Without it the comparison above would say little."""
    told, kind = conditions(folder, tiny, PROMPTS)
    denoiser = started(folder, tiny, kind)
    xt, sigma = noise(tiny), torch.tensor(0.5)
    plain = denoiser.predict(xt, sigma, told)
    others = {"text": replace(told, text=told.text.flip(0)), "sizes": replace(told, sizes=told.sizes * 2)}
    others["mask"] = replace(told, mask=told.mask & (torch.arange(told.mask.shape[1]) < 5))
    if told.frame is not None:
        others["frame"] = replace(told, frame=told.frame.flip(-1))
    if told.pooled is not None:
        others["pooled"] = replace(told, pooled=told.pooled.flip(0))
    if denoiser.guidance is not None:
        others["guidance"] = told.guided(2 * GUIDANCE)
    read = {name for name, other in others.items() if (denoiser.predict(xt, sigma, other) - plain).abs().max() > 0.01}
    assert read == tiny.reads


def test_a_training_steps_loss_is_that_of_diffusers_scripts(folder: Path, tiny: Tiny) -> None:
    captioned, kind = conditions(folder, tiny, [*PROMPTS, "sun"])
    denoiser, pipeline = started(folder, tiny, kind), opened(folder)
    told = captioned if denoiser.guidance is None else captioned.guided(denoiser.guidance)
    x0, xT = (noise(tiny, 3, seed) for seed in (0, 1))
    wanted = tiny.script(pipeline, x0, xT, told)

    places = TIMESTEPS.double() / 1000  # of flow models; the others' σ stand in a table
    flow = denoisers.trained_with(folder).name == "flow"
    sigma = places if flow else betas_to_sigmas(scaled_linear_betas())[TIMESTEPS]
    params = trainings.params({"batch_size": 3})
    with parallel(params) as together:
        body = Body.build(params, denoiser, together)
        batch = Batch(x0, xT, sigma, captioned.begun(x0), torch.zeros(3, dtype=torch.bool))
        loss, errors = body.forward(batch, 0, torch.arange(3))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert errors.shape == (3,)
