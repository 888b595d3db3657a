"""Draws the figures of docs/theory.md into docs/images/theory.

python docs/figures.py                      # what follows from the definitions alone
python docs/figures.py --model data/model   # also what the trained model shows (evaluate must have run)
"""

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from latentflow.diffusion import DEFINITIONS, SAMPLERS, Schedule, find

OUT = Path(__file__).parent / "images" / "theory"
SCHEDULES = {
    "linear": Schedule(),
    "shift 3": Schedule("shift", shift=3.0),
    "cosine": Schedule("cosine"),
    "karras": Schedule("karras", sigma_min=0.02),
}
STEPS = (2, 4, 8, 16, 24, 48)


def paths() -> None:
    """The data definitions in the plane of their coefficients."""
    figure, axes = plt.subplots(figsize=(5, 4.2))
    time = torch.linspace(0, 1, 201, dtype=torch.float64)
    for name in ("flow", "ddpm_epsilon", "trigonometric", "edm"):
        definition = find(name)
        a, b = definition.data(definition.time_to_sigma(time))
        shown = b <= 1.5
        axes.plot(a[shown], b[shown], label=definition.name, linestyle="--" if name == "trigonometric" else "-")
    axes.plot([1], [0], "ko")
    axes.annotate("data", (1, 0), (0.86, 0.03))
    axes.set(xlabel="a, of the data", ylabel="b, of the noise", xlim=(0, 1.1), ylim=(0, 1.2))
    axes.legend()
    _save(figure, "paths")


def determinants() -> None:
    """Where x_t and the model's output determine data and noise, and where they do not."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    time = torch.linspace(0, 1, 401, dtype=torch.float64)
    for name in DEFINITIONS:
        if name == "edm":  # its σ goes to 80, and so does its determinant
            continue
        definition = find(name)
        sigma = definition.time_to_sigma(time)
        axes.plot(sigma, definition.determinant(sigma), label=f"{definition.name}, {definition.prediction_type}")
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel="σ", ylabel="det M")
    axes.legend(fontsize=8)
    _save(figure, "determinants")


def schedules() -> None:
    """Which σ a sampler of 24 steps visits."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4))
    for panel, name in zip(panels, ("flow", "ddpm_epsilon"), strict=True):
        definition = find(name)
        for label, schedule in SCHEDULES.items():
            panel.plot(schedule(definition, 24), marker=".", label=label)
        panel.set(title=definition.name, xlabel="step", ylabel="σ")
    panels[0].legend()
    _save(figure, "schedules")


def loss_by_sigma(evaluation: Path) -> None:
    """The held-out loss of a trained model over σ."""
    with (evaluation / "plots" / "heldout_loss_by_sigma.csv").open(encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    figure, axes = plt.subplots(figsize=(5.5, 3.4))
    sigma, loss = [row["sigma"] for row in rows], [row["loss"] for row in rows]
    axes.plot(sigma, loss, marker="o")
    axes.fill_between(sigma, [row["low"] for row in rows], [row["high"] for row in rows], alpha=0.25)
    axes.set(xlabel="σ", ylabel="held-out loss", ylim=(0, None))
    _save(figure, "loss_by_sigma")


def pictures(model: Path, prompt: str) -> None:
    """One caption and seed by sampler and steps."""
    from latentflow import params as parameters
    from latentflow.evaluation.drawing import Artist, Request, Settings
    from latentflow.pictures import to_image

    guidance = parameters.load(Path(__file__).parents[1] / "params.yaml").evaluate.guidance
    figure, panels = plt.subplots(len(SAMPLERS), len(STEPS), figsize=(1.3 * len(STEPS), 1.35 * len(SAMPLERS)))
    for row, sampler in zip(panels, SAMPLERS, strict=True):
        for panel, steps in zip(row, STEPS, strict=True):
            settings = Settings.read(model / "pipeline", sampler, steps, guidance)
            drawn = Artist(model / "pipeline", settings).draw([Request(prompt, 0)], 1)
            panel.imshow(to_image(drawn.pictures[0]))
            panel.set(xticks=[], yticks=[])
        row[0].set_ylabel(sampler, fontsize=8)
    for panel, steps in zip(panels[0], STEPS, strict=True):
        panel.set_title(f"{steps} steps", fontsize=9)
    _save(figure, "samplers")


def _save(figure: "plt.Figure", name: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(OUT / f"{name}.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, help="folder that train wrote; its evaluation lies beside it")
    options.add_argument("--prompt", default="grinning face")
    chosen = options.parse_args()
    paths()
    determinants()
    schedules()
    if chosen.model:
        loss_by_sigma(chosen.model.parent / "evaluation")
        pictures(chosen.model, chosen.prompt)


if __name__ == "__main__":
    main()
