"""What the encode step costs beside its encoders: its throughput against the bare VAE and text encoder in a loop.

    python benchmarks/encode.py [--pictures 256] [--resolution 128] [--channels 64 128 128] [--rounds 3]

Both see the same pictures and captions in batches of the same size, interleaved. The bare loop gets decoded tensors;
the step decodes JPEGs of twice the side, fits them, and writes and digests its shards. Prints a Markdown table.
"""

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
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


def bare(inputs: EncodeInputs, pixels: torch.Tensor, captions: list[str], autoencoder: Path) -> float:
    """Seconds of the encoders alone, on batches as the step forms them."""
    vae = vae_room.load_from(autoencoder).to(best_device())
    text = text_room.load(inputs.encode.text_encoder, inputs.encode.max_tokens)
    text.model.to(best_device())
    size = inputs.encode.batch_size
    start = time.perf_counter()
    for first in range(0, len(pixels), size):
        vae_room.encode(vae, pixels[first : first + size].to(best_device())).cpu()
        text.encode(captions[first : first + size])[0].cpu()
    return time.perf_counter() - start


def step(inputs: EncodeInputs, records: Path, autoencoder: Path, root: Path) -> float:
    """Seconds of the whole step with an empty work store, loading of models and planning included."""
    with tempfile.TemporaryDirectory(dir=root) as store:
        os.environ["LATENTFLOW_STORE"] = store
        start = time.perf_counter()
        encode.run(inputs, records, autoencoder, Path(store) / "encoded")
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
        write_pictures(root / "pictures", chosen.pictures, 2 * chosen.resolution)
        write_vae(root / "autoencoder", chosen.resolution, chosen.channels)
        params = parameters.load(
            PARAMS,
            [
                f"ingest.source={root / 'pictures'}",
                f"autoencoder.resolution={chosen.resolution}",
                f"encode.batch_size={chosen.batch}",
            ],
        )
        ingest.run(IngestInputs(ingest=params.ingest), root / "records")
        inputs = EncodeInputs(encode=params.encode)
        record_set = RecordSet.open(root / "records")
        pixels = record_set.pixels(record_set.table, chosen.resolution)
        captions = [record.caption for record in record_set.table]
        times = [
            (
                bare(inputs, pixels, captions, root / "autoencoder"),
                step(inputs, root / "records", root / "autoencoder", root),
            )
            for _ in range(chosen.rounds)
        ]
    alone, whole = (statistics.median(one) for one in zip(*times, strict=True))
    ratio = statistics.median(first / second for first, second in times)
    print("| pictures | side | encoders alone, pictures/s | encode, pictures/s | ratio |")
    print("|---|---|---|---|---|")
    count = chosen.pictures
    print(f"| {count} | {chosen.resolution} | {count / alone:.1f} | {count / whole:.1f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
