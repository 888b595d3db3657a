"""What each choice of the emoji default is worth: one change at a time, each trained for equal time and judged.

    python benchmarks/emoji_quality.py [--seconds 200] [--only NAME ...] [--set section.field=value ...]

Records, autoencoder and encoded sets are made once per setting and reused. First the steps of all variants are
timed, interleaved, median of several rounds (keep the machine idle for these minutes); then each variant trains
as many steps as fit into the same seconds and is judged. Prints one line per variant as Markdown.
"""

import argparse
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from latentflow import params as parameters
from latentflow.steps import autoencoder, encode, evaluate, ingest, train

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".latentflow" / "benchmarks" / "emoji_quality"
TIMING_STEPS = 10
ROUNDS = 3

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "with flips": ["encode.flip=true"],
    "16 text tokens": ["encode.max_tokens=16"],
    "learning rate 1e-3": ["train.learning_rate=0.001"],
    "logit-normal mean 0": ["train.sigma_mean=0.0"],
    "learning rate 2e-3": ["train.learning_rate=0.002"],
    "half the autoencoder": ["autoencoder.steps=500"],
    "DiT, patch 2, width 256": ["model.pixart.patch_size=2", "model.pixart.heads=4"],
    "UNet (64, 128), pooled text": ["model.denoiser=unet"],
    "UNet (64, 128)": ["model.denoiser=unet", "model.unet.pooled_text=false"],
    "MMDiT, patch 4": ["model.denoiser=auraflow", "model.auraflow.patch_size=4"],
}


class Variant:
    """One setting: its folder, its encoded set, and its steps timed, trained and judged."""

    def __init__(self, name: str, overrides: list[str]) -> None:
        self.name = name
        self.overrides = overrides
        self.folder = WORK / name.translate(str.maketrans(" ", "_", ",()"))
        self.step_seconds: list[float] = []

    def inputs(self, step: str, *more: str) -> Any:
        return parameters.for_step(parameters.load(ROOT / "params.yaml", [*self.overrides, *more]), step)

    def prepare(self) -> None:
        records, vae, encoded = (self.folder / name for name in ("records", "autoencoder", "encoded"))
        ingest.run(self.inputs("ingest"), records)
        autoencoder.run(self.inputs("autoencoder"), records, vae)
        encode.run(self.inputs("encode"), records, vae, encoded)
        self.train(1)  # imports and first allocations, which only the first run of a process pays

    def train(self, steps: int) -> float:
        """Trains anew for so many steps; returns the seconds."""
        rare = [f"train.{kind}_every={10 * steps}" for kind in ("log", "validate", "sample", "checkpoint")]
        chosen = self.inputs("train", f"train.steps={steps}", *rare)
        encoded, vae, model = (self.folder / name for name in ("encoded", "autoencoder", "model"))
        start = time.perf_counter()
        train.run(chosen, train.Sources(encoded, vae), model, force_rerun=str(start))
        seconds = time.perf_counter() - start
        shutil.rmtree(WORK / ".latentflow" / "store" / "train")  # no run goes on from these checkpoints
        return seconds

    def time_steps(self) -> None:
        overhead = self.train(1)
        self.step_seconds.append((self.train(1 + TIMING_STEPS) - overhead) / TIMING_STEPS)

    def judge(self, seconds: float) -> str:
        """Trains for so many seconds, by the timings, and judges; returns the table's row."""
        per_step = statistics.median(self.step_seconds)
        steps = max(1, round(seconds / per_step))
        self.train(steps)
        inputs = self.inputs("evaluate", "evaluate.gallery_prompts=[red heart]")
        model, encoded, records, out = (self.folder / name for name in ("model", "encoded", "records", "evaluation"))
        figures = evaluate.run(inputs, model, encoded, records, out).metrics
        shares = (figures[f"retrieval/{split}/top{k}"] for split in ("train", "test") for k in (5, 1))
        cells = [self.name, f"{1000 * per_step:.0f}", str(steps), *(f"{100 * share:.1f} %" for share in shares)]
        return "| " + " | ".join(cells) + " |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=200, help="training time of each variant")
    options.add_argument("--only", nargs="*", choices=list(VARIANTS), help="these variants")
    options.add_argument("--set", nargs="*", default=[], help="overrides that all variants share")
    chosen = options.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    variants = [Variant(name, [*chosen.set, *VARIANTS[name]]) for name in chosen.only or VARIANTS]
    for variant in variants:
        variant.prepare()
    for _ in range(ROUNDS):
        for variant in variants:
            variant.time_steps()
    print("| variant | ms/step | steps | train top-5 | train top-1 | held-out top-5 | held-out top-1 |")
    print("|---|---|---|---|---|---|---|")
    for variant in variants:
        print(variant.judge(chosen.seconds), flush=True)


if __name__ == "__main__":
    main()
