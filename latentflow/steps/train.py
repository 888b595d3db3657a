"""train: the denoiser learns the encoded set; what comes out is a complete diffusers folder."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.data import parcels
from latentflow.data.places import read_manifest
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, copy_tree_or_file, digest_folder, sha256_file, write_text
from latentflow.manifest import AutoencoderManifest, EncodedManifest, ModelManifest, fingerprint
from latentflow.own_code import code_digest
from latentflow.params import DiffusionParams, ModelParams, TrainInputs
from latentflow.workspace import work_folder, work_place

if TYPE_CHECKING:
    from torch import Tensor

    from latentflow.data.encoded import EncodedSet
    from latentflow.denoisers import Beginning, Captions, Images
    from latentflow.registry.tracking import Run
    from latentflow.training.checkpoint import Identity, Progress
    from latentflow.training.loop import Job
    from latentflow.training.parallel import Parallel
    from latentflow.training.report import Observer
    from latentflow.training.vault import Checkpoint, Vault

    Starter = Callable[[Progress | None], Observer]

VERSION = 3
CHECKPOINTS = "LATENTFLOW_CHECKPOINTS"
REPORT = "report.html"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resume:
    """A checkpoint that the user named, a folder or an fsspec URL; ``more_steps`` allows another train.steps."""

    checkpoint: str
    more_steps: bool = False


@dataclass(frozen=True)
class Sources:
    """Where a training reads: the encoded set, in one place or with parts in others, and the autoencoder.

    Each is a folder or an fsspec URL.
    """

    encoded: Path | str
    autoencoder: Path | str
    parts: Sequence[Path | str] = ()

    @cached_property
    def autoencoder_folder(self) -> Path:
        """The autoencoder on this machine; from a URL it is fetched when it is first asked for."""
        from latentflow.encoders.fetching import autoencoder_folder

        return autoencoder_folder(self.autoencoder)


def run(
    inputs: TrainInputs,
    sources: Sources,
    out: Path | str,
    force_rerun: str = "",
    resume: Resume | None = None,
    storage: str = "",
) -> ModelManifest | None:
    """Trains from the newest checkpoint of the same fingerprint, or the beginning, and writes the model folder.

    ``out`` is a folder, or an fsspec URL behind which the model is whole (with a files.json) or absent.

    Started by torchrun or accelerate, all processes call this; None is returned in all but the main one.
    Checkpoints lie below ``storage`` or LATENTFLOW_CHECKPOINTS (folders or fsspec URLs), or in the work store. Raises
    PreemptedError (an exit with code 75) when SIGTERM ended it after a checkpoint.
    """
    from latentflow import denoisers
    from latentflow.training.parallel import parallel

    manifest = read_manifest(sources.encoded)
    beginning = denoisers.begin(inputs.model)
    inputs = resolved(inputs, beginning.params)
    digests = _inputs(inputs, sources, manifest, beginning.params)
    with parallel(inputs.train) as together:
        named, started_from = _named(inputs, digests, resume)
        digests |= started_from
        key = fingerprint("train", VERSION, inputs, digests, force_rerun)
        # One process holds the lock for all.
        place: AbstractContextManager[Path] = (
            work_folder("train", key) if together.main else nullcontext(work_place("train", key))
        )
        with place as work:
            done = work / "done"
            if not together.any_true(together.main and done.is_dir()):
                identity = _identity(inputs, digests, key)
                kept = _checkpoints(work, identity, storage)
                _train(inputs, sources, beginning, work, kept, identity, together, named)
            elif together.main:
                log.info("the model of these parameters and data is in the work store; nothing to train")
            together.everywhere(lambda: parcels.deliver(done, out))
    return ModelManifest.read(done) if together.main else None


def identify(inputs: TrainInputs, sources: Sources, force_rerun: str = "") -> str:
    """The fingerprint under which this training is kept. Raises LatentflowError where inputs do not fit together."""
    from latentflow import denoisers

    model = denoisers.begin(inputs.model).params
    inputs = resolved(inputs, model)
    digests = _inputs(inputs, sources, read_manifest(sources.encoded), model)
    return fingerprint("train", VERSION, inputs, digests, force_rerun)


def resolved(inputs: TrainInputs, model: ModelParams) -> TrainInputs:
    """With what ``auto`` in diffusion stands for: model.pretrained's own definition and schedule, else plain flow."""
    from latentflow.denoisers import pretrained
    from latentflow.denoisers.chosen_diffusion import resolved as resolved_diffusion

    pipeline = pretrained(model).folder if model.pretrained else None
    return inputs.model_copy(update={"diffusion": resolved_diffusion(inputs.diffusion, pipeline)})


def _inputs(inputs: TrainInputs, sources: Sources, manifest: EncodedManifest, model: ModelParams) -> dict[str, str]:
    """Checks that everything fits together, before any device is asked for; the digests of all that is read."""
    vae_manifest = AutoencoderManifest.read(sources.autoencoder_folder)
    if manifest.inputs["autoencoder"] != vae_manifest.digest:
        raise LatentflowError(
            f"{sources.encoded} was encoded with another autoencoder than {sources.autoencoder}; run `latentflow "
            "encode`."
        )
    if inputs.train.batch_size > manifest.counts["train"]:
        raise LatentflowError(
            f"train.batch_size {inputs.train.batch_size} is larger than the {manifest.counts['train']} training "
            "records; lower it or add records."
        )
    _check_captions(model, manifest)
    _check_shapes(model, inputs.diffusion, manifest)
    from latentflow.denoisers import check_images, check_vae, family_for, own_class, start_digest
    from latentflow.encoders.vae import shape_of

    check_vae(model, shape_of(sources.autoencoder_folder))
    if inputs.train.adapter.by_images:
        images = _images(manifest, sources.autoencoder_folder)
        check_images(inputs.train.adapter, family_for(model), images)

    digests = {"encoded": manifest.digest, "autoencoder": vae_manifest.digest}
    return digests | _own_code(inputs, own_class(model)) | start_digest(model)


def _check_captions(model: ModelParams, manifest: EncodedManifest) -> None:
    from latentflow import denoisers

    if manifest.cased and denoisers.family_for(model).pipeline_class == "PixArtAlphaPipeline":
        raise LatentflowError(
            "model.denoiser: PixArt's pipeline lowers every caption, but encode.text_encoder tells capital letters "
            "apart, so it would draw from other captions than it was trained on; choose unet or auraflow."
        )


def _check_shapes(model: ModelParams, diffusion: DiffusionParams, manifest: EncodedManifest) -> None:
    """Refuses what the denoiser cannot take and what its pipeline cannot draw, before a device is asked for."""
    from latentflow import denoisers
    from latentflow.denoisers.chosen_diffusion import to_diffusion
    from latentflow.denoisers.schedulers import check_diffusion

    check_diffusion(denoisers.family_for(model), to_diffusion(diffusion))
    shapes = sorted({shard.shape for shard in manifest.shards if shard.kind == "latents"})
    denoisers.check(model, shapes, _captions(manifest))
    denoisers.warn_of_other_definition(model, diffusion.definition)


def _images(manifest: EncodedManifest, autoencoder: Path) -> "Images":
    from latentflow.denoisers import Images
    from latentflow.encoders import vae

    return Images(manifest.images.control, vae.shape_of(autoencoder).factor, manifest.images.width)


def _captions(manifest: EncodedManifest) -> "Captions":
    from latentflow.denoisers import Captions

    return Captions(
        manifest.text_width, manifest.pooled_width, manifest.text_pipeline, manifest.inputs.get("text_encoder", "")
    )


def _identity(inputs: TrainInputs, digests: dict[str, str], key: str) -> "Identity":
    from latentflow.registry.lineage import flat_text
    from latentflow.training.checkpoint import Identity

    return Identity(key, flat_text(inputs.identity()), digests)


def _named(
    inputs: TrainInputs, digests: dict[str, str], resume: Resume | None
) -> "tuple[Checkpoint | None, dict[str, str]]":
    """The checkpoint that the user named; if it was of fewer steps, also its digest, as one more input.

    Raises LatentflowError naming what differs from the checkpoint's own training.
    """
    if resume is None:
        return None, {}
    from latentflow.data.parcels import FILES
    from latentflow.training.checkpoint import Progress, require_same
    from latentflow.training.vault import open_checkpoint

    found = open_checkpoint(resume.checkpoint)
    progress = Progress.read(found.folder)
    require_same(resume.checkpoint, progress.identity, _identity(inputs, digests, ""), resume.more_steps)
    if progress.step >= inputs.train.steps:
        raise LatentflowError(
            f"{resume.checkpoint} is of step {progress.step}, and train.steps is {inputs.train.steps}: raise it."
        )
    if progress.identity.parameters["train.steps"] != str(inputs.train.steps):
        return found, {"resumed_from": sha256_file(found.folder / FILES)}
    before = progress.identity.inputs.get("resumed_from")
    return found, {"resumed_from": before} if before else {}


def _train(
    inputs: TrainInputs,
    sources: Sources,
    beginning: "Beginning",
    work: Path,
    checkpoints: Path | str,
    identity: "Identity",
    together: "Parallel",
    named: "Checkpoint | None",
) -> None:
    from latentflow import denoisers
    from latentflow.data.encoded import EncodedSet
    from latentflow.denoisers import Denoiser
    from latentflow.denoisers.chosen_diffusion import to_diffusion
    from latentflow.training import delivery, loop, page
    from latentflow.training.averages import Snapshots
    from latentflow.training.vault import Keep, Vault

    encoded = EncodedSet.open(sources.encoded, sources.parts)
    diffusion = to_diffusion(inputs.diffusion)
    shape, captions = encoded.manifest.latent_shape, _captions(encoded.manifest)
    family = denoisers.family_for(beginning.params)
    model = denoisers.start(beginning.params, shape, captions, inputs.train.seed)
    told = inputs.model.guidance if family.told_guidance(model.config) else None
    log.info("%s with %.1f M parameters", type(model).__name__, sum(p.numel() for p in model.parameters()) / 1e6)
    plain = Denoiser(family, model, diffusion.definition, told)
    images = _images(encoded.manifest, sources.autoencoder_folder)
    job = loop.Job(
        params=inputs.train,
        diffusion=diffusion,
        denoiser=denoisers.lead(plain, inputs.train.adapter, images, inputs.train.seed),
        encoded=encoded,
        vault=Vault(checkpoints, Keep(inputs.train.keep_last, inputs.train.keep_every)),
        snapshots=Snapshots(work / "averages"),
        identity=identity,
    )
    together.everywhere(job.vault.prepare)
    lineage = _lineage(job, beginning.parent)
    with _settled(job.vault), _observed(inputs, lineage, job, sources, work, together) as (start, run):
        trained, curves = loop.train(job, together, start, named)
        base = denoisers.pretrained(beginning.params).folder if encoded.manifest.text_pipeline else None

        def deliver() -> None:
            with atomic_folder(work / "done") as folder:
                delivery.write(job, trained, curves, delivery.Parts(sources.autoencoder_folder, base), folder)
                for name in ("samples", "averages"):
                    if (work / name).is_dir():
                        copy_tree_or_file(work / name, folder / name)
                _manifest(inputs, lineage, job, folder, run().id).write(folder)
                write_text(folder / REPORT, page.render(folder))
                if (folder / delivery.ADAPTER).is_dir():
                    resolution, guidance = encoded.manifest.resolution, inputs.train.sample_guidance
                    run().log_adapter(folder / delivery.ADAPTER, beginning.parent, resolution, guidance)

        together.everywhere(deliver)


@contextmanager
def _settled(vault: "Vault") -> Iterator[None]:
    """What goes wrong inside is raised after a checkpoint that is being written has been."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # what is raised below is what went wrong first
            vault.wait()
        raise


def _checkpoints(work: Path, identity: "Identity", storage: str) -> Path | str:
    """Where this training's checkpoints lie: by its fingerprint in a place that was named, or in the work store."""
    place = f"{storage.rstrip('/')}/checkpoints" if storage else os.environ.get(CHECKPOINTS)
    return f"{place.rstrip('/')}/{identity.fingerprint[:32]}" if place else work / "checkpoints"


def _manifest(inputs: TrainInputs, lineage: dict[str, str], job: "Job", folder: Path, run_id: str) -> ModelManifest:
    from latentflow.registry.lineage import flat_params, with_params

    return ModelManifest(
        digest=digest_folder(folder / "pipeline"),
        fingerprint=job.identity.fingerprint,
        inputs=job.identity.inputs,
        pipeline_class=job.denoiser.family.pipeline_class,
        resolution=job.encoded.manifest.resolution,
        mlflow_run_id=run_id,
        lineage=with_params(lineage, flat_params(inputs)),
    )


def _own_code(inputs: TrainInputs, denoiser: str) -> dict[str, str]:
    """The digests of the code of the user's own, definition, denoiser or ideas: another code is another training."""
    own = {"definition": inputs.diffusion.definition, "denoiser": denoiser}
    own |= {f"idea {name}": name for name in inputs.train.ideas}
    return {what: code_digest(name) for what, name in own.items() if ":" in name}


def _lineage(job: "Job", parent: str) -> dict[str, str]:
    """Code and environment, where the data came from as encode passed it on, the digests of all inputs, the parent."""
    from latentflow.registry.lineage import lineage_from_environment

    data = {f"data_{name}": value for name, value in job.encoded.manifest.origin.items()}
    origin = {"fingerprint": job.identity.fingerprint} | ({"parent_model": parent} if parent else {})
    digests = {f"digest_{name}": digest for name, digest in job.identity.inputs.items()}
    return lineage_from_environment() | data | digests | origin


@contextmanager
def _observed(
    inputs: TrainInputs, lineage: dict[str, str], job: "Job", sources: Sources, work: Path, together: "Parallel"
) -> "Iterator[tuple[Starter, Callable[[], Run]]]":
    """The MLflow run around the loop, opened once the checkpoint has told which run it belongs to.

    Only the main process has one.
    """
    from latentflow.registry import journal
    from latentflow.registry.lineage import flat_params
    from latentflow.registry.tracking import training_run
    from latentflow.training.interruption import PreemptedError
    from latentflow.training.report import Observer

    opened: list[Run] = []
    with ExitStack() as stack:

        def start(progress: "Progress | None") -> Observer:
            if not together.main:
                return Observer(metrics=_nothing, samples=_nothing, run_id=str)
            run = stack.enter_context(
                training_run(
                    flat_params(inputs),
                    lineage,
                    run_id=progress.mlflow_run_id if progress else None,
                    checkpoint_step=progress.step if progress else None,
                    kept=work / journal.NAME,
                )
            )
            opened.append(run)
            run.log_dataset("encoded", job.encoded.manifest.digest, str(job.encoded), "training")
            return Observer(
                metrics=run.log_metrics,
                samples=_painter(job.encoded, sources.autoencoder_folder, work, run),
                run_id=lambda: run.id,
            )

        try:
            yield start, lambda: opened[0]
        except PreemptedError as error:
            for run in opened:
                run.mark("preempted_at_step", str(error.step))
            raise


def _painter(encoded: "EncodedSet", autoencoder: Path, work: Path, run: "Run") -> "Callable[[Tensor, int], None]":
    """What decodes latents of the fixed captions into a sheet, on disk and in the run."""
    from latentflow.encoders import vae as vae_room
    from latentflow.pictures import grid, to_image, to_strip

    vae = vae_room.load_from(autoencoder)

    def paint(latents: "Tensor", step: int) -> None:
        drawn = vae_room.decode(vae, latents)
        pictures = [to_strip(one) if one.ndim == 4 else to_image(one) for one in drawn]
        sheet = grid(pictures, columns=1 if drawn.ndim == 5 else 4, scale=max(1, 128 // encoded.manifest.resolution))
        path = work / "samples" / f"step-{step:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
        run.log_image(sheet, key="samples/grid", step=step)

    return paint


def _nothing(_what: object, _step: int) -> None:
    """Reports nowhere."""
