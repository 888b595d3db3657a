"""What each choice of the emoji default is worth: one change at a time, each trained for equal time and judged.

    python benchmarks/emoji_quality.py [--seconds 150] [--only NAME ...] [--set section.field=value ...]

Records, autoencoder and encoded sets are made once per setting and reused. A variant first times its own steps
and then trains as many as fit into the same seconds. Prints one line per variant as Markdown.
"""

import argparse
import os
import time
from pathlib import Path

from latentflow import params as parameters
from latentflow.steps import autoencoder, encode, evaluate, ingest, train

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".latentflow" / "benchmarks" / "emoji_quality"
TIMING_STEPS = 20

VARIANTS: dict[str, list[str]] = {
    "default": [],
    "with flips": ["encode.flip=true"],
    "16 text tokens": ["encode.max_tokens=16"],
    "learning rate 1e-3": ["train.learning_rate=0.001"],
    "logit-normal mean 0": ["train.sigma_mean=0.0"],
    "half the autoencoder": ["autoencoder.steps=500"],
    "DiT, patch 2, width 256": ["model.pixart.patch_size=2", "model.pixart.heads=4"],
    "UNet (64, 128), pooled text": ["model.denoiser=unet"],
    "UNet (64, 128)": ["model.denoiser=unet", "model.unet.pooled_text=false"],
    "MMDiT, patch 4": ["model.denoiser=auraflow", "model.auraflow.patch_size=4"],
}


def run(name: str, overrides: list[str], seconds: float) -> str:
    """Trains and judges one variant; returns its row."""
    folder = WORK / name.replace(" ", "_").replace(",", "")

    def inputs(step: str, *more: str):
        return parameters.for_step(parameters.load(ROOT / "params.yaml", [*overrides, *more]), step)

    ingest.run(inputs("ingest"), folder / "records")
    autoencoder.run(inputs("autoencoder"), folder / "records", folder / "autoencoder")
    encode.run(inputs("encode"), folder / "records", folder / "autoencoder", folder / "encoded")

    def trained(steps: int) -> float:
        rare = [f"train.{kind}_every={10 * steps}" for kind in ("log", "validate", "sample", "checkpoint")]
        chosen = inputs("train", f"train.steps={steps}", *rare)
        start = time.perf_counter()
        train.run(chosen, folder / "encoded", folder / "autoencoder", folder / "model", force_rerun=str(start))
        return time.perf_counter() - start

    trained(1)  # imports and first allocations, which only the first run of a process pays
    overhead = trained(1)
    per_step = (trained(1 + TIMING_STEPS) - overhead) / TIMING_STEPS
    steps = max(1, round(seconds / per_step))
    trained(steps)
    judged = evaluate.run(
        inputs("evaluate", "evaluate.gallery_prompts=[red heart]"),
        folder / "model",
        folder / "encoded",
        folder / "records",
        folder / "evaluation",
    )
    figures = judged.metrics
    shares = (figures[f"retrieval/{split}/top{k}"] for split in ("train", "test") for k in (5, 1))
    cells = [name, f"{1000 * per_step:.0f}", str(steps), *(f"{100 * share:.1f} %" for share in shares)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=150, help="training time of each variant")
    options.add_argument("--only", nargs="*", choices=list(VARIANTS), help="these variants")
    options.add_argument("--set", nargs="*", default=[], help="overrides that all variants share")
    chosen = options.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    os.chdir(WORK)
    print("| variant | ms/step | steps | train top-5 | train top-1 | held-out top-5 | held-out top-1 |")
    print("|---|---|---|---|---|---|---|")
    for name in chosen.only or VARIANTS:
        print(run(name, [*chosen.set, *VARIANTS[name]], chosen.seconds), flush=True)


if __name__ == "__main__":
    main()
