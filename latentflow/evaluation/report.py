"""One HTML file with everything inside: numbers with their protocol, pictures, the loss by σ. No scripts, no links."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from latentflow.evaluation.gallery import Entry, Section
from latentflow.evaluation.heldout import HeldoutLoss
from latentflow.evaluation.judge import Findings
from latentflow.evaluation.metrics import Share

_THUMBNAIL = 96
_SMALL = 48

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f8fa; --ink: #1f2328; --faint: #59636e; --edge: #d9dee3;
  --accent: #0969da; --band: #0969da; --warn: #9a6700; --warn-paper: #fff8e5; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --faint: #9198a1;
  --edge: #30363d; --accent: #58a6ff; --band: #58a6ff; --warn: #e3b341; --warn-paper: #272115; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1190px; padding: 40px 28px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em }
h2 { font-size: 20px; margin: 52px 0 4px }
p { margin: 0 0 12px } .faint { color: var(--faint) } small { color: var(--faint); font-size: 13px }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(205px, 1fr)); gap: 14px; margin: 28px 0 8px }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 12px; padding: 16px 18px }
.card .name { font-size: 14px; color: var(--faint) }
.card .value { font-size: 30px; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums }
.card .more { font-size: 13px; color: var(--faint) }
.warning { border-left: 4px solid var(--warn); background: var(--warn-paper); padding: 10px 14px; border-radius: 4px;
  margin: 16px 0; font-size: 14px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; margin-top: 12px }
th, td { text-align: left; padding: 7px 14px 7px 0; border-bottom: 1px solid var(--edge); vertical-align: top }
th { font-weight: 600 } thead th { color: var(--faint); font-weight: 500 } td.number { white-space: nowrap }
code { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere }
.pictures { display: grid; gap: 26px 24px; margin-top: 18px }
figure { margin: 0 } figure .row { display: flex; gap: 6px }
figure img { width: 96px; height: 96px; border-radius: 4px; border: 1px solid var(--edge); background: #fff }
img.sharp { image-rendering: pixelated }
figcaption { font-size: 14px; line-height: 1.3; margin-top: 7px; overflow-wrap: anywhere }
figcaption small { display: block; margin-top: 2px }
svg { width: 100%; max-width: 760px; height: auto; display: block; margin-top: 12px }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif } svg .grid { stroke: var(--edge) }
svg .line { stroke: var(--accent); stroke-width: 2; fill: none } svg .dot { fill: var(--accent) }
svg .band { fill: var(--band); opacity: .16 }
details { margin-top: 40px } summary { cursor: pointer; color: var(--faint) }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--edge); font-size: 13px; color: var(--faint) }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="faint">{subtitle}</p>
</header>
<main>
<div class="cards">
{cards}
</div>
{warnings}
{pictures}
<h2>Held-out loss by σ</h2>
<p class="faint">{loss_note}</p>
{chart}
{failures}
<h2>Numbers</h2>
<div class="scroll">
{numbers}
</div>
<h2>Protocol</h2>
<p class="faint">Two evaluations can be compared only where these agree.</p>
<div class="scroll">
{protocol}
</div>
<details>
<summary>All metrics as they are logged</summary>
<div class="scroll">
{metrics}
</div>
</details>
</main>
<footer>{footer}</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Source:
    """Where model and pictures come from: what the report's head and foot say."""

    title: str
    model_digest: str
    credit: str


def render(findings: Findings, sections: Sequence[Section], failures: Section, source: Source) -> str:
    """The whole report as HTML text."""
    protocol = findings.protocol
    subtitle = (
        f"model {source.model_digest[:12]} · {protocol.pipeline_class} · {protocol.resolution}×{protocol.resolution} px"
        f" · {protocol.how}, seeds {', '.join(map(str, protocol.seeds))}"
    )
    loss_note = (
        f"{protocol.heldout_samples:,} samples of the test split with fixed noise; mean squared error of the "
        f"model's output; σ grows from data to noise. The band is the 95 % interval over samples."
    )
    return PAGE.format(
        title=escape(source.title),
        style=STYLE,
        subtitle=escape(subtitle),
        cards="\n".join(_cards(findings)),
        warnings="\n".join(f'<p class="warning">{escape(text)}</p>' for text in findings.warnings),
        pictures="\n".join(_pictures(section) for section in sections),
        loss_note=escape(loss_note),
        chart=chart(findings.heldout),
        failures=_pictures(failures),
        numbers=_numbers(findings),
        protocol=_protocol(findings),
        metrics=_table([(f"<code>{escape(name)}</code>", f"{value:.6g}") for name, value in findings.metrics.items()]),
        footer=escape(source.credit),
    )


def _cards(findings: Findings) -> list[str]:
    protocol, heldout = findings.protocol, findings.heldout
    train, test = findings.train.retrieval.top(5), findings.test.retrieval.top(5)
    return [
        _card("Top-5, training captions", f"{100 * train.mean:.1f} %", _interval(train)),
        _card("Top-5, held-out captions", f"{100 * test.mean:.1f} %", _interval(test)),
        _card("Held-out loss", f"{heldout.mean:.3f}", f"± {heldout.half_width:.3f}, {heldout.samples:,} samples"),
        _card("Seconds per picture", f"{findings.seconds:.2g}", f"{protocol.steps} steps on {protocol.device}"),
    ]


def _card(name: str, value: str, more: str) -> str:
    lines = (("name", name), ("value", value), ("more", more))
    inside = "".join(f'<div class="{kind}">{text}</div>' for kind, text in lines)
    return f'<div class="card">{inside}</div>'


def _interval(share: Share) -> str:
    bounds = f"{100 * share.low:.1f} to {100 * share.high:.1f} %"
    return f"{bounds}, {share.captions:,} captions, {share.pictures:,} pictures"


def _numbers(findings: Findings) -> str:
    protocol, heldout, rows = findings.protocol, findings.heldout, []
    for asked, name in ((findings.train, "training captions"), (findings.test, "held-out captions")):
        for k in (1, 5):
            share = asked.retrieval.top(k)
            rows.append((f"Top-{k}, {name}", f"{100 * share.mean:.1f} %", _interval(share)))
        median = asked.retrieval.rank.double().median().item()
        note = f"of {protocol.real_pictures:,} real pictures; guessing reaches a top-5 of {100 * asked.chance:.2g} %"
        rows.append((f"Median rank, {name}", f"{median:,.0f}", note))
    sizes = f"{protocol.distance_drawn:,} drawn and {protocol.distance_real:,} real training pictures, features pixels8"
    rows += [
        ("Fréchet distance (pixels8)", f"{findings.frechet:.4g}", f"{sizes}; not an FID"),
        ("Kernel distance (pixels8)", f"{findings.kernel:.3g}", f"unbiased, mean over the seeds; {sizes}; not a KID"),
        ("Held-out loss", f"{heldout.mean:.4f}", f"± {heldout.half_width:.4f} over {heldout.samples:,} samples"),
        ("Seconds per picture", f"{findings.seconds:.3g}", f"median batch on {protocol.device}"),
    ]
    return _table([(name, value, escape(note)) for name, value, note in rows], ("", "value", "95 % interval, sizes"))


def _protocol(findings: Findings) -> str:
    protocol = findings.protocol
    return _table(
        [
            ("Sampler", protocol.how),
            ("Seeds", escape(f"{', '.join(map(str, protocol.seeds))}; every caption is drawn with each")),
            ("Captions", f"{protocol.train_captions:,} of the training, {protocol.test_captions:,} of the test split"),
            ("Retrieval", escape(protocol.retrieval)),
            ("Features", escape(protocol.features)),
            ("Intervals", escape(protocol.intervals)),
            ("Real pictures", f"{protocol.real_pictures:,}, digest <code>{escape(protocol.reference_digest)}</code>"),
            ("Prompts and seeds", f"digest <code>{escape(protocol.prompts_digest)}</code>"),
            ("Device", escape(protocol.device)),
        ]
    )


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    """Rows of HTML cells, the first of each a heading; the caller escapes."""
    top = f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "\n".join(
        f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows
    )
    return f"<table>{top}<tbody>\n{body}\n</tbody></table>"


def _pictures(section: Section) -> str:
    if not section.entries:
        return ""
    columns = f"grid-template-columns: repeat(auto-fill, minmax({len(section.entries[0].pictures) * 102}px, 1fr))"
    figures = "\n".join(_figure(entry) for entry in section.entries)
    return (
        f'<h2>{escape(section.title)}</h2>\n<p class="faint">{escape(section.note)}</p>\n'
        f'<div class="pictures" style="{columns}">\n{figures}\n</div>'
    )


def _figure(entry: Entry) -> str:
    images = "".join(_image(picture, entry.caption) for picture in entry.pictures)
    remark = f"<small>{escape(entry.remark)}</small>" if entry.remark else ""
    return f'<figure><div class="row">{images}</div><figcaption>{escape(entry.caption)}{remark}</figcaption></figure>'


def _image(picture: Image.Image, text: str) -> str:
    """Small pictures stay as they are and are enlarged by the browser; large ones become a small JPEG."""
    data = io.BytesIO()
    if small := picture.width <= _SMALL:
        picture.save(data, "PNG", optimize=True)
    else:
        picture.resize((_THUMBNAIL * 2, _THUMBNAIL * 2), Image.Resampling.LANCZOS).save(data, "JPEG", quality=85)
    kind, look = ("png", ' class="sharp"') if small else ("jpeg", "")
    code = base64.b64encode(data.getvalue()).decode()
    return f'<img{look} alt="{escape(text)}" src="data:image/{kind};base64,{code}">'


def chart(loss: HeldoutLoss) -> str:
    """The loss by σ with its 95 % band as an inline SVG that follows the page's colours."""
    width, height, left, bottom, top, right = 760, 300, 52, 44, 14, 16
    highest = max(row.mean + row.half_width for row in loss.by_sigma)
    last = max(1.0, *(row.sigma for row in loss.by_sigma))
    tick = _nice_step(highest / 4)
    ceiling = tick * -(-highest // tick)

    def x(sigma: float) -> float:
        return left + sigma / last * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - max(value, 0) / ceiling * (height - bottom - top)

    def path(values: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in values)

    upper = [(row.sigma, row.mean + row.half_width) for row in loss.by_sigma]
    lower = [(row.sigma, row.mean - row.half_width) for row in reversed(loss.by_sigma)]
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Held-out loss by sigma">']
    for number in range(round(ceiling / tick) + 1):
        value = number * tick
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for sigma in (share * last for share in (0, 0.2, 0.4, 0.6, 0.8, 1)):
        parts.append(f'<text x="{x(sigma):.1f}" y="{height - bottom + 18}" text-anchor="middle">{sigma:g}</text>')
    middle = (left + width - right) / 2
    parts.append(f'<text x="{middle}" y="{height - 6}" text-anchor="middle">σ (0 data, 1 noise)</text>')
    parts.append(f'<polygon class="band" points="{path(upper + lower)}"/>')
    parts.append(f'<polyline class="line" points="{path([(row.sigma, row.mean) for row in loss.by_sigma])}"/>')
    for row in loss.by_sigma:
        hint = f"σ {row.sigma:g}: {row.mean:.4f} ± {row.half_width:.4f}"
        place = f'cx="{x(row.sigma):.1f}" cy="{y(row.mean):.1f}"'
        parts.append(f'<circle class="dot" {place} r="3.5"><title>{hint}</title></circle>')
    return "\n".join([*parts, "</svg>"])


def _nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below ``least``."""
    power = 1e-9
    while True:
        for factor in (1, 2, 2.5, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
