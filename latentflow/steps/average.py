"""average: a model whose weights are averaged over another length than training drew with, without training."""

from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError
from latentflow.files import atomic_file, atomic_folder, copy_tree_or_file, digest_folder, digest_json
from latentflow.manifest import FILE, ModelManifest

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
AVERAGES, METRICS, PIPELINE = "averages", "metrics.json", "pipeline"


def run(model: Path, length: float, out: Path) -> ModelManifest:
    """Writes the model folder ``out``: that of ``model``, with the average of ``length`` after its last step.

    The curves and sample grids of the training come along; its final figures do not, for they are of other weights.
    Raises LatentflowError where ``model`` holds no averages, or none of that length can be made of them.
    """
    manifest = ModelManifest.read(model)
    if model.resolve().is_relative_to(out.resolve()):
        raise LatentflowError(f"--out {out} would replace {model}: choose a folder of its own.")
    averaged = _averaged(model, length)
    with atomic_folder(out) as folder:
        for path in sorted(model.iterdir()):
            if path.name not in (AVERAGES, METRICS, FILE):
                copy_tree_or_file(path, folder / path.name)
        _put_weights(folder / PIPELINE, averaged)
        inputs = manifest.inputs | {"model": manifest.digest}
        manifest.model_copy(
            update={
                "digest": digest_folder(folder / PIPELINE),
                "fingerprint": digest_json({"step": "average", "version": VERSION, "length": length, "inputs": inputs}),
                "inputs": inputs,
                "lineage": manifest.lineage | {"averaged_length": f"{length:g}"},
            }
        ).write(folder)
    return ModelManifest.read(out)


def _averaged(model: Path, length: float) -> "dict[str, Tensor]":
    from latentflow.training.averages import Snapshots, combine

    snapshots = Snapshots(model / AVERAGES)
    if not (found := snapshots.read()):
        raise LatentflowError(
            f"{model} holds no averages to combine: set train.ema_lengths, such as [0.05, 0.1], and give the folder "
            "that `latentflow train` then writes."
        )
    return combine(snapshots, length, max(one.step for one in found))


def _put_weights(pipeline: Path, averaged: "dict[str, Tensor]") -> None:
    """Writes the averages over the denoiser's weights, in the files where they lie and in their type."""
    from safetensors.torch import load_file, save_file

    from latentflow.denoisers.families import family_of

    left = dict(averaged)
    for path in sorted((pipeline / family_of(pipeline).subfolder).glob("*.safetensors")):
        weights = load_file(path)
        for name in weights.keys() & left.keys():
            new = left.pop(name)
            if new.shape != weights[name].shape:
                raise LatentflowError(
                    f"{path}: {name} is {tuple(weights[name].shape)}, its average is {tuple(new.shape)}; the averages "
                    "are of another model: train again."
                )
            weights[name] = new.to(weights[name].dtype)
        # Not in place: what was loaded still lies in the file.
        with atomic_file(path) as temporary:
            save_file(weights, temporary, metadata={"format": "pt"})
    if left:
        raise LatentflowError(
            f"{pipeline} has no weights {', '.join(sorted(left)[:3])}, of which there are averages; they are of "
            "another model: train again."
        )
