"""What a finished training leaves: a diffusers pipeline with the averaged weights, its adapter, curves and pictures."""

import csv
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentflow.data.encoded import IMAGE_ENCODER
from latentflow.denoisers import DIFFUSION, trained_with
from latentflow.denoisers.families import FRAMES, GENERATION, LED_BY, TOLD
from latentflow.denoisers.family import NewFamily
from latentflow.denoisers.ip_adapter import FOLDER as IP_ADAPTER
from latentflow.denoisers.schedulers import put_scheduler, scheduler_for, scheduler_of
from latentflow.diffusion import Diffusion
from latentflow.encoders import text as text_room
from latentflow.encoders import vae as vae_room
from latentflow.encoders.checkpoint import INDEX
from latentflow.errors import LatentflowError
from latentflow.files import copy_tree_or_file, write_json
from latentflow.training import trainable
from latentflow.training.checkpoint import Curves
from latentflow.training.loop import Job

PIPELINE, ADAPTER = "pipeline", "lora"
COLUMNS = {
    "train": ("step", "loss", "gradient_norm", "learning_rate"),
    "validation": ("step", "loss", "half_width"),
    "validation_by_sigma": ("sigma", "loss", "half_width"),
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Where the finished pipeline has its other parts from: the autoencoder step's folder, and ``base``.

    That is the pipeline which was fine-tuned, where its text models read the captions; None where the encoded set
    carries the text model along.
    """

    autoencoder: Path
    base: Path | None


def write(job: Job, model: nn.Module, curves: Curves, parts: Parts, folder: Path) -> None:
    """Fills ``folder`` with ``pipeline/``, ``lora/`` where an adapter was trained, plots/*.csv and metrics.json.

    Of an adapter by images it is ``controlnet/`` or ``ip_adapter/``. The pipeline is complete: adapters are merged into
    it, or beside it where they cannot be, and the text encoder is passed through.
    """
    job.denoiser.family.save_beside(model, folder)
    if trainable.save_adapter(model, folder / ADAPTER, job.denoiser.family):
        log.info("the adapter by itself is in %s/", ADAPTER)
    model = trainable.delivered(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    pipeline = folder / PIPELINE
    if parts.base:
        _put_into(parts.base, job, model, parts.autoencoder, pipeline)
    else:
        _make_pipeline(job, model, parts.autoencoder, pipeline)
    if (folder / IP_ADAPTER).is_dir():
        copy_tree_or_file(job.encoded.image_folder / IMAGE_ENCODER, folder / IP_ADAPTER / IMAGE_ENCODER)
        copy_tree_or_file(folder / IP_ADAPTER, pipeline / IP_ADAPTER)
    _write_how(job, pipeline)
    if parts.base and job.diffusion != _learnt_with(parts.base):
        put_scheduler(pipeline, scheduler_of(pipeline, "euler"))
    _write_curves(curves, folder)


def _make_pipeline(job: Job, model: nn.Module, autoencoder: Path, folder: Path) -> None:
    """The family's native pipeline with the text model that the encoded set carries."""
    manifest, family = job.encoded.manifest, job.denoiser.family
    assert isinstance(family, NewFamily)
    text = text_room.load_saved(job.encoded.text_folder, manifest.max_tokens)
    tokens = replace(job.denoiser, model=model).tokens(manifest.latent_shape)
    scheduler = scheduler_for(job.diffusion, "euler", tokens, family.flow_pipeline)
    whole = family.pipeline(model, vae_room.load_from(autoencoder), text, scheduler)
    whole.save_pretrained(folder, safe_serialization=True)
    put_scheduler(folder, scheduler)


def _put_into(base: Path, job: Job, model: nn.Module, autoencoder: Path, folder: Path) -> None:
    """The pipeline that was fine-tuned, with the trained denoiser and the VAE of the latents."""
    family, parts = job.denoiser.family, job.denoiser.family.parts(model)
    index = json.loads((base / INDEX).read_text(encoding="utf-8"))
    for name, made in index.items():
        if isinstance(made, list) and (base / name).is_dir() and name not in (*parts, "vae"):
            copy_tree_or_file(base / name, folder / name)
    copy_tree_or_file(autoencoder / "vae", folder / "vae")
    for name, part in parts.items():
        part.save_pretrained(folder / name, safe_serialization=True)
        index[name] = ["diffusers", type(part).__name__]
    index["vae"] = ["diffusers", vae_room.class_of(autoencoder)]
    write_json(folder / INDEX, index | {"_class_name": family.pipeline_class})


def _learnt_with(base: Path) -> Diffusion | None:
    """The definition and schedule of the pipeline that was fine-tuned; None where its scheduler does not say."""
    try:
        return trained_with(base)
    except LatentflowError:
        return None


def _write_how(job: Job, folder: Path) -> None:
    """What training, evaluation and drawing must agree on."""
    manifest, family = job.encoded.manifest, job.denoiser.family
    generation: dict[str, Any] = {
        "height": manifest.resolution,
        "width": manifest.resolution,
        "call": family.call_arguments(manifest.max_tokens),
    }
    if job.denoiser.family.led_by:
        generation[LED_BY] = job.denoiser.family.led_by
    if family.clips:
        frames = manifest.latent_shape[1] if len(manifest.latent_shape) == 4 else 1
        generation["call"][FRAMES] = vae_room.shape_of(folder).lengthened(frames)
    if job.denoiser.guidance is not None:
        generation[TOLD] = job.denoiser.guidance
    family.bring_code(job.denoiser.model, folder)
    write_json(folder / DIFFUSION, job.diffusion.to_json())
    write_json(folder / GENERATION, generation)


def _write_curves(curves: Curves, folder: Path) -> None:
    plots = folder / "plots"
    plots.mkdir()
    for name, columns in COLUMNS.items():
        with (plots / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([f"{value:.6g}" for value in row] for row in curves[name])
    write_json(
        folder / "metrics.json",
        {
            "train_loss": curves["train"][-1][1],
            "validation_loss": curves["validation"][-1][1],
            "steps": curves["train"][-1][0],
        },
    )
