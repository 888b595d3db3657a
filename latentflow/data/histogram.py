"""How often which values occur, as an inline SVG that follows the page's colours."""

from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from latentflow.html import nice_step

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 360, 190, 10, 42, 22
_BINS = 24


@dataclass(frozen=True)
class Bar:
    """Values from ``low`` to below ``high`` and how many there are."""

    low: float
    high: float
    count: int


def bars(values: NDArray[np.float64]) -> list[Bar]:
    """At most 26 bars of equal, round width; the outermost 1 % at each end lies in the end bars."""
    low, high = np.quantile(values, (0.01, 0.99))
    step = nice_step(max(high - low, abs(high) * 1e-3) / _BINS)
    if np.all(values == np.round(values)):
        step = max(1.0, np.ceil(step))
    edges = np.arange(np.floor(low / step), np.floor(high / step) + 2) * step
    counts, _ = np.histogram(values.clip(edges[0], np.nextafter(edges[-1], -np.inf)), edges)
    return [Bar(*row) for row in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)]


def chart(title: str, unit: str, values: NDArray[np.float64]) -> str:
    """A titled histogram of at least one value; every bar says its range and count when pointed at."""
    if values.min() == values.max():
        return f"<div><h3>{escape(title)}</h3>\n<p>{values[0]:g} {escape(unit)}: all {len(values):,}</p></div>"
    drawn = bars(values)
    highest = max(bar.count for bar in drawn)
    width = (_WIDTH - 2 * _LEFT) / len(drawn)
    floor = _HEIGHT - _BOTTOM
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for number, bar in enumerate(drawn):
        height = bar.count / highest * (floor - _TOP)
        place = f'x="{_LEFT + number * width:.1f}" y="{floor - height:.1f}" width="{max(width - 1, 1):.1f}"'
        hint = f"{bar.low:g} to below {bar.high:g}: {bar.count:,}"
        parts.append(f'<rect class="bar" {place} height="{height:.1f}"><title>{hint}</title></rect>')
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _LEFT}" y1="{floor}" y2="{floor}"/>')
    for value, x, anchor in ((drawn[0].low, _LEFT, "start"), (drawn[-1].high, _WIDTH - _LEFT, "end")):
        parts.append(f'<text x="{x}" y="{floor + 16}" text-anchor="{anchor}">{value:g}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(unit)}</text>')
    parts.append(f'<text x="{_LEFT}" y="{_TOP - 8}">{highest:,} at most in a bar</text></svg>')
    return f"<div><h3>{escape(title)}</h3>\n" + "\n".join(parts) + "</div>"
