"""Values of metrics per independent unit (a caption, a record), so that two evaluations can be compared in pairs."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from latentflow.errors import LatentflowError
from latentflow.files import write_text

FILE = "units.csv"
_HEAD = ["metric", "unit", "value"]

Units = Mapping[str, Mapping[str, float]]
"""Per metric, by its name in metrics.json, the value of every unit; their mean is the metric."""


def write_units(folder: Path, units: Units) -> None:
    """Writes units.csv: metric, unit, value; a value has all its digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    writer.writerows((metric, unit, repr(value)) for metric, values in units.items() for unit, value in values.items())
    write_text(folder / FILE, text.getvalue())


def read_units(folder: Path) -> dict[str, dict[str, float]]:
    """Reads an evaluation folder's units.csv; LatentflowError names a file that is missing or something else."""
    path = folder / FILE
    if not path.is_file():
        raise LatentflowError(f"{folder} holds no {FILE}: run `latentflow evaluate` again.")
    with path.open(encoding="utf-8", newline="") as file:
        return _parse(csv.reader(file), path)


def _parse(rows: Iterable[list[str]], path: Path) -> dict[str, dict[str, float]]:
    head, *rest = list(rows) or [[]]
    if head != _HEAD:
        raise LatentflowError(f"{path} starts with {head}, not with {_HEAD}: run `latentflow evaluate` again.")
    units: dict[str, dict[str, float]] = {}
    try:
        for metric, unit, value in rest:
            units.setdefault(metric, {})[unit] = float(value)
    except ValueError as error:
        raise LatentflowError(f"{path} has a row that is no metric, unit and value ({error}).") from error
    return units
