"""What the encode step costs beside its encoders: its throughput against the bare VAE and text encoder in a loop.

    python benchmarks/encode.py [--pictures 256] [--resolution 128] [--channels 64 128 128] [--rounds 3]

Both see the same pictures and captions in batches of the same size, interleaved. The bare loop gets decoded tensors;
the step decodes JPEGs of twice the side, fits them, and writes and digests its shards. What the first four
batches cost, models included, is measured by itself and left out of the last column. Prints a Markdown table.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from latentflow import params as parameters
from latentflow.data.records import RecordSet
from latentflow.devices import best_device
from latentflow.encoders import text as text_room
from latentflow.encoders import vae as vae_room
from latentflow.files import digest_folder
from latentflow.manifest import AutoencoderManifest
from latentflow.params import EncodeInputs, IngestInputs
from latentflow.steps import encode, ingest

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
WORDS = ("red", "green", "small", "large", "heart", "cat", "rocket", "pizza", "a", "of", "on", "face")


def write_pictures(folder: Path, count: int, side: int) -> None:
    """JPEGs with structure at several scales, so that they decode as photographs do, and distinct captions."""
    folder.mkdir()
    rows = []
    for number in range(count):
        random = np.random.default_rng(number)
        small = [Image.fromarray(random.integers(0, 256, (s, s, 3), dtype=np.uint8)) for s in (4, 16, 64)]
        layers = [np.asarray(one.resize((side, side), Image.Resampling.BICUBIC), np.float32) for one in small]
        Image.fromarray(np.mean(layers, axis=0).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=92)
        rows.append({"file_name": f"{number:05d}.jpg", "text": " ".join(random.choice(WORDS, 6)) + f" {number}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_vae(folder: Path, resolution: int, channels: list[int]) -> None:
    vae_room.build(resolution, channels, 4, 2, seed=0).save_pretrained(folder / "vae")
    weights = digest_folder(folder / "vae")
    manifest = AutoencoderManifest(
        digest=weights, fingerprint="", inputs={}, weights=weights, resolution=resolution, trained=False
    )
    manifest.write(folder)


@dataclass(frozen=True)
class Side:
    """The same pictures for both: records of a folder, and their pixels and captions in memory."""

    root: Path
    records: Path
    inputs: EncodeInputs

    @classmethod
    def make(cls, root: Path, count: int, chosen: argparse.Namespace) -> "Side":
        pictures, records = root / f"pictures-{count}", root / f"records-{count}"
        write_pictures(pictures, count, 2 * chosen.resolution)
        settings = {
            "ingest.source": pictures,
            "ingest.validation_fraction": 0.3,
            "ingest.test_fraction": 0.3,
            "autoencoder.resolution": chosen.resolution,
            "encode.batch_size": chosen.batch,
        }
        params = parameters.load(PARAMS, [f"{name}={value}" for name, value in settings.items()])
        ingest.run(IngestInputs(ingest=params.ingest), records)
        return cls(root, records, EncodeInputs(encode=params.encode))

    def bare(self) -> float:
        """Seconds of the encoders alone, on batches as the step forms them."""
        records, params = RecordSet.open(self.records), self.inputs.encode
        vae = vae_room.load_from(self.root / "autoencoder").to(best_device())
        side = int(vae.config.sample_size)
        pixels, captions = records.pixels(records.table, side), [record.caption for record in records.table]
        text = text_room.load(params.text_encoder, params.max_tokens)
        text.model.to(best_device())
        start = time.perf_counter()
        for first in range(0, len(pixels), params.batch_size):
            vae_room.encode(vae, pixels[first : first + params.batch_size].to(best_device())).cpu()
            text.encode(captions[first : first + params.batch_size]).text.cpu()
        return time.perf_counter() - start

    def step(self) -> float:
        """Seconds of the whole step with an empty work store, loading of models and planning included."""
        with tempfile.TemporaryDirectory(dir=self.root) as store:
            os.environ["LATENTFLOW_STORE"] = store
            start = time.perf_counter()
            encode.run(self.inputs, self.records, self.root / "autoencoder", Path(store) / "encoded")
            return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=int, default=256)
    options.add_argument("--resolution", type=int, default=128)
    options.add_argument("--channels", type=int, nargs="+", default=[64, 128, 128])
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_vae(root / "autoencoder", chosen.resolution, chosen.channels)
        small, whole = (Side.make(root, count, chosen) for count in (4 * chosen.batch, chosen.pictures))
        times = [(whole.bare(), whole.step(), small.step()) for _ in range(chosen.rounds)]
    alone, step, fixed = (statistics.median(one) for one in zip(*times, strict=True))
    count, more = chosen.pictures, chosen.pictures - 4 * chosen.batch
    steady = statistics.median((bare * more / count) / (full - few) for bare, full, few in times)
    print("| pictures | side | encoders alone, pictures/s | encode, pictures/s | ratio | beyond the first ones |")
    print("|---|---|---|---|---|---|")
    rates = f"{count / alone:.1f} | {count / step:.1f} | {alone / step:.3f} | {steady:.3f}"
    print(f"| {count} | {chosen.resolution} | {rates} |")
    print(f"\nThe first {4 * chosen.batch}, with loading, saving and digests of the models: {fixed:.1f} s.")


if __name__ == "__main__":
    main()
