"""Two evaluations of one protocol side by side: what is paired by unit, drawn with one seed, and seen at every σ."""

import csv
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow import html
from latentflow.errors import LatentflowError
from latentflow.evaluation.directions import direction
from latentflow.evaluation.pairs import Paired, paired
from latentflow.evaluation.protocol import OWN
from latentflow.evaluation.units import read_units

if TYPE_CHECKING:
    from torch import Tensor

    from latentflow.evaluation.heldout import SigmaLoss

METRICS, PROTOCOL, LOSSES = "metrics.json", "protocol.json", "plots/heldout_loss_by_sigma.csv"
PICTURES, PICTURES_LIST = "gallery.safetensors", "gallery.json"
_SHOWN = 48


@dataclass(frozen=True)
class Row:
    """One metric of both; ``pairs`` compares them unit by unit, None where the metric has no units.

    ``direction``: 1 where higher is better, -1 where lower is, 0 where neither.
    """

    metric: str
    candidate: float
    champion: float
    direction: int
    pairs: Paired | None

    @property
    def difference(self) -> float:
        """Candidate minus champion, where units exist the mean over them."""
        return self.candidate - self.champion if self.pairs is None else self.pairs.difference

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval lies on one side of 0, else ``equal``; "" where none is told."""
        if not self.direction or self.pairs is None:
            return ""
        if self.pairs.low <= 0 <= self.pairs.high:
            return "equal"
        return "better" if self.direction * self.pairs.low > 0 else "worse"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder's numbers."""

    folder: Path
    metrics: dict[str, float]
    protocol: dict[str, Any]
    units: dict[str, dict[str, float]]

    @classmethod
    def read(cls, folder: Path) -> "Evaluation":
        """Raises LatentflowError where a file is missing or of an older release."""
        try:
            metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
            protocol = json.loads((folder / PROTOCOL).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LatentflowError(f"{folder} is not what `latentflow evaluate` writes ({error}).") from error
        if "comparison" not in protocol:
            raise LatentflowError(f"{folder} was written by an older release: run `latentflow evaluate` again.")
        return cls(folder, metrics, protocol, read_units(folder))

    @property
    def how(self) -> str:
        """The sampler and its dials."""
        return f"{self.protocol['sampler']}, {self.protocol['steps']} steps, guidance {self.protocol['guidance']:g}"


@dataclass(frozen=True)
class Comparison:
    """Both evaluations, and a row for every metric that both have, in the candidate's order."""

    candidate: Evaluation
    champion: Evaluation
    rows: tuple[Row, ...]

    @property
    def only_one_has(self) -> list[str]:
        """Metrics that the other lacks, such as the held-out loss of a model with another VAE."""
        return sorted(self.candidate.metrics.keys() ^ self.champion.metrics.keys())


def compare(candidate: Path, champion: Path) -> Comparison:
    """Reads two evaluation folders. Raises LatentflowError naming what differs where the protocols do not agree."""
    first, second = Evaluation.read(candidate), Evaluation.read(champion)
    if first.protocol["comparison"] != second.protocol["comparison"]:
        raise LatentflowError(
            f"{candidate} and {champion} cannot be compared: they differ in {_differences(first, second)}. Judge both "
            "with the same parameters on the same records."
        )
    rows = tuple(_row(name, first, second) for name in first.metrics if name in second.metrics)
    return Comparison(first, second, rows)


def _differences(first: Evaluation, second: Evaluation) -> str:
    """The protocol's fields that must agree and do not."""
    names = [name for name in first.protocol if name not in OWN and name != "comparison"]
    return ", ".join(name for name in names if first.protocol[name] != second.protocol.get(name))


def _row(name: str, first: Evaluation, second: Evaluation) -> Row:
    pairs = paired(name, first.units.get(name, {}), second.units.get(name, {}))
    return Row(name, first.metrics[name], second.metrics[name], direction(name), pairs)


def page(candidate: Path, champion: Path) -> str:
    """One self-contained HTML page of two evaluation folders."""
    comparison = compare(candidate, champion)
    first, second = comparison.candidate, comparison.champion
    subtitle = f"candidate: {first.how} · champion: {second.how} · {first.protocol['resolution']} px"
    note = "The same prompts and seeds: candidate on the left, champion on the right."
    missing = ", ".join(comparison.only_one_has)
    parts = [
        html.warnings([f"Only one of the two has: {missing}."] if missing else []),
        html.cards(_cards(comparison)),
        html.pictures(html.Section("Same prompt, same seed", note, _pairs(first.folder, second.folder))),
        _loss(first.folder, second.folder),
        html.heading("Numbers", "The interval is that of the paired difference over the same captions or records."),
        _table(comparison),
    ]
    credit = f"Reference {first.protocol['reference_digest']}. Written by latentflow."
    return html.page("latentflow: candidate and champion", subtitle, parts, credit)


_CARDS = {
    "retrieval/test/top5": "Top-5, held-out captions",
    "retrieval/train/top5": "Top-5, training captions",
    "kernel_pixels8": "Kernel distance, pixels8",
    "heldout_loss": "Held-out loss",
}


def _cards(comparison: Comparison) -> list[tuple[str, str, str]]:
    rows = {row.metric: row for row in comparison.rows}
    return [
        (name, f"{rows[metric].difference:+.3g}", f"{_interval(rows[metric])}{_word(rows[metric])}")
        for metric, name in _CARDS.items()
        if metric in rows
    ]


def _interval(row: Row) -> str:
    return "" if row.pairs is None else f"{row.pairs.low:+.2g} to {row.pairs.high:+.2g}"


def _word(row: Row) -> str:
    return {"better": ", better", "worse": ", worse", "equal": ", within the noise", "": ""}[row.verdict]


def _table(comparison: Comparison) -> str:
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    rows = [
        (
            f"<code>{escape(row.metric)}</code>{arrows[row.direction]}",
            f"{row.candidate:.4g}",
            f"{row.champion:.4g}",
            f"{row.difference:+.3g}",
            f"{_interval(row)} ({row.pairs.units:,})" if row.pairs is not None else "",
            row.verdict,
        )
        for row in comparison.rows
        if row.direction
    ]
    return html.table(rows, ("", "candidate", "champion", "difference", "95 % (units)", ""))


def _pairs(candidate: Path, champion: Path) -> list[html.Entry]:
    """Pictures of the prompts and seeds that both drew, in the candidate's order."""
    from latentflow.pictures import to_image

    first, second = _drawn(candidate), _drawn(champion)
    shown = [asked for asked in first if asked in second][:_SHOWN]
    return [
        html.Entry(prompt, (to_image(first[prompt, seed]), to_image(second[prompt, seed])), f"seed {seed}")
        for prompt, seed in shown
    ]


def _drawn(folder: Path) -> "dict[tuple[str, int], Tensor]":
    from safetensors.torch import load_file

    asked = json.loads((folder / PICTURES_LIST).read_text(encoding="utf-8"))
    pictures = load_file(folder / PICTURES)["pictures"]
    return {(one["prompt"], one["seed"]): picture for one, picture in zip(asked, pictures, strict=True)}


def _loss(candidate: Path, champion: Path) -> str:
    from latentflow.evaluation.charts import Series, loss_chart

    chart = loss_chart([Series("candidate", _levels(candidate)), Series("champion", _levels(champion))])
    note = "The bands are the 95 % intervals over samples; the samples are the same, so the difference is surer."
    return f"{html.heading('Held-out loss by σ', note)}\n{chart}" if chart else ""


def _levels(folder: Path) -> "list[SigmaLoss]":
    from latentflow.evaluation.heldout import SigmaLoss

    with (folder / LOSSES).open(encoding="utf-8", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [SigmaLoss(row["sigma"], row["loss"], row["high"] - row["loss"]) for row in rows]
