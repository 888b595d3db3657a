"""train: the denoiser learns the encoded set; what comes out is a complete diffusers folder."""

import csv
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.data.places import read_manifest
from latentflow.errors import LatentflowError
from latentflow.files import (
    atomic_folder,
    copy_tree_or_file,
    digest_folder,
    digest_json,
    sha256_file,
    write_json,
)
from latentflow.manifest import AutoencoderManifest, EncodedManifest, ModelManifest, fingerprint
from latentflow.params import DiffusionParams, TrainInputs
from latentflow.workspace import work_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latentflow.data.encoded import EncodedSet
    from latentflow.denoisers import Denoiser
    from latentflow.diffusion import Diffusion
    from latentflow.registry.tracking import Run
    from latentflow.training.checkpoint import Progress
    from latentflow.training.loop import Curves, Observer

    Starter = Callable[[Progress | None], Observer]

VERSION = 2
COLUMNS = {
    "train": ("step", "loss", "gradient_norm", "learning_rate"),
    "validation": ("step", "loss", "half_width"),
    "validation_by_sigma": ("sigma", "loss", "half_width"),
}
log = logging.getLogger(__name__)


def run(
    inputs: TrainInputs,
    encoded: Path | str,
    autoencoder: Path,
    out: Path,
    force_rerun: str = "",
    parts: Sequence[Path | str] = (),
) -> ModelManifest:
    """Trains from the newest checkpoint of the same fingerprint, or the beginning, and writes the model folder.

    ``encoded`` is a folder or an fsspec URL; shards may also lie in ``parts``.
    """
    manifest = read_manifest(encoded)
    vae_manifest = AutoencoderManifest.read(autoencoder)
    if manifest.inputs["autoencoder"] != vae_manifest.digest:
        raise LatentflowError(
            f"{encoded} was encoded with another autoencoder than {autoencoder}; run `latentflow encode`."
        )
    if inputs.train.batch_size > manifest.counts["train"]:
        raise LatentflowError(
            f"train.batch_size {inputs.train.batch_size} is larger than the {manifest.counts['train']} training "
            "records; lower it or add records."
        )
    _check_captions(inputs, manifest)
    _check_shapes(inputs, manifest)
    _check_processes()
    digests = {"encoded": manifest.digest, "autoencoder": vae_manifest.digest} | _own_definition(inputs.diffusion)
    key = fingerprint("train", VERSION, inputs, digests, force_rerun)
    with work_folder("train", key) as work:
        done = work / "done"
        if not done.is_dir():
            _train(inputs, (encoded, *parts), autoencoder, work, key, digests)
        else:
            log.info("the model of these parameters and data is in the work store; nothing to train")
        with atomic_folder(out) as folder:
            copy_tree_or_file(done, folder)
    return ModelManifest.read(out)


def _check_captions(inputs: TrainInputs, manifest: EncodedManifest) -> None:
    if manifest.cased and inputs.model.denoiser == "pixart":
        raise LatentflowError(
            "model.denoiser: PixArt's pipeline lowers every caption, but encode.text_encoder tells capital letters "
            "apart, so it would draw from other captions than it was trained on; choose unet or auraflow."
        )


def _check_shapes(inputs: TrainInputs, manifest: EncodedManifest) -> None:
    """Refuses latents and captions that the denoiser cannot take, before a device is asked for."""
    from latentflow import denoisers

    shapes = sorted({shard.shape for shard in manifest.shards if shard.kind == "latents"})
    denoisers.check(inputs.model, shapes, manifest.text_width)
    denoisers.warn_of_other_definition(inputs.model, inputs.diffusion.definition)


def _check_processes() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise LatentflowError("train runs as one process for now; start it without accelerate launch or torchrun.")


def _train(
    inputs: TrainInputs,
    places: tuple[Path | str, ...],
    autoencoder: Path,
    work: Path,
    key: str,
    digests: dict[str, str],
) -> None:
    from latentflow import denoisers
    from latentflow.data.encoded import EncodedSet
    from latentflow.denoisers import FAMILIES, Denoiser
    from latentflow.registry.lineage import flat_params, lineage_from_environment, with_params
    from latentflow.training import loop

    encoded_set = EncodedSet.open(places[0], places[1:])
    shape, width = encoded_set.manifest.latent_shape, encoded_set.manifest.text_width
    model = denoisers.build(inputs.model, shape, width, inputs.train.seed)
    diffusion = _diffusion(inputs.diffusion)
    denoiser = Denoiser(FAMILIES[inputs.model.denoiser], model, diffusion.definition)
    lineage = (
        lineage_from_environment()
        | _data_lineage(encoded_set.manifest)
        | {f"digest_{name}": d for name, d in digests.items()}
    )
    log.info("%s with %.1f M parameters", type(model).__name__, sum(p.numel() for p in model.parameters()) / 1e6)
    with _observed(inputs, lineage, encoded_set, autoencoder, work) as (start, run_id):
        averaged, curves = loop.train(inputs.train, diffusion, denoiser, encoded_set, work / "checkpoints", key, start)
        with atomic_folder(work / "done") as folder:
            _write_pipeline(averaged, denoiser, encoded_set, autoencoder, diffusion, folder / "pipeline")
            _write_curves(curves, folder)
            copy_tree_or_file(work / "samples", folder / "samples")
            ModelManifest(
                digest=digest_folder(folder / "pipeline"),
                fingerprint=key,
                inputs=digests,
                pipeline_class=denoiser.family.pipeline_class,
                resolution=encoded_set.manifest.resolution,
                mlflow_run_id=run_id(),
                lineage=with_params(lineage, flat_params(inputs)),
            ).write(folder)


def _own_definition(params: DiffusionParams) -> dict[str, str]:
    """The digest of the code of a definition of the user's own: another code is another training."""
    if ":" not in params.definition:
        return {}
    from latentflow.denoisers.carried import module_path

    _diffusion(params)
    path = module_path(params.definition)
    assert path
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return {"definition": digest_json({file.relative_to(path.parent).as_posix(): sha256_file(file) for file in files})}


def _diffusion(params: DiffusionParams) -> "Diffusion":
    """The definition and schedule that the parameters name; a definition of the user's own is imported here."""
    from latentflow.diffusion import Diffusion, Schedule

    dials = params.model_dump(exclude={"definition", "schedule", "sigmas"})
    try:
        diffusion = Diffusion(params.definition, Schedule(params.schedule, sigmas=tuple(params.sigmas), **dials))
        diffusion.sigmas(diffusion.steps or 2, tokens=256)
    except ValueError as error:
        raise LatentflowError(f"diffusion: {error}.") from None
    return diffusion


def _data_lineage(manifest: EncodedManifest) -> dict[str, str]:
    """Where the data came from, as encode passed it on."""
    return {f"data_{name}": value for name, value in manifest.origin.items()}


@contextmanager
def _observed(
    inputs: TrainInputs, lineage: dict[str, str], encoded_set: "EncodedSet", autoencoder: Path, work: Path
) -> "Iterator[tuple[Starter, Callable[[], str]]]":
    """The MLflow run around the loop, opened once the checkpoint has told which run it belongs to."""
    from latentflow.encoders import vae as vae_room
    from latentflow.pictures import grid, to_image
    from latentflow.registry.lineage import flat_params
    from latentflow.registry.tracking import training_run
    from latentflow.training.loop import Observer

    vae = vae_room.load_from(autoencoder)
    opened: list[Run] = []
    with ExitStack() as stack:

        def start(progress: "Progress | None") -> Observer:
            run = stack.enter_context(
                training_run(
                    flat_params(inputs),
                    lineage,
                    run_id=progress.mlflow_run_id if progress else None,
                    checkpoint_step=progress.step if progress else None,
                )
            )
            opened.append(run)
            digest = encoded_set.manifest.digest
            run.log_dataset("encoded", digest, str(encoded_set), "training")

            def draw(latents: "Tensor", step: int) -> None:
                sheet = grid(
                    [to_image(one) for one in vae_room.decode(vae, latents)],
                    columns=4,
                    scale=max(1, 128 // encoded_set.manifest.resolution),
                )
                path = work / "samples" / f"step-{step:07d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                sheet.save(path)
                run.log_image(sheet, key="samples/grid", step=step)

            return Observer(metrics=run.log_metrics, samples=draw, run_id=lambda: run.id)

        yield start, lambda: opened[0].id


def _write_pipeline(
    averaged: "nn.Module",
    denoiser: "Denoiser",
    encoded_set: "EncodedSet",
    autoencoder: Path,
    diffusion: "Diffusion",
    folder: Path,
) -> None:
    """Assembles the native diffusers pipeline; the text encoder is only passed through to the folder."""
    import torch

    from latentflow.denoisers import DIFFUSION
    from latentflow.denoisers.schedulers import put_scheduler, scheduler_for
    from latentflow.encoders import text as text_room
    from latentflow.encoders import vae as vae_room

    manifest = encoded_set.manifest
    text = text_room.load_saved(encoded_set.text_folder, manifest.max_tokens)
    model = averaged.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    tokens = denoiser.tokens(manifest.latent_shape)
    scheduler = scheduler_for(diffusion, "euler", tokens, denoiser.family.flow_pipeline)
    pipeline = denoiser.family.pipeline(model, vae_room.load_from(autoencoder), text, scheduler)
    pipeline.save_pretrained(folder, safe_serialization=True)
    put_scheduler(folder, scheduler)
    write_json(folder / DIFFUSION, diffusion.to_json())
    generation = {
        "height": manifest.resolution,
        "width": manifest.resolution,
        "call": denoiser.family.call_arguments(manifest.max_tokens),
    }
    write_json(folder / "generation.json", generation)


def _write_curves(curves: "Curves", folder: Path) -> None:
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
