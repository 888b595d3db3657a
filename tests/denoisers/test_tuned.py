"""Each pretrained family through the whole pipeline: fine-tuned, delivered, judged, registered, pulled, drawn."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import Tiny
from diffusers import DiffusionPipeline
from encoding import PARAMS, make_records, write_pictures
from ingest_helpers import clip
from PIL import Image
from torch import Tensor
from tuning import GUIDANCE, PROMPTS, called, conditions, noise, opened, packed, settings, started

from latentflow import denoisers
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers.families import family_of
from latentflow.denoisers.schedulers import scheduler_of
from latentflow.diffusion import SAMPLERS
from latentflow.errors import LatentflowError
from latentflow.evaluation.drawing import Artist, Request, Settings
from latentflow.evaluation.heldout import heldout_groups, heldout_loss, heldout_sigmas
from latentflow.generation.drawing import Model
from latentflow.generation.orders import Dials, Order
from latentflow.manifest import EncodedManifest, EvaluationManifest
from latentflow.params import EvaluateInputs, EvaluateParams, RegisterInputs, for_step, load
from latentflow.registry.pulling import Pulled, pull
from latentflow.registry.pyfunc_model import guided
from latentflow.steps import autoencoder, encode, evaluate, register, train

pytestmark = pytest.mark.slow

PLAIN = """
import json, sys
sys.modules["latentflow"] = None
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], local_files_only=True)
torch.set_num_threads(1)
call = json.loads(sys.argv[2])
drawn = pipeline(**call, generator=torch.Generator("cpu").manual_seed(3))
(drawn.images[0] if hasattr(drawn, "images") else drawn.frames[0][0]).save(sys.argv[3])
"""


@pytest.fixture(scope="module")
def world(folder: Path, tiny: Tiny, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """100 steps of LoRA through the steps of the pipeline, on one picture or clip with two captions; nothing but the
    checkpoint is named.
    """
    root = tmp_path_factory.mktemp("world")
    picture = write_pictures(root / "one", 1) / "000.png"
    media = clip(tiny.frames, fps=25) if tiny.frames else picture.read_bytes()
    (root / "media").mkdir()
    rows = []
    for number in range(16):
        file = f"{number:03d}.{'mp4' if tiny.frames else 'png'}"
        (root / "media" / file).write_bytes(media)
        rows.append(json.dumps({"file_name": file, "text": PROMPTS[number % 2]}) + "\n")
    (root / "media" / "metadata.jsonl").write_text("".join(rows))
    shutil.copy(empty_store, root / "mlflow.db")
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


def drawn(pipeline: DiffusionPipeline, tiny: Tiny, **more: object) -> Tensor:
    guidance = guided(type(pipeline).__name__, GUIDANCE, 1)
    start = packed(noise(tiny)[:1], tiny, noise(tiny, seed=4)[:1, :, :1] if tiny.led else None)
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
    if tiny.led:
        pytest.skip("nothing tells evaluation what a clip is to begin with")
    drawn_by = Artist(delivered, Settings.read(delivered, "euler", 2, GUIDANCE))
    assert drawn_by.draw([Request(PROMPTS[0], 0)], 1).pictures.shape == (1, 3, tiny.side, tiny.side)
    own = DiffusionPipeline.from_pretrained(folder, local_files_only=True).scheduler
    if own.config.get("use_dynamic_shifting"):
        assert scheduler_of(delivered, "euler").config == own.config
    if family_of(delivered).lays_out_sigmas:
        with pytest.raises(LatentflowError, match=r"evaluate\.sampler heun: a \w+ lays out its own"):
            scheduler_of(delivered, "heun")
    else:
        assert scheduler_of(delivered, "heun").config.sampler == "heun"


def trained_shortly(world: Path, folder: Path, tiny: Tiny, out: str, **more: object) -> Path:
    """The pipeline of a training of two steps; ``more`` are parameters as section__field."""
    short = {f"train.{what}": 2 for what in ("steps", "validate_every", "sample_every", "checkpoint_every")}
    changes = settings(folder, tiny) | short | {what.replace("__", "."): value for what, value in more.items()}
    params = load(PARAMS, [f"{name}={json.dumps(value)}" for name, value in changes.items()])
    train.run(for_step(params, "train"), train.Sources(world / "encoded", world / "autoencoder"), world / out)
    return world / out / "pipeline"


def test_full_training_and_dora_are_delivered_too(world: Path, folder: Path, tiny: Tiny) -> None:
    plain = drawn(opened(folder), tiny)
    full = trained_shortly(world, folder, tiny, "full", train__adapter__kind="none", train__warmup_fraction=0)
    assert not torch.allclose(drawn(opened(full), tiny), plain, atol=1e-3)
    assert not (world / "full" / "lora").exists()
    merged = trained_shortly(world, folder, tiny, "dora", train__adapter__kind="dora", train__warmup_fraction=0)
    pipeline = opened(folder)
    pipeline.load_lora_weights(world / "dora" / "lora")
    adapted = drawn(pipeline, tiny)
    assert not torch.equal(adapted, plain)
    assert torch.allclose(drawn(opened(merged), tiny), adapted, atol=1e-4 * adapted.abs().max())


def test_a_definition_that_is_not_the_checkpoints_own_ships_with_its_scheduler(
    world: Path, name: str, folder: Path, tiny: Tiny
) -> None:
    if name != "stable-diffusion-1.5":
        pytest.skip("one family shows it")
    pipeline = trained_shortly(
        world, folder, tiny, "flowing", train__adapter__kind="none", diffusion__definition="flow"
    )
    scheduler = opened(pipeline).scheduler
    assert scheduler.config.prediction_type == "flow_prediction"
    assert scheduler.config.use_flow_sigmas
    assert type(scheduler) is type(scheduler_of(pipeline, "euler"))


@pytest.fixture(scope="module")
def judging() -> EvaluateParams:
    few = {"guidance": GUIDANCE, "steps": 2, "captions": 16, "seeds": 1, "batch_size": 2, "reconstructions": 1}
    changes = few | {"gallery_prompts": [], "grid.prompts": 0, "grid.guidance": [], "grid.steps": []}
    return load(PARAMS, [f"evaluate.{name}={json.dumps(value)}" for name, value in changes.items()]).evaluate


@pytest.fixture(scope="module")
def registered(world: Path, tiny: Tiny, judging: EvaluateParams) -> Path:
    """The fine-tuned model, judged, registered and pulled."""
    if tiny.led:
        pytest.skip("nothing tells evaluation what a clip is to begin with")
    evaluated = evaluate.run(
        EvaluateInputs(evaluate=judging), world / "model", world / "encoded", world / "records", world / "evaluation"
    )
    assert evaluated.metrics["heldout_loss"] > 0
    section = load(PARAMS).register_.model_dump() | {"name": "tuned"}
    section["gate"] = section["gate"] | {"thresholds": {}}
    inputs = RegisterInputs.model_validate({"register": section, "evaluate": judging.model_dump()})
    made = register.run(inputs, world / "model", world / "evaluation", world / "registration")
    assert (made.name, made.version) == ("tuned", "1")
    return pull("models:/tuned/1", world / "pulled")


def test_a_registered_model_draws_in_plain_diffusers_without_latentflow(
    registered: Path, tiny: Tiny, tmp_path: Path
) -> None:
    """In a process in which latentflow cannot be imported; the picture is the one that latentflow draws."""
    saved = json.loads((registered / "generation.json").read_text())
    call = (
        {
            "prompt": PROMPTS[0],
            "output_type": "pil",
            "num_inference_steps": saved["steps"],
            "height": saved["height"],
            "width": saved["width"],
        }
        | saved["call"]
        | guided(family_of(registered).pipeline_class, saved["guidance"], 1)
    )
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, registered, json.dumps(call), tmp_path / "plain.png"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ours = Model(Pulled("tuned", registered)).draw(Order(PROMPTS[0], 3), Dials())
    assert getattr(ours, "n_frames", 1) == max(1, tiny.frames)
    assert np.abs(np.asarray(Image.open(tmp_path / "plain.png")).astype(int) - np.asarray(ours)).max() <= 1


def test_a_registered_model_draws_by_every_sampler_that_it_offers(registered: Path) -> None:
    model = Model(Pulled("tuned", registered))
    single = family_of(registered).lays_out_sigmas
    assert model.samplers() == (["euler"] if single else ["euler", *sorted({*SAMPLERS} - {"euler"})])
    assert not (registered / "samplers").exists() or not single
    for sampler in model.samplers():
        model.draw(Order(PROMPTS[0], 3), Dials(sampler=sampler, steps=1))
    if single:
        with pytest.raises(LatentflowError, match="sampler is 'heun': it must be one of euler"):
            model.draw(Order(PROMPTS[0], 3), Dials(sampler="heun"))


def test_other_sizes_and_negative_prompts(registered: Path, tiny: Tiny) -> None:
    wide = tiny.side + tiny.step
    model = Model(Pulled("tuned", registered))
    assert model.draw(Order(PROMPTS[0], 3), Dials(width=wide)).size == (wide, tiny.side)
    with pytest.raises(LatentflowError, match=rf"tuned cannot draw: .*{tiny.side + 4}"):
        model.draw(Order(PROMPTS[0], 3), Dials(width=tiny.side + 4))
    unwanted = Order(PROMPTS[0], 3, "sun")
    if family_of(registered).pipeline_class.startswith("Flux"):
        with pytest.raises(LatentflowError, match=r"a Flux\w*Pipeline takes no negative prompt"):
            model.draw(unwanted, Dials())
    else:
        drawings = [model.draw(order, Dials()) for order in (Order(PROMPTS[0], 3), unwanted)]
        assert drawings[0].tobytes() != drawings[1].tobytes()


def test_a_pulled_model_is_judged_on_the_set_as_when_it_was_trained(
    world: Path, registered: Path, judging: EvaluateParams
) -> None:
    """Which is what the gate does with a champion: nobody says which set it learnt from, so it is found out."""
    evaluate.judge_folder(judging, registered, world / "encoded", world / "records", world / "again")
    first, again = (EvaluationManifest.read(world / folder).metrics for folder in ("evaluation", "again"))
    assert again["heldout_loss"] == pytest.approx(first["heldout_loss"], rel=1e-6)


def test_what_goes_on_from_a_first_frame_is_not_judged(world: Path, tiny: Tiny, judging: EvaluateParams) -> None:
    if not tiny.led:
        pytest.skip("it draws from captions alone")
    with pytest.raises(
        LatentflowError, match=r"a \w+ImageToVideoPipeline draws from a first frame too, and evaluation"
    ):
        evaluate.run(
            EvaluateInputs(evaluate=judging), world / "model", world / "encoded", world / "records", world / "never"
        )


def test_a_sampler_that_does_not_fit_is_refused_before_anything_is_drawn(
    world: Path, tiny: Tiny, judging: EvaluateParams
) -> None:
    if tiny.led or not family_of(world / "model" / "pipeline").lays_out_sigmas:
        pytest.skip("every sampler fits, or none is asked for")
    inputs = EvaluateInputs(evaluate=judging.model_copy(update={"sampler": "heun"}))
    with pytest.raises(LatentflowError, match=r"^evaluate\.sampler heun: a \w+ lays out its own σ"):
        evaluate.run(inputs, world / "model", world / "encoded", world / "records", world / "never")
    assert not (world / "never").exists()
