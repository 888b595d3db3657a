"""70,000 real pictures from tars to a model: ingest, autoencoder, encode and 200 training steps in one command.

    sudo apt-get install dataset-fashion-mnist
    python examples/fashion_mnist.py [--pictures /usr/share/datasets/fashion-mnist] [--out data/fashion-mnist]

The pictures are packed with their labels as captions, as any set in WebDataset's layout; what is done already is
found again, so the command can be repeated with other `--set`s.
"""

import argparse
import gzip
import io
import logging
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from latentflow import params as parameters
from latentflow.files import atomic_file
from latentflow.params import Params, for_step
from latentflow.steps import autoencoder, encode, ingest, train

LABELS = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SETTINGS = {
    "ingest.near_duplicate_distance": 0,
    "autoencoder.steps": 300,
    "encode.sample_prompts": f"[{', '.join(LABELS)}]",
    "train.steps": 200,
    "train.validate_every": 100,
    "train.sample_every": 200,
    "train.checkpoint_every": 100,
}
PER_TAR = 10_000
log = logging.getLogger("fashion_mnist")


def read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, 28, 28) and labels (n,) of one of the two files."""
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz") as file:
        pictures = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz") as file:
        return pictures, np.frombuffer(file.read(), np.uint8, offset=8)


def members(pictures: np.ndarray, labels: np.ndarray, first: int) -> Iterator[tuple[str, bytes]]:
    """A picture and its caption after the other, dark on light as drawings are."""
    for number, (picture, label) in enumerate(zip(pictures, labels, strict=True), start=first):
        buffer = io.BytesIO()
        Image.fromarray(255 - picture).save(buffer, format="PNG")
        yield f"{number:05d}.png", buffer.getvalue()
        yield f"{number:05d}.txt", LABELS[label].encode()


def pack(folder: Path, out: Path) -> Path:
    """Writes tars of 10,000 pictures with captions; those that are there stay."""
    both = [read(folder, name) for name in ("train", "t10k")]
    pictures, labels = (np.concatenate(parts) for parts in zip(*both, strict=True))
    for first in range(0, len(pictures), PER_TAR):
        path = out / f"fashion-{first // PER_TAR:02d}.tar"
        if path.is_file():
            continue
        some = slice(first, first + PER_TAR)
        with atomic_file(path) as temporary, tarfile.open(temporary, "w") as tar:
            for name, data in members(pictures[some], labels[some], first):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out


def run(params: Params, out: Path) -> None:
    """The four steps, each with its time."""
    records, vae, encoded, model = (out / name for name in ("records", "autoencoder", "encoded", "model"))
    steps = {
        "ingest": lambda: ingest.run(for_step(params, "ingest"), records),
        "autoencoder": lambda: autoencoder.run(for_step(params, "autoencoder"), records, vae),
        "encode": lambda: encode.run(for_step(params, "encode"), records, vae, encoded),
        "train": lambda: train.run(for_step(params, "train"), train.Sources(encoded, vae), model),
    }
    for name, step in steps.items():
        start = time.perf_counter()
        step()
        log.info("%s took %.0f s", name, time.perf_counter() - start)
    log.info("sample grids in %s, pipeline in %s", model / "samples", model / "pipeline")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    options.add_argument("--out", type=Path, default=Path("data/fashion-mnist"))
    options.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="as latentflow's")
    chosen = options.parse_args()
    if not chosen.pictures.is_dir():
        options.error(f"{chosen.pictures} does not exist: apt-get install dataset-fashion-mnist, or give --pictures")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = [f"{name}={value}" for name, value in SETTINGS.items()]
    source = f"ingest.source={pack(chosen.pictures, chosen.out / 'source')}"
    file = Path(__file__).resolve().parents[1] / "params.yaml"
    run(parameters.load(file, [source, *settings, *chosen.set]), chosen.out)


if __name__ == "__main__":
    main()
