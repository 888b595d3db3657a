"""A line chart as an inline SVG that takes the page's colours; no script, no file."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from latentflow.html import nice_step

WIDTH, HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 44
_TICKS = 5
MOST = 400
"""More points than this cannot be told apart at the chart's width."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order, with a name for the legend; ``half_widths`` draw a band, one per point."""

    name: str
    points: Sequence[tuple[float, float]]
    half_widths: Sequence[float] = ()


def line_chart(lines: Sequence[Line], x_label: str, label: str) -> str:
    """The lines over common axes that begin at 0 below positive values; "" where there is nothing to draw.

    The first line and its band have the page's accent, further ones are fainter. ``label`` says what it shows.
    """
    lines = [_thinned(line) for line in lines if line.points]
    if not lines:
        return ""
    frame = _Frame.around(lines)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">', *frame.axes(x_label)]
    parts += [frame.drawn(line, first=number == 0) for number, line in enumerate(lines)]
    return "\n".join([*parts, "</svg>"])


def _thinned(line: Line) -> Line:
    every = -(-len(line.points) // MOST)
    if every == 1:
        return line
    # The last point is what the line ends with: it stays.
    kept = sorted({*range(0, len(line.points), every), len(line.points) - 1})
    return Line(line.name, [line.points[i] for i in kept], [line.half_widths[i] for i in kept if line.half_widths])


@dataclass(frozen=True)
class _Frame:
    """The axes: from ``low`` to ``high`` and from ``bottom`` to ``top``, a line per ``tick``."""

    low: float
    high: float
    bottom: float
    top: float
    tick: float

    @classmethod
    def around(cls, lines: Sequence[Line]) -> "_Frame":
        xs = [x for line in lines for x, _ in line.points]
        highest = max(y + h for line in lines for (_, y), h in _with_widths(line))
        lowest = min(0.0, *(y - h for line in lines for (_, y), h in _with_widths(line)))
        tick = nice_step(max(highest - lowest, 1e-9) / 4)
        low, high, bottom = min(xs), max(xs), tick * (lowest // tick)
        # One point, or values that are all 0, still need axes.
        top = max(tick * -(-highest // tick), bottom + tick)
        return cls(low, high if high > low else low + 1, bottom, top, tick)

    def x(self, value: float) -> float:
        return _LEFT + (value - self.low) / (self.high - self.low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.bottom) / (self.top - self.bottom)
        return HEIGHT - _BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - _BOTTOM - _TOP)

    def axes(self, x_label: str) -> list[str]:
        parts = []
        for number in range(round((self.top - self.bottom) / self.tick) + 1):
            value = self.bottom + number * self.tick
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        for number in range(_TICKS + 1):
            value = self.low + (self.high - self.low) * number / _TICKS
            place = f'x="{self.x(value):.1f}" y="{HEIGHT - _BOTTOM + 18}"'
            parts.append(f'<text {place} text-anchor="middle">{value:.4g}</text>')
        middle = (_LEFT + WIDTH - _RIGHT) / 2
        return [*parts, f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>']

    def drawn(self, line: Line, first: bool) -> str:
        look = "" if first else ' style="opacity:.45"'
        parts = []
        if line.half_widths:
            upper = [(x, y + h) for (x, y), h in _with_widths(line)]
            lower = [(x, y - h) for (x, y), h in reversed(_with_widths(line))]
            parts.append(f'<polygon class="band"{look} points="{self._path([*upper, *lower])}"/>')
        title = f"<title>{escape(line.name)}</title>"
        parts.append(f'<polyline class="line"{look} points="{self._path(line.points)}">{title}</polyline>')
        return "\n".join(parts)

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def _with_widths(line: Line) -> list[tuple[tuple[float, float], float]]:
    return list(zip(line.points, line.half_widths or [0.0] * len(line.points), strict=True))
