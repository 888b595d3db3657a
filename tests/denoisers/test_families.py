"""Each family's native pipeline: it saves, loads with plain diffusers, and conditions as training did."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from native import SHAPE, SIDE, TOKENS, WIDTH, sizes, text_encoder, write_pipeline

from latentflow import denoisers
from latentflow.denoisers import FAMILIES
from latentflow.diffusion import FLOW
from latentflow.encoders.text import TextEncoder
from latentflow.errors import LatentflowError


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return text_encoder(tmp_path_factory.mktemp("vocab"))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_pipeline_draws_what_our_own_sampler_draws(name: str, text: TextEncoder, tmp_path: Path) -> None:
    family = FAMILIES[name]
    write_pipeline(name, tmp_path, text)

    pipeline = DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert type(pipeline).__name__ == family.pipeline_class
    pipeline.set_progress_bar_config(disable=True)
    prompts, guidance, steps = ["Red Heart", "a cat"], 3.0, 4
    latents = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(2))
    theirs = pipeline(
        prompt=prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=latents.clone(),
        height=SIDE,
        width=SIDE,
        output_type="latent",
        **family.call_arguments(TOKENS),
    ).images

    denoiser = denoisers.load(tmp_path)
    condition = text.encode(["", "", *prompts])
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(steps)
    xt = latents.double()
    for index, sigma in enumerate(scheduler.sigmas[:-1].double()):
        at = scheduler.timesteps[index].double() / 1000
        with torch.no_grad():
            both = denoiser.predict(torch.cat([xt, xt]).float(), at, condition).double()
        unconditional, conditional = both.chunk(2)
        output = unconditional + guidance * (conditional - unconditional)
        xt = FLOW.step(xt, output, sigma, scheduler.sigmas[index + 1].double())
    assert (xt - theirs.double()).abs().max() < 1e-4 * theirs.abs().max()


def test_patches_that_do_not_tile_are_refused() -> None:
    with pytest.raises(LatentflowError, match=r"model.pixart.patch_size 3 does not divide latents of 8x8"):
        denoisers.build(sizes("pixart", patch=3), SHAPE, WIDTH, seed=0)


def test_weights_follow_the_seed() -> None:
    first, again, other = (denoisers.build(sizes("unet"), SHAPE, WIDTH, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
