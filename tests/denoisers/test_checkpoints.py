"""Each pretrained family on a tiny checkpoint of its own layout: its conditions, latents and losses are its own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainings
from checkpoints import LATENT, SIDE, Tiny
from scripts import TIMESTEPS
from tuning import GUIDANCE, PROMPTS, conditions, noise, opened, started

from latentflow import denoisers
from latentflow.denoisers.packing import pack, unpack
from latentflow.denoisers.schedulers import to_diffusers
from latentflow.diffusion import Guidance, sample
from latentflow.diffusion.definitions import betas_to_sigmas, scaled_linear_betas
from latentflow.training.batches import Batch
from latentflow.training.body import Body
from latentflow.training.parallel import parallel

STEPS = 4


@torch.no_grad()
def test_our_encoding_and_sampler_give_the_pipelines_latents(folder: Path, tiny: Tiny) -> None:
    (told, kind), (empty, _) = conditions(folder, tiny, PROMPTS), conditions(folder, tiny, ["", ""])
    denoiser, diffusion, pipeline = started(folder, kind), denoisers.trained_with(folder), opened(folder)
    family, start = denoiser.family, noise(tiny.channels)
    tokens = denoiser.tokens(start.shape[1:])
    if not family.flow_pipeline:
        pipeline.register_modules(scheduler=to_diffusers(diffusion, "euler", tokens))
    sigmas = {"sigmas": torch.linspace(1, 1 / STEPS, STEPS).tolist()} if family.flow_pipeline else {}
    theirs = pipeline(
        prompt=PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=pack(start) if tiny.packed else start,
        height=SIDE,
        width=SIDE,
        output_type="latent",
        **sigmas,
        **tiny.call,
    ).images
    theirs = unpack(theirs, LATENT, LATENT) if tiny.packed else theirs
    guided = Guidance(GUIDANCE if family.contrasts else 1.0)(
        lambda xt, sigma, given: denoiser.predict(xt, sigma, told.filled(given)), told.tensors(), empty.tensors()
    )
    grid = diffusion.sigmas(STEPS, tokens)
    # A pipeline begins with its latents as they are, our sampler with b·x_T.
    begun = start / diffusion.definition.data(grid[:1])[1].item()
    ours = sample(diffusion.definition, guided, begun, grid)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@torch.no_grad()
def test_whatever_the_family_reads_changes_the_answer(folder: Path, tiny: Tiny) -> None:
    """Without it the comparison above would say little."""
    told, kind = conditions(folder, tiny, PROMPTS)
    denoiser = started(folder, kind)
    xt, sigma = noise(tiny.channels), torch.tensor(0.5)
    plain = denoiser.predict(xt, sigma, told)
    others = {"text": replace(told, text=told.text.flip(0)), "sizes": replace(told, sizes=told.sizes * 2)}
    if told.pooled is not None:
        others["pooled"] = replace(told, pooled=told.pooled.flip(0))
    if denoiser.guidance is not None:
        others["guidance"] = told.guided(2 * GUIDANCE)
    read = {name for name, other in others.items() if (denoiser.predict(xt, sigma, other) - plain).abs().max() > 0.01}
    assert read == tiny.reads


def test_a_training_steps_loss_is_that_of_diffusers_scripts(folder: Path, tiny: Tiny) -> None:
    captioned, kind = conditions(folder, tiny, [*PROMPTS, "sun"])
    denoiser, pipeline = started(folder, kind), opened(folder)
    told = captioned if denoiser.guidance is None else captioned.guided(denoiser.guidance)
    x0, xT = (torch.randn(3, tiny.channels, LATENT, LATENT, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    wanted = tiny.script(pipeline, x0, xT, told)

    places = TIMESTEPS.double() / 1000  # of flow models; the others' σ stand in a table
    sigma = places if denoiser.family.flow_pipeline else betas_to_sigmas(scaled_linear_betas())[TIMESTEPS]
    params = trainings.params({"batch_size": 3})
    with parallel(params) as together:
        body = Body.build(params, denoiser, together)
        batch = Batch(x0, xT, sigma, captioned, torch.zeros(3, dtype=torch.bool))
        loss, errors = body.forward(batch, 0, torch.arange(3))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert errors.shape == (3,)
