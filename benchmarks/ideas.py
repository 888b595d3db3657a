"""What training ideas do to a small DiT on Fashion-MNIST: seconds per step, and the pictures after equal steps.

    sudo apt-get install dataset-fashion-mnist
    python benchmarks/ideas.py [--ideas contrastive=0.05 tread=0.5 ...] [--steps 300] [--seeds 2] [--small]

Pictures are packed, encoded once and trained on with the same seeds, without an idea and with each; commas join ideas
of one run. Every run then draws a picture for the caption of each of `--drawn` held-out records, with the same noise
in all of them. Label fidelity is the share whose nearest training picture carries the caption's label (the features of
evaluation's retrieval); the kernel distance is that to all training pictures, in `pixels8`. The held-out pictures
themselves, and what the autoencoder leaves of them, show what a perfect model would reach. Steps are timed by windows
of `--window` steps as the training logs them, whose median counts, and runs take turns by seed. The command can be
repeated, and goes on where it was. Prints a Markdown table.
"""

import argparse
import csv
import os
import runpy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from torch import Tensor

from latentflow import params as parameters
from latentflow.data.records import RecordSet, spread
from latentflow.encoders import vae as vae_room
from latentflow.evaluation import retrieval
from latentflow.evaluation.drawing import Artist, Request, Settings
from latentflow.evaluation.kernels import kernel_distance
from latentflow.evaluation.metrics import Share, pixels8
from latentflow.manifest import ModelManifest
from latentflow.params import Params, for_step
from latentflow.pictures import to_bytes
from latentflow.steps import autoencoder, encode, ingest, train
from latentflow.workspace import tracking_uri

ROOT = Path(__file__).resolve().parents[1]
FASHION = runpy.run_path(str(ROOT / "examples" / "fashion_mnist.py"))
GUIDANCE = (1.0, 3.0)
SETTINGS = [
    "ingest.near_duplicate_distance=0",
    "ingest.limit=12000",
    "ingest.validation_fraction=0.03",
    "ingest.workers=1",
    "autoencoder.steps=300",
    "encode.max_tokens=6",
    "encode.workers=1",
    f"encode.sample_prompts=[{', '.join(FASHION['LABELS'])}]",
    "model.pixart={layers: 6, heads: 4, head_dim: 48, patch_size: 2}",
    "train.learning_rate=0.002",
    "train.checkpoint_every=50",
]
SMALL = [
    "ingest.limit=150",
    "ingest.test_fraction=0.2",
    "autoencoder.steps=2",
    "autoencoder.channels=[32, 32]",
    "autoencoder.batch_size=4",
    "model.pixart={layers: 3, heads: 2, head_dim: 8, patch_size: 4}",
    "train.batch_size=8",
]


@dataclass(frozen=True)
class Place:
    """Where everything lies, and what all runs share."""

    folder: Path
    settings: list[str]

    def params(self, *more: str) -> Params:
        return parameters.load(ROOT / "params.yaml", [*self.settings, *more])

    def prepare(self) -> None:
        params = self.params()
        records, vae, encoded = (self.folder / name for name in ("records", "autoencoder", "encoded"))
        ingest.run(for_step(params, "ingest"), records)
        autoencoder.run(for_step(params, "autoencoder"), records, vae)
        encode.run(for_step(params, "encode"), records, vae, encoded)


class Judge:
    """The held-out records that are drawn, and the training pictures with which drawn ones are compared."""

    def __init__(self, place: Place, count: int) -> None:
        self.records = RecordSet.open(place.folder / "records")
        self.resolution = place.params().autoencoder.resolution
        self.asked = spread(self.records.split("test"), count)
        training = self.records.split("train")
        pictures = [
            to_bytes(self.records.pixels(training[start : start + 1024], self.resolution))
            for start in range(0, len(training), 1024)
        ]
        self.features = torch.cat([retrieval.features(some) for some in pictures])
        self.pixels8 = torch.cat([pixels8(some) for some in pictures])
        self.right = retrieval.right_ones(self.asked, training)
        self.vae = vae_room.load_from(place.folder / "autoencoder")

    def real(self) -> Tensor:
        return self.records.pixels(self.asked, self.resolution)

    def copied(self) -> Tensor:
        """What the autoencoder makes of the real ones."""
        return torch.cat([vae_room.decode(self.vae, vae_room.encode(self.vae, some)) for some in self.real().split(64)])

    def drawn(self, model: Path, guidance: float, steps: int) -> Tensor:
        """A picture for every record's caption, each with noise of its own, (n, 3, h, w) uint8."""
        pipeline = model / "pipeline"
        artist = Artist(pipeline, Settings.read(pipeline, "euler", steps, guidance))
        requests = [Request(record.caption, number) for number, record in enumerate(self.asked)]
        return artist.draw(requests, batch_size=50).pictures

    def cells(self, pictures: Tensor) -> list[str]:
        """Label fidelity with its interval, and the kernel distance in thousandths."""
        found = retrieval.retrieve(retrieval.features(pictures)[:, None], self.features, self.right).top(1)
        return [percent(found), f"{1000 * kernel_distance(self.pixels8, pixels8(pictures)[:, None]).value:.2f}"]


def percent(found: Share) -> str:
    return f"{100 * found.mean:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


@dataclass(frozen=True)
class Run:
    """One training: with which ideas (`name=value,name=value`, or nothing), from which seed."""

    ideas: str
    seed: int

    def train(self, place: Place, more: Sequence[str]) -> Path:
        """The folder of the model."""
        model = place.folder / "models" / f"{self.name}, seed {self.seed}"
        ideas = self.ideas.replace("=", ": ").replace(",", ", ")
        params = place.params(*more, f"train.ideas={{{ideas}}}", f"train.seed={self.seed}")
        sources = train.Sources(place.folder / "encoded", place.folder / "autoencoder")
        train.run(for_step(params, "train"), sources, model)
        return model

    @property
    def name(self) -> str:
        return self.ideas or "no idea"


def step_seconds(model: Path, batch_size: int) -> float:
    """Of the windows that the training logged, the median one's; the first holds what only a beginning costs."""
    history = MlflowClient(tracking_uri()).get_metric_history(
        ModelManifest.read(model).mlflow_run_id, "train/images_per_second"
    )
    paces = [entry.value for entry in sorted(history, key=lambda entry: entry.step)]
    return batch_size / statistics.median(paces[1:] or paces)


def heldout(model: Path) -> str:
    """The last held-out loss with the half width of its interval."""
    with (model / "plots" / "validation.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return f"{float(last['loss']):.4f} ± {float(last['half_width']):.4f}"


def line(cells: Sequence[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def report(place: Place, runs: Sequence[Run], judge: Judge, steps: int, more: Sequence[str]) -> None:
    """Trains and judges; a row for each run as soon as there is one."""
    measures = [f"{what}, guidance {scale:g}" for scale in GUIDANCE for what in ("label fidelity", "kernel distance")]
    line(["ideas", "seed", "s/step", "held-out loss", *measures])
    line(["---"] * (4 + len(measures)))
    references: dict[str, Callable[[], Tensor]] = {"real held-out": judge.real, "the same, decoded": judge.copied}
    for name, pixels in references.items():
        line([name, "", "", "", *judge.cells(to_bytes(pixels())), "", ""])
    batch_size = place.params(*more).train.batch_size
    for run in runs:
        model = run.train(place, more)
        cells = [cell for scale in GUIDANCE for cell in judge.cells(judge.drawn(model, scale, steps))]
        line([run.name, str(run.seed), f"{step_seconds(model, batch_size):.3f}", heldout(model), *cells])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=ROOT / ".latentflow" / "benchmarks" / "ideas")
    parser.add_argument("--ideas", nargs="*", default=["contrastive=0.05", "tread=0.5"], metavar="NAME=VALUE[,...]")
    parser.add_argument("--steps", type=int, default=300, help="training steps of each run")
    parser.add_argument("--window", type=int, default=10, help="steps that are timed together")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each kind")
    parser.add_argument("--drawn", type=int, default=400, help="held-out records whose captions are drawn")
    parser.add_argument("--sampler-steps", type=int, default=12)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="for all runs")
    parser.add_argument("--small", action="store_true", help="only to see that it works")
    chosen = parser.parse_args()
    if not chosen.pictures.is_dir():
        parser.error(f"{chosen.pictures} does not exist: apt-get install dataset-fashion-mnist, or give --pictures")
    if chosen.small:
        chosen.steps, chosen.window, chosen.seeds, chosen.drawn, chosen.sampler_steps = 2, 1, 1, 4, 2
    return chosen


def main() -> None:
    chosen: Any = options()
    folder, pictures = chosen.out.absolute(), chosen.pictures.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    source = f"ingest.source={FASHION['pack'](pictures, folder / 'source')}"
    place = Place(folder, [*SETTINGS, *(SMALL if chosen.small else []), source, *chosen.set])
    place.prepare()
    rare = [f"train.{kind}_every={chosen.steps}" for kind in ("validate", "sample")]
    more = [f"train.steps={chosen.steps}", f"train.log_every={chosen.window}", *rare]
    runs = [Run(ideas, seed) for seed in range(chosen.seeds) for ideas in ("", *chosen.ideas)]
    report(place, runs, Judge(place, chosen.drawn), chosen.sampler_steps, more)


if __name__ == "__main__":
    main()
