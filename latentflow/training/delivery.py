"""What a finished training leaves: a diffusers pipeline with the averaged weights, its adapter, curves and pictures."""

import csv
import logging
from pathlib import Path

import torch
from torch import nn

from latentflow.denoisers import DIFFUSION, Denoiser
from latentflow.denoisers.schedulers import put_scheduler, scheduler_for
from latentflow.encoders import text as text_room
from latentflow.encoders import vae as vae_room
from latentflow.files import write_json
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


def write(job: Job, model: nn.Module, curves: Curves, autoencoder: Path, folder: Path) -> None:
    """Fills ``folder`` with ``pipeline/``, ``lora/`` where an adapter was trained, plots/*.csv and metrics.json.

    The pipeline is complete: adapters are merged into it, and the text encoder is passed through.
    """
    if trainable.save_adapter(model, folder / ADAPTER, job.denoiser.family):
        log.info("the adapter by itself is in %s/", ADAPTER)
    _write_pipeline(job, trainable.delivered(model), autoencoder, folder / PIPELINE)
    _write_curves(curves, folder)


def _write_pipeline(job: Job, model: nn.Module, autoencoder: Path, folder: Path) -> None:
    manifest, family = job.encoded.manifest, job.denoiser.family
    text = text_room.load_saved(job.encoded.text_folder, manifest.max_tokens)
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    tokens = Denoiser(family, model, job.denoiser.definition).tokens(manifest.latent_shape)
    scheduler = scheduler_for(job.diffusion, "euler", tokens, family.flow_pipeline)
    pipeline = family.pipeline(model, vae_room.load_from(autoencoder), text, scheduler)
    pipeline.save_pretrained(folder, safe_serialization=True)
    put_scheduler(folder, scheduler)
    write_json(folder / DIFFUSION, job.diffusion.to_json())
    generation = {
        "height": manifest.resolution,
        "width": manifest.resolution,
        "call": family.call_arguments(manifest.max_tokens),
    }
    write_json(folder / "generation.json", generation)


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
