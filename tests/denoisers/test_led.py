"""ControlNet and IP-Adapter on tiny checkpoints of Stable Diffusion: as diffusers trains, draws and loads them."""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trainings
from checkpoints import CHECKPOINTS, LATENT, SIDE
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from encoding import PARAMS, make_records, write_pictures
from PIL import Image
from scripts import TIMESTEPS
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from tuning import GUIDANCE, PROMPTS, conditions, noise, opened, settings, started

from latentflow import denoisers
from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import Images, controlnet
from latentflow.denoisers.preflight import check_together
from latentflow.denoisers.schedulers import scheduler_of, to_diffusers
from latentflow.diffusion import Guidance, sample
from latentflow.diffusion.definitions import betas_to_sigmas, scaled_linear_betas
from latentflow.encoders import images
from latentflow.encoders.edges import edges
from latentflow.errors import LatentflowError
from latentflow.evaluation.drawing import Artist, Request, Settings
from latentflow.evaluation.heldout import heldout_groups, heldout_loss, heldout_sigmas
from latentflow.evaluation.leads import Leads
from latentflow.params import AdapterParams, Params, for_step, load
from latentflow.pictures import to_image
from latentflow.registry.pyfunc_model import Painter, Wish, to_png, wishes_of
from latentflow.steps import autoencoder, encode, train
from latentflow.training.batches import Batch, Batches
from latentflow.training.body import Body
from latentflow.training.parallel import parallel

WIDTH, FACTOR, STEPS = 12, 4, 4
FAMILIES = ("stable-diffusion-1.5", "stable-diffusion-2.1", "stable-diffusion-xl")
TINY = CHECKPOINTS[FAMILIES[0]]  # whose latents have the same shape in all of them
CONTROL = {
    "StableDiffusionPipeline": StableDiffusionControlNetPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLControlNetPipeline,
}


def build_tower(folder: Path) -> Path:
    """A tiny CLIP vision model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
            projection_dim=WIDTH,
        )
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def adapter(kind: str) -> AdapterParams:
    return load(PARAMS, [f"train.adapter.kind={kind}", "model.pretrained=x"]).train.adapter


def picture(seed: int = 0) -> Image.Image:
    """Smooth colours, so that there are edges."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (1, 3, 5, 5), generator=generator).float()
    return to_image(F.interpolate(coarse, (SIDE, SIDE), mode="nearest")[0].byte())


@dataclass(frozen=True)
class Case:
    """A checkpoint, its captions' conditions, and its denoiser with a part beside it that does something."""

    kind: str
    folder: Path
    told: Condition
    empty: Condition
    denoiser: denoisers.Denoiser
    tower: Path

    def pipeline(self, where: Path) -> DiffusionPipeline:
        """The plain pipeline of diffusers with what was trained, loaded from ``where`` by diffusers alone."""
        pipeline = opened(self.folder)
        if self.kind == "controlnet":
            beside = ControlNetModel.from_pretrained(where / "controlnet")
            pipeline = CONTROL[type(pipeline).__name__].from_pipe(pipeline, controlnet=beside)
        else:
            pipeline.load_ip_adapter(str(where), subfolder="ip_adapter", weight_name="ip_adapter.safetensors")
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@pytest.fixture(scope="module", params=[(kind, name) for kind in ("controlnet", "ip_adapter") for name in FAMILIES])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind, name = request.param
    root = tmp_path_factory.mktemp(name)
    folder, tower = CHECKPOINTS[name].write(root / "checkpoint"), build_tower(root / "tower")
    (told, captions), (empty, _) = (conditions(folder, CHECKPOINTS[name], [prompt]) for prompt in (PROMPTS[0], ""))
    plain = started(folder, CHECKPOINTS[name], captions)
    denoiser = denoisers.lead(plain, adapter(kind), Images("edges", FACTOR, WIDTH), seed=0)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for part in denoiser.family.learners(denoiser.model):
            for parameter in part.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    denoiser.model.eval()
    encoder = images.load(str(tower))
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None]
    told = replace(told, control=edges(pixels), image=encoder.embed(encoder.prepare(picture())[None]))
    return Case(kind, folder, told, empty, denoiser, tower)


@pytest.fixture(scope="module")
def saved(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the training would leave of the part beside."""
    out = tmp_path_factory.mktemp("saved")
    case.denoiser.family.save_beside(case.denoiser.model, out)
    if case.kind == "ip_adapter":
        images.load(str(case.tower)).save(out / "ip_adapter")
    return out


@torch.no_grad()
def test_our_conditions_and_sampler_give_the_pipelines_latents(case: Case, saved: Path) -> None:
    pipeline, diffusion = case.pipeline(saved), denoisers.trained_with(case.folder)
    start = noise(TINY, 1)
    tokens = case.denoiser.tokens(start.shape[1:])
    pipeline.register_modules(scheduler=to_diffusers(diffusion, "euler", tokens))
    assert case.told.control is not None
    shown = {
        "controlnet": {"image": to_image(case.told.control[0])},
        "ip_adapter": {"ip_adapter_image": picture()},
    }[case.kind]
    theirs = pipeline(
        prompt=PROMPTS[0],
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=start,
        height=SIDE,
        width=SIDE,
        output_type="latent",
        **shown,
    ).images
    guided = Guidance(GUIDANCE)(
        lambda xt, sigma, given: case.denoiser.predict(xt, sigma, case.told.filled(given)),
        case.told.tensors(),
        case.told.contrast(case.empty).tensors(),
    )
    grid = diffusion.sigmas(STEPS, tokens)
    begun = start / diffusion.definition.data(grid[:1])[1].item()
    ours = sample(diffusion.definition, guided, begun, grid)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@torch.no_grad()
def test_only_what_leads_is_read(case: Case) -> None:
    """Without a difference the comparison above would say little."""
    xt, sigma, told = noise(TINY, 1), torch.tensor(0.5), case.told
    assert told.control is not None
    assert told.image is not None
    others = {"control": replace(told, control=255 - told.control), "image": replace(told, image=-told.image)}
    plain = case.denoiser.predict(xt, sigma, told)
    read = {name for name, one in others.items() if (case.denoiser.predict(xt, sigma, one) - plain).abs().max() > 1e-3}
    assert read == {"control" if case.kind == "controlnet" else "image"}


def test_a_training_steps_loss_is_that_of_diffusers_scripts(case: Case, saved: Path) -> None:
    """train_controlnet.py and train_controlnet_sdxl.py; for IP-Adapters diffusers has none, so the same formula."""
    told = case.told.rows(3)
    x0, xT = (torch.randn(3, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    wanted = script_loss(case.pipeline(saved), case.kind, x0, xT, told)
    params = trainings.params({"batch_size": 3}).model_copy(update={"adapter": adapter(case.kind)})
    with parallel(params) as together:
        body = Body.build(params, case.denoiser, together)
        sigma = betas_to_sigmas(scaled_linear_betas())[TIMESTEPS]
        loss, _ = body.forward(Batch(x0, xT, sigma, told, torch.zeros(3, dtype=torch.bool)), 0, torch.arange(3))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    loss.backward()
    learners = case.denoiser.family.learners(case.denoiser.model)
    trained = {id(parameter) for part in learners for parameter in part.parameters()}
    for parameter in case.denoiser.model.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained) == parameter.requires_grad
    case.denoiser.model.zero_grad()
    case.denoiser.model.eval()


def script_loss(pipeline: DiffusionPipeline, kind: str, x0: Tensor, xT: Tensor, told: Condition) -> Tensor:
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = scheduler.add_noise(x0, xT, TIMESTEPS)
    of_velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(x0, xT, TIMESTEPS) if of_velocity else xT
    added, residuals = {}, {}
    if told.pooled is not None:
        added = {"time_ids": told.sizes.float(), "text_embeds": told.pooled}
    if kind == "controlnet":
        down, middle = pipeline.controlnet(
            noisy,
            TIMESTEPS,
            encoder_hidden_states=told.text,
            added_cond_kwargs=added,
            controlnet_cond=told.control.float() / 255,
            return_dict=False,
        )
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    else:
        added = added | {"image_embeds": [told.image[:, None]]}
    predicted = pipeline.unet(noisy, TIMESTEPS, told.text, added_cond_kwargs=added, **residuals).sample
    return F.mse_loss(predicted.float(), target.float(), reduction="mean")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_new_controlnet_is_the_one_that_diffusers_begins_with(name: str, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(CHECKPOINTS[name].write(tmp_path) / "unet")
    ours = controlnet.build(unet, FACTOR, seed=0)
    theirs = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 96))
    mine, other = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    # The picture's own network is drawn anew.
    assert all(torch.equal(mine[key], other[key]) for key in mine if not key.startswith("controlnet_cond_embedding"))
    assert {key: ours.config[key] for key in ours.config if key[0] != "_"} == {
        key: theirs.config[key] for key in theirs.config if key[0] != "_"
    }
    assert controlnet.build(unet, 8, seed=0).config["conditioning_embedding_out_channels"] == (16, 32, 96, 256)


@pytest.fixture(scope="module", params=[("controlnet", FAMILIES[0]), ("ip_adapter", FAMILIES[2])])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Some dozens of steps through the steps of the pipeline, on one picture."""
    kind, name = request.param
    root = tmp_path_factory.mktemp("world")
    CHECKPOINTS[name].write(root / "checkpoint")
    folder = write_pictures(root / "pictures", 16, captions=PROMPTS[:1])
    for number in range(16):
        picture().save(folder / f"{number:03d}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTFLOW_STORE", str(root / "store"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.chdir(root)
        params = led_params(root / "checkpoint", name, kind, build_tower(root / "tower"))
        check_together(params)
        records = make_records(folder, root / "records")
        autoencoder.run(for_step(params, "autoencoder"), records, root / "autoencoder")
        encode.run(for_step(params, "encode"), records, root / "autoencoder", root / "encoded")
        train.run(for_step(params, "train"), train.Sources(root / "encoded", root / "autoencoder"), root / "model")
        yield kind, name, root


def led_params(folder: Path, name: str, kind: str, tower: Path, *more: str) -> Params:
    values = settings(folder, CHECKPOINTS[name]) | {
        "train.adapter.kind": kind,
        "train.adapter.image_dropout": 0.1,
        "train.steps": 60,
        "encode.control_image": "edges",
        "encode.reference_image": "picture",
        "encode.image_encoder": str(tower),
    }
    return load(PARAMS, [*(f"{name}={json.dumps(value)}" for name, value in values.items()), *more])


def drawn(pipeline: DiffusionPipeline, kind: str, **more: object) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    shown = {"controlnet": {"image": picture()}, "ip_adapter": {"ip_adapter_image": picture()}, "": {}}[kind]
    return pipeline(
        prompt=PROMPTS[0], num_inference_steps=2, guidance_scale=GUIDANCE, latents=noise(TINY, 1),
        height=SIDE, width=SIDE, output_type="latent", **shown, **more,
    ).images  # fmt: skip


def loaded(kind: str, root: Path, pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """The plain pipeline with what was delivered beside it."""
    if kind == "controlnet":
        beside = ControlNetModel.from_pretrained(root / "model" / "controlnet")
        return CONTROL[type(pipeline).__name__].from_pipe(pipeline, controlnet=beside)
    pipeline.load_ip_adapter(str(root / "model"), subfolder="ip_adapter", weight_name="ip_adapter.safetensors")
    return pipeline


def test_some_steps_on_one_picture_lower_the_loss(world: tuple[str, str, Path]) -> None:
    kind, name, root = world
    after = denoisers.load(root / "model" / "pipeline")
    plain = started(
        root / "checkpoint", CHECKPOINTS[name], conditions(root / "checkpoint", CHECKPOINTS[name], PROMPTS)[1]
    )
    before = denoisers.lead(plain, adapter(kind), Images("edges", FACTOR, WIDTH), trainings.settings().train.seed)
    groups = heldout_groups(EncodedSet.open(root / "encoded").split("validation"), torch.device("cpu"))
    sigmas = heldout_sigmas(after.definition)
    first, last = (heldout_loss(one.predict, groups, one.definition, sigmas, 0, 40).mean for one in (before, after))
    assert last < 0.98 * first
    rows = (root / "model" / "plots" / "validation.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[1]) == pytest.approx(last, rel=1e-4)


@torch.no_grad()
def test_what_is_delivered_loads_into_the_plain_pipeline_and_scale_zero_changes_nothing(
    world: tuple[str, str, Path],
) -> None:
    kind, _, root = world
    plain = drawn(opened(root / "checkpoint"), "")
    pipeline = loaded(kind, root, opened(root / "checkpoint"))
    changed = drawn(pipeline, kind)
    assert not torch.allclose(changed, plain, atol=1e-3)
    if kind == "controlnet":
        scaled = drawn(pipeline, kind, controlnet_conditioning_scale=0.0)
    else:
        pipeline.set_ip_adapter_scale(0.0)
        scaled = drawn(pipeline, kind)
    assert torch.allclose(scaled, plain, atol=1e-5 * plain.abs().max())


@torch.no_grad()
def test_the_delivered_pipeline_draws_the_same(world: tuple[str, str, Path]) -> None:
    kind, _, root = world
    delivered = opened(root / "model" / "pipeline")
    if kind == "ip_adapter":
        folder = str(root / "model" / "pipeline")
        delivered.load_ip_adapter(folder, subfolder="ip_adapter", weight_name="ip_adapter.safetensors")
    else:
        assert type(delivered) is StableDiffusionControlNetPipeline
    wanted = drawn(loaded(kind, root, opened(root / "checkpoint")), kind)
    assert torch.allclose(drawn(delivered, kind), wanted, atol=1e-4 * wanted.abs().max())


def test_it_is_judged_by_the_records_own_images(world: tuple[str, str, Path]) -> None:
    kind, _, root = world
    delivered = root / "model" / "pipeline"
    encoded = EncodedSet.open(root / "encoded")
    split = encoded.split("test")
    told, (name,) = split.samples(0, torch.arange(1)).condition, split.ids(0, torch.arange(1))
    leads = Leads.find(kind, encoded, {name})
    settings = Settings.read(delivered, "euler", 2, GUIDANCE)
    pictures = Artist(delivered, settings, leads).draw([Request(PROMPTS[0], 3, name)], 1).pictures
    other = Leads(kind, {name: torch.zeros_like(leads.images[name])})
    assert not torch.equal(
        Artist(delivered, settings, other).draw([Request(PROMPTS[0], 3, name)], 1).pictures, pictures
    )
    # As the packaged model draws it, which is given the picture itself.
    assert told.control is not None
    shown = to_image(told.control[0]) if kind == "controlnet" else picture()
    painter = Painter(delivered)
    painter.pipeline.register_modules(scheduler=scheduler_of(delivered, "euler"))
    painter.schedulers = {"": painter.pipeline.scheduler}
    dials = painter.settings({"seed": 3, "steps": 2, "guidance": GUIDANCE})
    painted = np.asarray(painter.paint(Wish(PROMPTS[0], image=shown), dials)).astype(int)
    assert np.abs(painted - pictures[0].permute(1, 2, 0).numpy().astype(int)).max() <= 1
    with pytest.raises(ValueError, match=r"led by a (control|reference) picture: give one as image"):
        painter.paint(Wish(PROMPTS[0]), dials)
    with pytest.raises(LatentflowError, match="records, such as nobody, have no square control picture"):
        Leads.find(kind, encoded, {"nobody"})


def test_a_request_brings_its_image_as_text() -> None:
    text = base64.b64encode(to_png(picture())).decode()
    first, second = wishes_of({"prompt": ["a", "b"], "image": [text, None]})
    assert second.image is None
    assert first.image is not None
    assert np.array_equal(np.asarray(first.image), np.asarray(picture()))
    for wrong in ("no base64", base64.b64encode(b"no picture").decode()):
        with pytest.raises(ValueError, match="image 0 is no PNG or JPEG in base64"):
            wishes_of({"prompt": ["a"], "image": [wrong]})


def test_what_is_led_already_is_not_trained_further(world: tuple[str, str, Path]) -> None:
    _, name, root = world
    params = led_params(root / "model" / "pipeline", name, "lora", root / "tower")
    with pytest.raises(LatentflowError, match=r"model\.pretrained: .* is led by images"):
        denoisers.family_for(params.model)


def test_images_are_forgotten_as_often_as_asked(world: tuple[str, str, Path]) -> None:
    kind, name, root = world
    encoded, definition = EncodedSet.open(root / "encoded"), denoisers.trained_with(root / "checkpoint").definition
    for share, zeros in ((0.0, False), (1.0, True)):
        more = f"train.adapter.image_dropout={share}"
        params = led_params(root / "checkpoint", name, kind, root / "tower", more).train
        condition = Batches(params, definition, encoded).at(0).condition
        assert condition.image is not None
        assert condition.control is not None
        assert bool((condition.image == 0).all()) == zeros
        assert condition.control.dtype == torch.uint8


@pytest.mark.parametrize(
    ("name", "kind", "changes", "words"),
    [
        ("flux.1-dev", "controlnet", (), "controlnet is for StableDiffusionPipeline, StableDiffusionXLPipeline, and"),
        ("stable-diffusion-3", "ip_adapter", (), "model.pretrained is a StableDiffusion3Pipeline"),
        (FAMILIES[0], "controlnet", ("encode.control_image=''",), "set encode.control_image to edges"),
        (
            FAMILIES[0],
            "ip_adapter",
            ("encode.reference_image=''", "encode.image_encoder=''"),
            "set encode.reference_image and encode.image_encoder",
        ),
        (FAMILIES[0], "ip_adapter", ("encode.image_encoder=nowhere",), "image_encoder: 'nowhere' cannot be read"),
    ],
)
def test_what_cannot_be_led_is_refused_before_anything_is_encoded(
    name: str, kind: str, changes: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = CHECKPOINTS[name].write(tmp_path / "checkpoint")
    params = led_params(folder, name, kind, build_tower(tmp_path / "tower"), *changes)
    with pytest.raises(LatentflowError, match=words):
        check_together(params)
