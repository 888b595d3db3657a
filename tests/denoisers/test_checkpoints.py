"""Each pretrained family on a tiny checkpoint of its own layout: conditions, training, adapters, what is delivered."""

import json
from collections.abc import Iterator
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
import trainings
from checkpoints import CHECKPOINTS, Tiny
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from encoding import PARAMS, make_records, write_pictures
from ingest_helpers import clip
from scripts import TIMESTEPS
from torch import Tensor

from latentflow import denoisers
from latentflow.data.condition import Condition, square
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import Captions
from latentflow.denoisers.packing import pack, unpack
from latentflow.denoisers.schedulers import scheduler_of, to_diffusers
from latentflow.diffusion import sample
from latentflow.diffusion.definitions import betas_to_sigmas, scaled_linear_betas
from latentflow.encoders import captions
from latentflow.errors import LatentflowError
from latentflow.evaluation.drawing import Artist, Request, Settings
from latentflow.evaluation.heldout import heldout_groups, heldout_loss, heldout_sigmas
from latentflow.manifest import EncodedManifest
from latentflow.params import for_step, load
from latentflow.registry.pyfunc_model import guided
from latentflow.steps import autoencoder, encode, train
from latentflow.training.batches import Batch
from latentflow.training.body import Body
from latentflow.training.parallel import parallel

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
    return Condition(told.text, told.mask, told.pooled, square(len(prompts), tiny.side)), kind


def started(folder: Path, tiny: Tiny, kind: Captions) -> denoisers.Denoiser:
    """The denoiser of a checkpoint as training begins with it."""
    params = load(PARAMS, [f"model.pretrained={folder}"]).model
    family = denoisers.family_for(params)
    config = denoisers.pretrained(params).config(family.subfolder)
    model = denoisers.start(params, list(tiny.latents), kind, seed=0).eval()
    told = GUIDANCE if family.told_guidance(config) else None
    return denoisers.Denoiser(family, model, denoisers.trained_with(folder).definition, told)


def noise(tiny: Tiny, count: int = 2, seed: int = 2) -> Tensor:
    return torch.randn((count, *tiny.latents), generator=torch.Generator().manual_seed(seed))


def packed(latents: Tensor, tiny: Tiny) -> Tensor:
    """As the pipeline takes them."""
    if tiny.packed == 1:
        return latents.flatten(2).transpose(1, 2)
    return pack(latents) if tiny.packed else latents


def unpacked(latents: Tensor, tiny: Tiny) -> Tensor:
    """As the pipeline gives them."""
    if tiny.packed == 1:
        return latents.transpose(1, 2).unflatten(2, tiny.latents[1:])
    return unpack(latents, *tiny.latents[1:]) if tiny.packed else latents


def called(pipeline: DiffusionPipeline, tiny: Tiny, **more: object) -> Tensor:
    """The latents that a pipeline gives."""
    size = {"height": tiny.side, "width": tiny.side} | ({"num_frames": tiny.frames} if tiny.frames else {})
    drawn = pipeline(output_type="latent", **size, **tiny.call, **more)
    return unpacked(drawn["frames" if tiny.frames else "images"], tiny)


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
        latents=packed(start, tiny),
        **sigmas,
        **guided(type(pipeline).__name__, GUIDANCE, len(PROMPTS)),
    )
    predict = family.guidance(GUIDANCE)(
        lambda xt, sigma, given: denoiser.predict(xt, sigma, told.filled(given)), told.tensors(), empty.tensors()
    )
    grid = diffusion.sigmas(STEPS, tokens)
    if diffusion.name == "flow":
        if family.flow_pipeline:
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
        batch = Batch(x0, xT, sigma, captioned, torch.zeros(3, dtype=torch.bool))
        loss, errors = body.forward(batch, 0, torch.arange(3))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert errors.shape == (3,)


@pytest.fixture(scope="module")
def world(folder: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """100 steps of LoRA through the pipeline's steps, on one picture or clip; nothing but the checkpoint is named."""
    root = tmp_path_factory.mktemp("world")
    picture = write_pictures(root / "one", 1) / "000.png"
    media = clip(tiny.frames, fps=25) if tiny.frames else picture.read_bytes()
    (root / "media").mkdir()
    rows = []
    for number in range(16):
        file = f"{number:03d}.{'mp4' if tiny.frames else 'png'}"
        (root / "media" / file).write_bytes(media)
        rows.append(json.dumps({"file_name": file, "text": PROMPTS[0]}) + "\n")
    (root / "media" / "metadata.jsonl").write_text("".join(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTFLOW_STORE", str(root / "store"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.chdir(root)
        records = make_records(root / "media", root / "records")
        params = load(PARAMS, [f"{name}={json.dumps(value)}" for name, value in settings(folder, tiny).items()])
        autoencoder.run(for_step(params, "autoencoder"), records, root / "autoencoder")
        encode.run(for_step(params, "encode"), records, root / "autoencoder", root / "encoded")
        sources = train.Sources(root / "encoded", root / "autoencoder")
        train.run(for_step(params, "train"), sources, root / "model")
        yield root


def settings(folder: Path, tiny: Tiny) -> dict[str, object]:
    checkpoint = dict.fromkeys(("autoencoder.pretrained", "encode.text_encoder", "model.pretrained"), str(folder))
    few = {f"train.{name}": value for name, value in trainings.FEW.items()}
    return checkpoint | few | {
        "autoencoder.resolution": tiny.side,
        "encode.clip_frames": tiny.frames,
        "encode.max_tokens": tiny.tokens,
        "encode.sample_prompts": [PROMPTS[0]],
        "train.adapter.kind": "lora",
        "train.adapter.rank": 4,
        "train.steps": 100,
        "train.batch_size": 4,
        "train.learning_rate": 0.003,
        "train.caption_dropout": 0.1,
        "train.ema_decay": 0.5,
        "train.validate_every": 100,
        "train.sample_every": 100,
        "train.checkpoint_every": 100,
        "train.log_every": 50,
        "train.sigma_sampling": "uniform",
    }  # fmt: skip


def drawn(pipeline: DiffusionPipeline, tiny: Tiny, **more: object) -> Tensor:
    guidance = guided(type(pipeline).__name__, GUIDANCE, 1)
    start = packed(noise(tiny)[:1], tiny)
    return called(pipeline, tiny, prompt=PROMPTS[0], num_inference_steps=2, latents=start, **guidance, **more)


def test_a_hundred_steps_of_lora_lower_the_loss(world: Path, folder: Path, tiny: Tiny) -> None:
    split = EncodedSet.open(world / "encoded").split("validation")
    groups = heldout_groups(split, torch.device("cpu"))
    after = denoisers.load(world / "model" / "pipeline")
    before = replace(after, model=started(folder, tiny, conditions(folder, tiny, PROMPTS)[1]).model)
    sigmas = heldout_sigmas(after.definition)
    first, last = (heldout_loss(one.predict, groups, one.definition, sigmas, 0, 40).mean for one in (before, after))
    assert last < 0.98 * first
    rows = (world / "model" / "plots" / "validation.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[1]) == pytest.approx(last, rel=1e-4)


def test_the_adapter_loads_into_the_plain_pipeline_and_scale_zero_changes_nothing(
    world: Path, folder: Path, tiny: Tiny
) -> None:
    pipeline = opened(folder)
    plain = drawn(pipeline, tiny)
    pipeline.load_lora_weights(world / "model" / "lora")
    assert not torch.allclose(drawn(pipeline, tiny), plain, atol=1e-3)
    scaled = drawn(pipeline, tiny, **{tiny.scale: {"scale": 0.0}})
    assert torch.allclose(scaled, plain, atol=1e-5 * plain.abs().max())


def test_the_delivered_pipeline_is_the_checkpoint_with_the_adapter_merged(
    world: Path, folder: Path, tiny: Tiny
) -> None:
    delivered = world / "model" / "pipeline"
    pipeline = opened(folder)
    pipeline.load_lora_weights(world / "model" / "lora")
    adapted = drawn(pipeline, tiny)
    assert torch.allclose(drawn(opened(delivered), tiny), adapted, atol=1e-4 * adapted.abs().max())
    # Its parts are diffusers' and transformers' own, so nothing of ours is needed to open it.
    index = json.loads((delivered / "model_index.json").read_text())
    assert index == json.loads((folder / "model_index.json").read_text())
    made = [entry[0] for entry in index.values() if isinstance(entry, list)]
    assert set(made) <= {"diffusers", "transformers", "stable_diffusion", None}
    assert not (delivered / "code").exists()
    assert denoisers.read_diffusion(delivered) == denoisers.trained_with(folder)
    manifest = EncodedManifest.read(world / "encoded")
    assert not (world / "encoded" / "text_encoder").exists()
    assert manifest.text_pipeline == index["_class_name"]


def test_evaluation_draws_with_what_was_delivered(world: Path, folder: Path, tiny: Tiny) -> None:
    delivered = world / "model" / "pipeline"
    settings = Settings.read(delivered, "euler", 2, GUIDANCE)
    if tiny.frames:
        assert settings.call["num_frames"] == tiny.frames
    else:
        drawn = Artist(delivered, settings).draw([Request(PROMPTS[0], 0)], 1).pictures
        assert drawn.shape == (1, 3, tiny.side, tiny.side)
    own = DiffusionPipeline.from_pretrained(folder, local_files_only=True).scheduler
    if own.config.get("use_dynamic_shifting"):
        assert scheduler_of(delivered, "euler").config == own.config
    if denoisers.family_for(load(PARAMS, [f"model.pretrained={folder}"]).model).lays_out_sigmas:
        with pytest.raises(LatentflowError, match=r"evaluate\.sampler heun: a \w+ lays out its own"):
            scheduler_of(delivered, "heun")
    else:
        assert scheduler_of(delivered, "heun").config.sampler == "heun"
