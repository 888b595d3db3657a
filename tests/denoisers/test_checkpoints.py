"""Each pretrained family on a tiny checkpoint of its own layout: conditions, training, adapters, what is delivered."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import CHECKPOINTS, LATENT, SIDE, Tiny
from diffusers import DiffusionPipeline
from encoding import PARAMS
from torch import Tensor

from latentflow import denoisers
from latentflow.data.condition import Condition, square
from latentflow.denoisers import Captions
from latentflow.denoisers.packing import pack, unpack
from latentflow.denoisers.schedulers import to_diffusers
from latentflow.diffusion import Guidance, sample
from latentflow.encoders import captions
from latentflow.params import load

PROMPTS = ["a red heart", "the cat of blue dogs and a star, longer than the others are"]
STEPS = 4
GUIDANCE = 3.0


@pytest.fixture(scope="module", params=sorted(CHECKPOINTS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tiny(name: str) -> Tiny:
    return CHECKPOINTS[name]


@pytest.fixture(scope="module")
def folder(name: str, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("checkpoints") / name)


def opened(folder: Path) -> DiffusionPipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditions(folder: Path, tiny: Tiny, prompts: list[str]) -> tuple[Condition, Captions]:
    """As encode makes them, and what its manifest says of them."""
    params = load(PARAMS, [f"encode.text_encoder={folder}", f"encode.max_tokens={tiny.tokens}"]).encode
    source = captions.find(params)
    told = source.load().encode(prompts)
    pooled = 0 if told.pooled is None else told.pooled.shape[-1]
    kind = Captions(told.text.shape[-1], pooled, source.made_from["pipeline"], source.digest)
    return Condition(told.text, told.mask, told.pooled, square(len(prompts), SIDE)), kind


def started(folder: Path, kind: Captions) -> denoisers.Denoiser:
    """The denoiser of a checkpoint as training begins with it."""
    params = load(PARAMS, [f"model.pretrained={folder}"]).model
    family = denoisers.family_for(params)
    config = denoisers.pretrained(params).config(family.subfolder)
    shape = [family.intake(config).channels, LATENT, LATENT]
    model = denoisers.start(params, shape, kind, seed=0).eval()
    told = GUIDANCE if family.told_guidance(config) else None
    return denoisers.Denoiser(family, model, denoisers.trained_with(folder).definition, told)


def noise(channels: int, seed: int = 2) -> Tensor:
    return torch.randn((2, channels, LATENT, LATENT), generator=torch.Generator().manual_seed(seed))


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
