"""The sheet and the report: complete, within bounds, self-contained and safe."""

import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from tiny import make_record

from latentflow.evaluation import gallery, report
from latentflow.evaluation.heldout import TIMES, HeldoutLoss, SigmaLoss
from latentflow.evaluation.judge import Asked, Findings, Heldout, Protocol
from latentflow.evaluation.retrieval import Retrieval
from latentflow.html import Entry, Section

HOSTILE = '<script>alert("x")</script> & "quotes"'


def sections(side: int = 32) -> list[Section]:
    pairs = (Image.new("RGB", (side, side), "red"), Image.effect_noise((side, side), 90).convert("RGB"))
    entries = [Entry(f"caption number {n}", pairs, f"rank {n}") for n in range(14)]
    return [
        Section("Free prompts", "no real picture", [Entry(HOSTILE, pairs[:1])]),
        Section("Empty", "is left out", []),
        Section("Held-out", "left: drawn, right: real", entries),
    ]


def findings() -> Findings:
    def asked(split: str) -> Asked:
        records = [make_record(str(n), HOSTILE, split) for n in range(6)]
        rank = torch.arange(1, 13).reshape(6, 2)
        return Asked(split, records, torch.zeros(6, 2, 3, 8, 8, dtype=torch.uint8), Retrieval(rank, rank), 0.01)

    loss = HeldoutLoss([SigmaLoss(s, 1 + s, 0.1) for s in TIMES], 1.5, 0.05, [1.5] * 90)
    heldout = Heldout(loss, [f"record {n}" for n in range(90)])
    protocol = Protocol(
        version=1,
        sampler="euler",
        guidance=3,
        steps=24,
        seeds=[0, 1],
        resolution=8,
        train_captions=6,
        test_captions=6,
        real_pictures=100,
        heldout_samples=90,
        distance_drawn=12,
        distance_real=80,
        reference_digest="ab" * 32,
        prompts_digest="cd" * 32,
        pipeline_class="PixArtAlphaPipeline",
        device="cpu",
    )
    free = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    return Findings(
        protocol, heldout, asked("train"), asked("test"), [HOSTILE], free, 1.0, 0.1, 0.05, ["<b>few</b> samples"]
    )


class Collector(HTMLParser):
    """Tags in order, with a check that they close as they opened."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def page() -> str:
    source = report.Source("latentflow: evaluation", "12" * 32, f"Credit to {HOSTILE}")
    return report.render(findings(), sections(), sections()[2], source)


def test_the_report_is_html_that_closes_and_needs_nothing_else(page: str):
    parser = Collector()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    for tag, attributes in parser.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert (attributes.get("src") or "data:").startswith("data:")
        assert "href" not in attributes
    assert "http" not in page
    assert "url(" not in page


def test_captions_appear_as_text_and_never_as_markup(page: str):
    assert "<script" not in page
    assert "<b>few" not in page
    parser = Collector()
    parser.feed(page)
    assert HOSTILE in " ".join(parser.text)


def test_numbers_stand_beside_their_protocol(page: str):
    for wanted in (
        "41.7 %",
        "24 steps, guidance 3",
        "seeds 0, 1",
        "pixels8",
        "ab" * 32,
        "not an FID",
        "100 real pictures",
    ):
        assert wanted in page, wanted


def test_metric_names_are_flat_and_finite():
    values = findings().metrics
    assert values["retrieval/train/top5"] == pytest.approx(5 / 12)
    assert values["retrieval/train/top5_low"] < values["retrieval/train/top5"] < values["retrieval/train/top5_high"]
    assert {"retrieval/test/top1", "frechet_pixels8", "kernel_pixels8", "heldout_loss", "seconds_per_picture"} <= set(
        values
    )
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_/.") for name in values)


def test_the_chart_is_valid_svg_within_its_frame():
    root = ElementTree.fromstring(report.chart(findings().heldout.loss))
    circles = root.findall("circle")
    assert len(circles) == len(TIMES)
    heights = [float(circle.attrib["cy"]) for circle in circles]
    assert heights == sorted(heights, reverse=True)
    assert all(0 < height < 300 for height in heights)


def test_large_pictures_do_not_make_a_large_report():
    noise = Image.effect_noise((512, 512), 90).convert("RGB")
    many = Section("Many", "", [Entry("noise", (noise, noise)) for _ in range(40)])
    page = report.render(findings(), [many], many, report.Source("t", "0", ""))
    assert len(page.encode()) < 4_000_000  # Noise is the worst case: 160 pictures.
    assert page.count(";base64,") == 160


def test_the_sheet_holds_every_picture_enlarged_and_sharp():
    sheet = gallery.sheet("Title", "subtitle", sections())
    assert sheet.mode == "RGB"
    colours = sheet.getcolors(sheet.width * sheet.height)
    assert colours is not None
    red = sum(count for count, colour in colours if colour == (255, 0, 0))
    assert red == 15 * gallery.TILE**2


@pytest.mark.parametrize(
    "text", ["red heart", "a" * 200, "several rather long words in a caption " * 6, "", "日本 flag"]
)
def test_captions_are_wrapped_into_their_width(text: str):
    lines = gallery.wrap(text, 198)
    assert 1 <= len(lines) <= 3
    assert all(gallery._font(14).getlength(line) <= 198 for line in lines)
    if text == "red heart":
        assert lines == ["red heart"]
    if len(text) > 150:
        assert lines[-1].endswith("…")
