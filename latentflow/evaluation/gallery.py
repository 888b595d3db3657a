"""A sheet of pictures with their captions: drawn beside real, large enough to see, as one PNG."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from latentflow.html import Entry, Section

TILE = 96
_MARGIN, _GAP, _BETWEEN, _COLUMNS = 40, 30, 6, 6
_WIDTH = 2 * _MARGIN + _COLUMNS * (2 * TILE + _BETWEEN) + (_COLUMNS - 1) * _GAP
_LINE, _MAX_LINES = 17, 3
_PAPER, _INK, _FAINT, _EDGE = "#ffffff", "#1f2328", "#656d76", "#e3e6ea"


def enlarge(picture: Image.Image, side: int = TILE) -> Image.Image:
    """The picture at ``side`` pixels: whole multiples keep its pixels sharp, other sizes are resampled."""
    sharp = side % picture.width == 0
    return picture.resize((side, side), Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS)


def sheet(title: str, subtitle: str, sections: Sequence[Section]) -> Image.Image:
    """Draws all sections with entries below one another; RGB, a fixed width and as high as needed."""
    shown = [section for section in sections if section.entries]
    height = 2 * _MARGIN + 62 + sum(_section_height(section) for section in shown)
    image = Image.new("RGB", (_WIDTH, height), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_MARGIN, _MARGIN - 6), title, fill=_INK, font=_font(30))
    pen.text((_MARGIN, _MARGIN + 34), subtitle, fill=_FAINT, font=_font(15))
    top = _MARGIN + 62
    for section in shown:
        _draw_section(image, pen, section, top)
        top += _section_height(section)
    return image


def _draw_section(image: Image.Image, pen: ImageDraw.ImageDraw, section: Section, top: int) -> None:
    pen.line((_MARGIN, top + 10, _WIDTH - _MARGIN, top + 10), fill=_EDGE)
    pen.text((_MARGIN, top + 26), section.title, fill=_INK, font=_font(20))
    indent = _MARGIN + _font(20).getlength(section.title) + 14
    pen.text((indent, top + 31), section.note, fill=_FAINT, font=_font(14))
    top += 68
    for row in _rows(section):
        for column, entry in enumerate(row):
            _draw_entry(image, pen, entry, _MARGIN + column * (_entry_width(entry) + _GAP), top)
        top += _row_height(row)


def _draw_entry(image: Image.Image, pen: ImageDraw.ImageDraw, entry: Entry, left: int, top: int) -> None:
    for number, picture in enumerate(entry.pictures):
        x = left + number * (TILE + _BETWEEN)
        image.paste(enlarge(picture), (x, top))
        pen.rectangle((x - 1, top - 1, x + TILE, top + TILE), outline=_EDGE)
    y = top + TILE + 7
    for line in wrap(entry.caption, _entry_width(entry)):
        pen.text((left, y), line, fill=_INK, font=_font(14))
        y += _LINE
    if entry.remark:
        pen.text((left, y), entry.remark, fill=_FAINT, font=_font(12))


def _rows(section: Section) -> list[list[Entry]]:
    per_row = (_WIDTH - 2 * _MARGIN + _GAP) // (_entry_width(section.entries[0]) + _GAP)
    return [section.entries[start : start + per_row] for start in range(0, len(section.entries), per_row)]


def _entry_width(entry: Entry) -> int:
    return len(entry.pictures) * (TILE + _BETWEEN) - _BETWEEN


def _row_height(row: Sequence[Entry]) -> int:
    lines = max(len(wrap(entry.caption, _entry_width(entry))) + bool(entry.remark) for entry in row)
    return TILE + 7 + lines * _LINE + 22


def _section_height(section: Section) -> int:
    return 68 + sum(_row_height(row) for row in _rows(section))


def wrap(text: str, width: int) -> list[str]:
    """Breaks text into lines of at most ``width`` pixels, longer words by letters, at most three lines."""
    font = _font(14)
    lines = [""]
    for word in text.split():
        if font.getlength(f"{lines[-1]} {word}".strip()) <= width:
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= _MAX_LINES:
        return lines
    last = lines[_MAX_LINES - 1]
    while last and font.getlength(f"{last}…") > width:
        last = last[:-1]
    return [*lines[: _MAX_LINES - 1], f"{last.rstrip()}…"]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
