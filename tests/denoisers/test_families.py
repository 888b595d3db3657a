"""Each family's native pipeline: it saves, loads with plain diffusers, and conditions as training did."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny import build_tokenizer
from transformers import BertConfig, BertModel

from latentflow import denoisers
from latentflow.denoisers import DIFFUSION, FAMILIES
from latentflow.denoisers.schedulers import scheduler_for
from latentflow.diffusion import FLOW, Diffusion
from latentflow.encoders import vae as vae_room
from latentflow.encoders.text import TextEncoder
from latentflow.errors import LatentflowError
from latentflow.files import write_json
from latentflow.params import ModelParams

TOKENS, WIDTH, SHAPE = 8, 16, [4, 8, 8]


def sizes(denoiser: str, patch: int = 2) -> ModelParams:
    return ModelParams.model_validate(
        {
            "denoiser": denoiser,
            "unet": {
                "channels": [32, 32],
                "attention": [True, False],
                "layers_per_block": 1,
                "head_dim": 8,
                "pooled_text": True,
            },
            "pixart": {"layers": 1, "heads": 2, "head_dim": 16, "patch_size": patch},
            "auraflow": {"layers": 1, "single_layers": 1, "heads": 2, "head_dim": 16, "patch_size": patch},
        }
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    tokenizer = build_tokenizer(tmp_path_factory.mktemp("vocab"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        use_attention_mask=True,
    )
    torch.manual_seed(0)
    return TextEncoder(tokenizer, BertModel(config).eval(), TOKENS)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_pipeline_draws_what_our_own_sampler_draws(name: str, text: TextEncoder, tmp_path: Path) -> None:
    family = FAMILIES[name]
    vae = vae_room.build(32, [8, 8, 8], 4, 1, seed=0).eval()
    model = denoisers.build(sizes(name), SHAPE, WIDTH, seed=0)
    with torch.no_grad():  # DiT classes start at zero output; any weights will do.
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    diffusion = Diffusion()
    scheduler = scheduler_for(diffusion, "euler", 16, family.flow_pipeline)
    family.pipeline(model, vae, text, scheduler).save_pretrained(tmp_path)
    write_json(tmp_path / DIFFUSION, diffusion.to_json())

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
        height=32,
        width=32,
        output_type="latent",
        **family.call_arguments(TOKENS),
    ).images

    denoiser = denoisers.load(tmp_path)
    hidden, mask = text.encode(["", "", *prompts])
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(steps)
    xt = latents.double()
    for index, sigma in enumerate(scheduler.sigmas[:-1].double()):
        told = scheduler.timesteps[index].double() / 1000
        with torch.no_grad():
            both = denoiser.predict(torch.cat([xt, xt]).float(), told, hidden, mask).double()
        unconditional, conditional = both.chunk(2)
        output = unconditional + guidance * (conditional - unconditional)
        xt = FLOW.step(xt, output, sigma, scheduler.sigmas[index + 1].double())
    assert (xt - theirs.double()).abs().max() < 1e-4 * theirs.abs().max()


def test_patches_that_do_not_tile_are_refused() -> None:
    with pytest.raises(LatentflowError, match=r"model.pixart does not fit latents .* patch_size 3 does not divide 8x8"):
        denoisers.build(sizes("pixart", patch=3), SHAPE, WIDTH, seed=0)


def test_weights_follow_the_seed() -> None:
    first, again, other = (denoisers.build(sizes("unet"), SHAPE, WIDTH, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
