"""The sheet and the report: complete, within bounds, self-contained and safe."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image
from tiny import make_record

from latentflow.data.records import Record
from latentflow.evaluation import gallery, report
from latentflow.evaluation.caveats import caveats, not_measured
from latentflow.evaluation.charts import Series, loss_chart
from latentflow.evaluation.dials import Cost, Dials
from latentflow.evaluation.distances import SetDistance
from latentflow.evaluation.diversity import Diversity
from latentflow.evaluation.drawing import Request
from latentflow.evaluation.exhibits import Exhibits
from latentflow.evaluation.heldout import TIMES, HeldoutLoss, SigmaLoss
from latentflow.evaluation.judge import Asked, Findings, Free, Heldout
from latentflow.evaluation.kernels import KernelDistance
from latentflow.evaluation.likeness import Likeness
from latentflow.evaluation.manifolds import Coverage
from latentflow.evaluation.memorisation import Memorisation, Nearness
from latentflow.evaluation.plan import Captions
from latentflow.evaluation.protocol import Protocol
from latentflow.evaluation.reconstruction import Reconstruction
from latentflow.evaluation.retrieval import Retrieval
from latentflow.evaluation.spaces import PIXELS8
from latentflow.html import Entry, Section
from latentflow.params import WeightsParams

HOSTILE = '<script>alert("x")</script> & "quotes"'


def sections(side: int = 32) -> list[Section]:
    pairs = (Image.new("RGB", (side, side), "red"), Image.effect_noise((side, side), 90).convert("RGB"))
    entries = [Entry(f"caption number {n}", pairs, f"rank {n}") for n in range(14)]
    return [
        Section("Free prompts", "no real picture", [Entry(HOSTILE, pairs[:1])]),
        Section("Empty", "is left out", []),
        Section("Held-out", "left: drawn, right: real", entries),
    ]


class Pictures:
    """Records and their grey pictures, as RecordSet gives them."""

    def __init__(self, table: list[Record], noise: bool = False) -> None:
        self.table = table
        self._noise = noise

    def image(self, record: Record, height: int, width: int) -> Image.Image:
        return (
            Image.effect_noise((width, height), 90).convert("RGB") if self._noise else Image.new("RGB", (width, height))
        )


TABLE = [make_record(f"{split} {n}", HOSTILE, split) for split in ("train", "test") for n in range(6)]


def findings(side: int = 8, prompts: int = 1) -> Findings:
    """Everything measured, on pictures of noise: what the page shows of each part."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, (*shape, 3, side, side), dtype=torch.uint8, generator=generator)

    def asked(split: str) -> Asked:
        records = [record for record in TABLE if record.split == split]
        captions = Captions(split, records, [1] * 6, [1.0] * 6, 2, 0)
        rank, nearest = torch.arange(1, 13).reshape(6, 2), torch.arange(12).reshape(6, 2)
        return Asked(captions, noise(6, 2), Retrieval(rank, nearest), 0.01)

    train, test = asked("train"), asked("test")
    loss = HeldoutLoss([SigmaLoss(s, 1 + s, 0.1) for s in TIMES], 1.5, 0.05, [1.5] * 90)
    ratio = torch.linspace(0.2, 0.9, 12).reshape(6, 2)
    near = Nearness(ratio, torch.arange(12).reshape(6, 2) % 6)
    free = Nearness(torch.full((prompts,), 0.1), torch.zeros(prompts, dtype=torch.long))
    distance = SetDistance(
        PIXELS8,
        12,
        80,
        1.0,
        KernelDistance(0.1, 0.02, [0.1, 0.1, 0.1]),
        Coverage(torch.ones(12, dtype=torch.bool), torch.ones(12, dtype=torch.bool)),
        [record.id for record in train.records],
        [str(n) for n in range(12)],
    )
    return Findings(
        protocol=protocol(side),
        train=train,
        test=test,
        free=Free([HOSTILE] * prompts, noise(prompts), 0),
        distances=[distance],
        diversity=Diversity({"test": {record.id: 0.5 for record in test.records}}, 2.0, None),
        memorisation=Memorisation(near, free, Nearness(torch.linspace(0.3, 1, 40), torch.zeros(40)), "pixels16"),
        heldout=Heldout(loss, [f"record {n}" for n in range(90)]),
        reconstruction=Reconstruction(test.records, noise(6), {"psnr": [20.0] * 6, "ssim": [0.8] * 6}),
        likeness=Likeness(3.5, {record.id: 25.0 for record in test.records}, 27.0, 80),
        dials=Dials([Request(HOSTILE, 0)], [1.0, 3.0], [4, 24], noise(2, 2, 1)),
        costs=[Cost(4, 0.5, 100.0), Cost(24, 3.0, 100.0)],
        seconds=0.05,
        warnings=["<b>few</b> samples"],
    )


def protocol(side: int) -> Protocol:
    return Protocol(
        version=1,
        sampler="euler",
        guidance=3,
        steps=24,
        seed=0,
        train_seeds=2,
        test_seeds=2,
        resolution=side,
        train_captions=6,
        test_captions=6,
        real_pictures=100,
        heldout_samples=90,
        distance_drawn=12,
        distance_real=80,
        reconstructed=6,
        reference_digest="ab" * 32,
        prompts_digest="cd" * 32,
        pipeline_class="PixArtAlphaPipeline",
        device="cpu",
        features=["pixels8: as ever"],
        likeness="pixels16",
        weights={"clip": "ef" * 32},
    )


SOURCE = report.Source("latentflow: evaluation", "12" * 32, f"Credit to {HOSTILE}", "Not measured: FID.")


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
    found = findings()
    return report.render(found, Exhibits(found, Pictures(TABLE)), SOURCE)


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
        "with 2 seeds each",
        "Not measured: FID.",
        "CMMD",
        "guidance 1",
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
    root = ElementTree.fromstring(loss_chart([Series("", findings().heldout.loss.by_sigma)]))
    circles = root.findall("circle")
    assert len(circles) == len(TIMES)
    heights = [float(circle.attrib["cy"]) for circle in circles]
    assert heights == sorted(heights, reverse=True)
    assert all(0 < height < 300 for height in heights)


def test_two_models_are_told_apart_in_the_chart():
    levels = findings().heldout.loss.by_sigma
    root = ElementTree.fromstring(loss_chart([Series("a <new> one", levels), Series("champion", levels)]))
    texts = [text.text for text in root.findall("text")]
    assert {"a <new> one", "champion"} <= set(texts)
    assert len(root.findall("polyline")) == 2
    assert loss_chart([Series("", [])]) == ""


def test_every_part_is_on_the_page_and_its_absence_too(page: str):
    for title in ("Guidance and steps", "Failures, worst first", "Nearest to training pictures", "Autoencoder, worst"):
        assert title in page, title
    assert page.count("suspect;") + page.count(", suspect; ") > 0
    bare = replace(findings(), heldout=None, reconstruction=None, likeness=None, dials=None)
    text = report.render(bare, Exhibits(bare, Pictures(TABLE)), SOURCE)
    for title in ("Guidance and steps", "Held-out loss", "Autoencoder", "CMMD"):
        assert title not in text, title


def test_warnings_are_for_small_sets_and_what_is_missing():
    found = caveats(findings())
    assert any("frechet_pixels8 rests on 12 drawn and 80 real" in sentence for sentence in found)
    assert any("cmmd rests on 12 pictures" in sentence for sentence in found)
    assert any("Only 6 distinct held-out captions" in sentence for sentence in found)
    near = Nearness(torch.full((6, 2), 0.01), torch.zeros(6, 2, dtype=torch.long))
    copied = replace(findings(), memorisation=replace(findings().memorisation, test=near))
    assert "the model may repeat what it was shown" in caveats(copied)[0]
    weights = WeightsParams(inception="", dinov2="x", clip="x", lpips="")
    assert not_measured(weights).startswith("Not measured, because no weights are given: FID and KID, LPIPS (")
    assert not_measured(WeightsParams(inception="x", dinov2="x", clip="x", lpips="x")) == ""


def test_large_pictures_do_not_make_a_large_report():
    found = findings(512, prompts=24)
    text = report.render(found, Exhibits(found, Pictures(TABLE, noise=True)), SOURCE)
    # Noise is the worst case: nothing compresses it.
    assert len(text.encode()) < 2_000_000
    assert text.count(";base64,") > 80


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
