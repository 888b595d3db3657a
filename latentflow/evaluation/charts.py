"""The held-out loss by σ as an inline SVG that follows the page's colours: one model, or two to compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from latentflow import html
from latentflow.evaluation.heldout import SigmaLoss

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP, _RIGHT = 760, 300, 52, 44, 14, 16
_STYLES = ("", " other")


@dataclass(frozen=True)
class Series:
    """One model's losses under a name; of two, the second is drawn in the other colour."""

    name: str
    levels: Sequence[SigmaLoss]


def loss_chart(series: Sequence[Series]) -> str:
    """The means with their 95 % bands; "" where nothing was measured. With two series each is named."""
    shown = [one for one in series if one.levels]
    if not shown:
        return ""
    frame = _Frame.around([level for one in shown for level in one.levels])
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Held-out loss by sigma">', *frame.axes()]
    for one, style in zip(shown, _STYLES, strict=False):
        parts += _curve(frame, one, style)
    if len(series) > 1:
        parts += _legend(shown)
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Frame:
    """What σ and loss the axes reach to, and the distance of the horizontal lines."""

    last: float
    ceiling: float
    tick: float

    @classmethod
    def around(cls, levels: Sequence[SigmaLoss]) -> "_Frame":
        highest = max(level.mean + level.half_width for level in levels)
        tick = html.nice_step(highest / 4)
        return cls(max(1.0, *(level.sigma for level in levels)), tick * -(-highest // tick), tick)

    def x(self, sigma: float) -> float:
        return _LEFT + sigma / self.last * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - max(value, 0) / self.ceiling * (_HEIGHT - _BOTTOM - _TOP)

    def path(self, values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(sigma):.1f},{self.y(value):.1f}" for sigma, value in values)

    def axes(self) -> list[str]:
        parts = []
        for number in range(round(self.ceiling / self.tick) + 1):
            value = number * self.tick
            place = f'y1="{self.y(value):.1f}" y2="{self.y(value):.1f}"'
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" {place}/>')
            parts.append(f'<text x="{_LEFT - 8}" y="{self.y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
        for sigma in (share * self.last for share in (0, 0.2, 0.4, 0.6, 0.8, 1)):
            place = f'x="{self.x(sigma):.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
            parts.append(f'<text {place} text-anchor="middle">{sigma:g}</text>')
        middle = (_LEFT + _WIDTH - _RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">σ (0 data, 1 noise)</text>')
        return parts


def _curve(frame: _Frame, series: Series, style: str) -> list[str]:
    levels = series.levels
    upper = [(level.sigma, level.mean + level.half_width) for level in levels]
    lower = [(level.sigma, level.mean - level.half_width) for level in reversed(levels)]
    parts = [
        f'<polygon class="band{style}" points="{frame.path(upper + lower)}"/>',
        f'<polyline class="line{style}" points="{frame.path([(level.sigma, level.mean) for level in levels])}"/>',
    ]
    for level in levels:
        hint = escape(f"{series.name} σ {level.sigma:g}: {level.mean:.4f} ± {level.half_width:.4f}".strip())
        place = f'cx="{frame.x(level.sigma):.1f}" cy="{frame.y(level.mean):.1f}"'
        parts.append(f'<circle class="dot{style}" {place} r="3.5"><title>{hint}</title></circle>')
    return parts


def _legend(series: Sequence[Series]) -> list[str]:
    parts = []
    for number, (one, style) in enumerate(zip(series, _STYLES, strict=False)):
        y = _TOP + 14 + 20 * number
        parts.append(f'<circle class="dot{style}" cx="{_WIDTH - 190}" cy="{y - 4}" r="5"/>')
        parts.append(f'<text x="{_WIDTH - 178}" y="{y}">{escape(one.name)}</text>')
    return parts
