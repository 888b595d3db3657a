"""The parts of a page that needs nothing else: style, cards, tables, pictures. No scripts, no links."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

_THUMBNAIL = 160
_SMALL = 48

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f8fa; --ink: #1f2328; --faint: #59636e; --edge: #d9dee3;
  --accent: #0969da; --band: #0969da; --other: #bc4c00; --warn: #9a6700; --warn-paper: #fff8e5; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --card: #161b22; --ink: #e6edf3; --faint: #9198a1;
  --edge: #30363d; --accent: #58a6ff; --band: #58a6ff; --other: #f0883e; --warn: #e3b341; --warn-paper: #272115; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1190px; padding: 40px 28px 64px; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em }
h2 { font-size: 20px; margin: 52px 0 4px }
p { margin: 0 0 12px } .faint { color: var(--faint) } small { color: var(--faint); font-size: 13px }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 14px; margin: 28px 0 8px }
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
figure img { width: 96px; height: 96px }
.matrix { width: auto } .matrix th, .matrix td { border: 0; padding: 4px 12px 4px 0; vertical-align: middle }
.matrix div { display: flex; gap: 4px; padding: 4px; border: 2px solid transparent; border-radius: 8px }
.matrix .marked { border-color: var(--accent) } .matrix img { width: 64px; height: 64px }
img { border-radius: 4px; border: 1px solid var(--edge); background: #fff } img.sharp { image-rendering: pixelated }
figcaption { font-size: 14px; line-height: 1.3; margin-top: 7px; overflow-wrap: anywhere }
figcaption small { display: block; margin-top: 2px }
svg { width: 100%; max-width: 760px; height: auto; display: block; margin-top: 12px }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif } svg .grid { stroke: var(--edge) }
svg .line { stroke: var(--accent); stroke-width: 2; fill: none } svg .dot { fill: var(--accent) }
svg .other { --accent: var(--other); --band: var(--other) }
svg .band { fill: var(--band); opacity: .16 } svg .bar { fill: var(--accent); opacity: .8 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 8px 32px }
.charts h3 { font-size: 15px; font-weight: 600; margin: 18px 0 0 }
details { margin-top: 40px } summary { cursor: pointer; color: var(--faint) }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--edge); font-size: 13px; color: var(--faint) }
"""

_PAGE = """<!DOCTYPE html>
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
{main}
</main>
<footer>{footer}</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Entry:
    """Pictures side by side under one caption, with a fainter remark beneath."""

    caption: str
    pictures: tuple[Image.Image, ...]
    remark: str = ""


@dataclass(frozen=True)
class Section:
    """A row or more of entries under a heading and a line that says how to read them."""

    title: str
    note: str
    entries: list[Entry]


def page(title: str, subtitle: str, parts: Sequence[str], footer: str) -> str:
    """The whole page; ``parts`` are HTML, the rest is text. Empty parts are left out."""
    main = "\n".join(part for part in parts if part)
    return _PAGE.format(title=escape(title), style=_STYLE, subtitle=escape(subtitle), main=main, footer=escape(footer))


def heading(title: str, note: str = "") -> str:
    """A heading, and a line that says how to read what follows; both text."""
    return f"<h2>{escape(title)}</h2>" + (f'\n<p class="faint">{escape(note)}</p>' if note else "")


def cards(rows: Sequence[tuple[str, str, str]]) -> str:
    """Large numbers side by side: name, value and a smaller line, all text."""
    return '<div class="cards">\n' + "\n".join(_card(*row) for row in rows) + "\n</div>"


def _card(name: str, value: str, more: str) -> str:
    lines = (("name", name), ("value", value), ("more", more))
    inside = "".join(f'<div class="{kind}">{escape(text)}</div>' for kind, text in lines)
    return f'<div class="card">{inside}</div>'


def warnings(texts: Sequence[str]) -> str:
    """One marked paragraph per text."""
    return "\n".join(f'<p class="warning">{escape(text)}</p>' for text in texts)


def table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> str:
    """Rows of HTML cells, the first of each a heading; the caller escapes. Scrolls where it is too wide."""
    top = f"<thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>" if head else ""
    body = "\n".join(
        f"<tr><th>{first}</th>{''.join(f'<td>{cell}</td>' for cell in rest)}</tr>" for first, *rest in rows
    )
    return f'<div class="scroll">\n<table>{top}<tbody>\n{body}\n</tbody></table>\n</div>'


def pictures(section: Section) -> str:
    """A section's entries below its heading; nothing for one without entries."""
    if not section.entries:
        return ""
    columns = f"grid-template-columns: repeat(auto-fill, minmax({len(section.entries[0].pictures) * 102}px, 1fr))"
    figures = "\n".join(_figure(entry) for entry in section.entries)
    return f'{heading(section.title, section.note)}\n<div class="pictures" style="{columns}">\n{figures}\n</div>'


def _figure(entry: Entry) -> str:
    images = "".join(_image(picture, entry.caption) for picture in entry.pictures)
    remark = f"<small>{escape(entry.remark)}</small>" if entry.remark else ""
    return f'<figure><div class="row">{images}</div><figcaption>{escape(entry.caption)}{remark}</figcaption></figure>'


def _image(picture: Image.Image, text: str) -> str:
    """Small pictures stay as they are and are enlarged by the browser; large ones become a small WebP."""
    data = io.BytesIO()
    if small := picture.width <= _SMALL:
        picture.save(data, "PNG", optimize=True)
    else:
        picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS).save(data, "WEBP", quality=75)
    kind, look = ("png", ' class="sharp"') if small else ("webp", "")
    code = base64.b64encode(data.getvalue()).decode()
    return f'<img{look} alt="{escape(text)}" src="data:image/{kind};base64,{code}">'


@dataclass(frozen=True)
class Cell:
    """Pictures side by side in a cell of a matrix; a marked one is framed."""

    pictures: tuple[Image.Image, ...]
    marked: bool = False


def matrix(head: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """A table of pictures: the columns' names, then rows with a name and a cell per column; names are text."""
    top = "".join(f"<th>{escape(name)}</th>" for name in ("", *head))
    body = "\n".join(f"<tr><th>{escape(name)}</th>{''.join(map(_cell, cells))}</tr>" for name, cells in rows)
    table = f'<table class="matrix"><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<div class="scroll">\n{table}\n</div>'


def _cell(cell: Cell) -> str:
    frame = ' class="marked"' if cell.marked else ""
    return f"<td><div{frame}>{''.join(_image(picture, '') for picture in cell.pictures)}</div></td>"


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below ``least``."""
    power = 1e-9
    while True:
        for factor in (1, 2, 2.5, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
