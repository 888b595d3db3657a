"""What a training leaves for a person: one page with loss curves, the held-out loss and the sample grids."""

import base64
import csv
import io
import json
import math
from html import escape
from pathlib import Path

from PIL import Image

from latentflow import html
from latentflow.charts import Line, line_chart
from latentflow.manifest import ModelManifest

MOST_GRIDS = 6
_GRID_WIDTH = 1080


def render(folder: Path) -> str:
    """The page of a model folder: its plots/*.csv, metrics.json, samples/*.png and manifest. Inline, below 2 MB."""
    manifest = ModelManifest.read(folder)
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    curves = {path.stem: _columns(path) for path in sorted((folder / "plots").glob("*.csv"))}
    return html.page(
        "latentflow: training",
        f"{manifest.pipeline_class} · {manifest.resolution} px · model digest {manifest.digest[:12]}",
        [
            html.cards([(name.replace("_", " "), f"{value:.6g}", "") for name, value in figures.items()]),
            _charts(curves),
            *_grids(sorted((folder / "samples").glob("*.png"))),
        ],
        "Written by latentflow.",
    )


def _charts(curves: dict[str, dict[str, list[float]]]) -> str:
    train, held_out, by_sigma = curves["train"], curves["validation"], curves["validation_by_sigma"]
    noise = "Of the averaged weights, with the same noise at each point; band: 95 %."
    shown = [
        ("Training loss", "Mean over the steps between two points.", "step", _line(train, "step", "loss")),
        ("Held-out loss", noise, "step", _line(held_out, "step", "loss", "half_width")),
        ("Held-out loss by σ", "At the end; 0 is data, 1 noise.", "σ", _line(by_sigma, "sigma", "loss", "half_width")),
        ("Gradient norm", "Before clipping.", "step", _line(train, "step", "gradient_norm")),
        ("Learning rate", "At that step.", "step", _line(train, "step", "learning_rate")),
    ]
    charts = [
        f"<div><h3>{escape(t)}</h3><small>{escape(n)}</small>{line_chart([c], x, t)}</div>" for t, n, x, c in shown
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _line(columns: dict[str, list[float]], x: str, y: str, width: str = "") -> Line:
    finite = [row for row, value in enumerate(columns[y]) if math.isfinite(value)]
    points = [(columns[x][row], columns[y][row]) for row in finite]
    return Line(y, points, [columns[width][row] for row in finite] if width else [])


def _columns(path: Path) -> dict[str, list[float]]:
    with path.open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return {name: [float(row[place]) for row in rows] for place, name in enumerate(head)}


def _grids(paths: list[Path]) -> list[str]:
    """The same captions and noise by step; of many grids an even choice with the last one."""
    if not paths:
        return []
    chosen = {paths[round(place * (len(paths) - 1) / max(MOST_GRIDS - 1, 1))] for place in range(MOST_GRIDS)}
    note = "The fixed captions, from the same noise, as the averaged weights learn."
    return [html.heading("Samples by step", note), *(_grid(path) for path in sorted(chosen, reverse=True))]


def _grid(path: Path) -> str:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((_GRID_WIDTH, _GRID_WIDTH))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=82)
    code = base64.b64encode(data.getvalue()).decode()
    step = int(path.stem.rpartition("-")[2])
    look, caption = "width:100%;max-width:720px;height:auto", f"step {step:,}"
    image = f'<img style="{look}" alt="samples at {caption}" src="data:image/jpeg;base64,{code}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
