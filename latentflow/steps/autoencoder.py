"""autoencoder: trains a VAE on the records, or checks the one that was given, and shows how well it reconstructs."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, copy_tree_or_file, digest_folder, digest_json, digest_model, write_json
from latentflow.manifest import AutoencoderManifest, RecordsManifest, fingerprint
from latentflow.params import AutoencoderInputs, AutoencoderParams
from latentflow.workspace import work_folder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, ModelMixin
    from torch import Tensor

    from latentflow.data.records import Record, RecordSet
    from latentflow.training.autoencoder import Curve

VERSION = 1
SHEET = 32
# Pictures, spread over the training split, from which the latents' mean and deviation are taken.
MEASURED = 8192
log = logging.getLogger(__name__)


def run(inputs: AutoencoderInputs, records: Path, out: Path, force_rerun: str = "") -> AutoencoderManifest:
    """Writes ``vae/``, the reconstruction sheet and the PSNR on held-out pictures to ``out``."""
    digests = {"records": RecordsManifest.read(records).digest}
    if inputs.autoencoder.pretrained:
        digests["pretrained"] = _given(inputs.autoencoder.pretrained)
    key = fingerprint("autoencoder", VERSION, inputs, digests, force_rerun)
    with work_folder("autoencoder", key) as work:
        done = work / "done"
        if not done.is_dir():
            with atomic_folder(done) as folder:
                _make(inputs.autoencoder, records, folder, key, digests)
        else:
            log.info("the autoencoder of these parameters and records is in the work store; nothing to train")
        with atomic_folder(out) as folder:
            copy_tree_or_file(done, folder)
    return AutoencoderManifest.read(out)


def _given(name: str) -> str:
    """What stands for the VAE that was given: its content where it is a folder or part of a pipeline."""
    from latentflow.encoders import checkpoint

    pipeline = checkpoint.find(name, "autoencoder.pretrained", ["vae"])
    return digest_folder(pipeline.folder / "vae") if pipeline else digest_model(name)


def _make(params: AutoencoderParams, records: Path, folder: Path, key: str, digests: dict[str, str]) -> None:
    from latentflow.data.records import RecordSet, spread
    from latentflow.encoders import vae as vae_room

    record_set = RecordSet.open(records)
    vae = _validated(params) if params.pretrained else _trained(params, record_set, folder)
    vae.save_pretrained(folder / "vae")
    # Judged as it was saved: what is measured is what encode will load.
    vae = vae_room.load_from(folder)
    held_out = spread(record_set.split("validation"), 256)
    pixels, decoded, psnr = _reconstruct(vae, record_set, held_out, params.resolution)
    _write_sheet(pixels[:SHEET], decoded[:SHEET], folder / "reconstructions.png")
    write_json(folder / "metrics.json", {"psnr_db": psnr, "pictures": len(held_out)})
    weights = digest_folder(folder / "vae")
    AutoencoderManifest(
        digest=digest_json({"vae": weights, "resolution": params.resolution, "psnr_db": psnr}),
        fingerprint=key,
        inputs=digests,
        weights=weights,
        resolution=params.resolution,
        trained=not params.pretrained,
    ).write(folder)
    log.info("VAE: %.1f dB PSNR on %d held-out pictures", psnr, len(held_out))


def _validated(params: AutoencoderParams) -> "ModelMixin":
    from latentflow.encoders import vae as vae_room

    vae = vae_room.load(params.pretrained)
    if params.resolution % vae_room.factor(vae):
        raise LatentflowError(
            f"autoencoder.resolution {params.resolution} is not a multiple of {vae_room.factor(vae)}, "
            f"the factor of {params.pretrained}."
        )
    return vae


def _trained(params: AutoencoderParams, record_set: "RecordSet", folder: Path) -> "AutoencoderKL":
    import torch

    from latentflow.data.batching import full_batches
    from latentflow.data.square import SquarePictures
    from latentflow.encoders import vae as vae_room
    from latentflow.training import autoencoder

    records = record_set.split("train")
    if params.batch_size > len(records):
        raise LatentflowError(
            f"autoencoder.batch_size {params.batch_size} is larger than the {len(records)} training pictures; lower it."
        )
    pictures = SquarePictures(record_set, records, params.resolution)
    vae, curve = autoencoder.train(params, pictures)
    _write_curve(curve, folder / "plots" / "loss.csv")
    some = [row * len(pictures) // min(len(pictures), MEASURED) for row in range(min(len(pictures), MEASURED))]
    batches = full_batches(len(some), params.batch_size)
    parts = [vae_room.encode(vae, pictures.at([some[row] for row in rows]))[:new] for rows, new in batches]
    latents = torch.cat(parts).double()
    mean, std = latents.mean(dim=(0, 2, 3)).float(), latents.std(dim=(0, 2, 3)).float()
    vae_room.fold_statistics(vae, mean, std)
    return vae


def _reconstruct(
    vae: "ModelMixin", record_set: "RecordSet", records: "Sequence[Record]", resolution: int
) -> "tuple[Tensor, Tensor, float]":
    import torch

    from latentflow.data.batching import full_batches
    from latentflow.encoders import vae as vae_room
    from latentflow.evaluation.metrics import psnr

    pixels = record_set.pixels(records, resolution)
    parts = [
        vae_room.decode(vae, vae_room.encode(vae, pixels[rows]))[:new] for rows, new in full_batches(len(pixels), 32)
    ]
    decoded = torch.cat(parts)
    values = [psnr(drawn, real, peak=2.0) for drawn, real in zip(decoded, pixels, strict=True)]
    return pixels, decoded, sum(values) / len(values)


def _write_sheet(pixels: "Tensor", decoded: "Tensor", path: Path) -> None:
    """Originals above their reconstructions, eight a row."""
    from latentflow.pictures import grid, to_image

    pairs = [to_image(one) for pair in zip(pixels, decoded, strict=True) for one in pair]
    grid(pairs, columns=8, scale=max(1, 64 // pixels.shape[-1])).save(path)


def _write_curve(curve: "list[Curve]", path: Path) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "reconstruction", "kl"))
        writer.writerows((point.step, f"{point.reconstruction:.6g}", f"{point.kl:.6g}") for point in curve)
