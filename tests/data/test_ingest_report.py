"""The page of ingest: complete, self-contained, small, and safe whatever captions say."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from ingest_helpers import append, encoded, ingest_inputs, make_folder, scene
from PIL import Image

from latentflow.data.histogram import bars, chart
from latentflow.steps import ingest

HOSTILE = '</title><script>alert("x")</script><img src=x onerror=alert(1)> & {braces}'


class Collector(HTMLParser):
    """Tags with a check that they close as they opened, and the text."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path / "pictures")
    for number in range(60):
        (folder / f"{number}.jpg").write_bytes(encoded(scene(number, (300 + 10 * number, 400)), "JPEG", quality=95))
        append(folder, file_name=f"{number}.jpg", text=HOSTILE)
    append(folder, file_name=HOSTILE, text="x")
    append(folder, file_name="half \ud83d", text="x")
    append(folder, file_name="empty", text="")
    for name, data in (("exact.jpg", (folder / "3.jpg").read_bytes()), ("near.png", encoded(scene(4, (340, 400))))):
        (folder / name).write_bytes(data)
        append(folder, file_name=name, text=name)
    frames = [Image.new("RGB", (16, 16), name) for name in ("red", "blue")]
    (folder / "moving.gif").write_bytes(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    append(folder, file_name="moving.gif", text="it moves")
    ingest.run(ingest_inputs(folder), tmp_path / "records")
    return (tmp_path / "records" / "report.html").read_text()


def test_the_page_is_whole_self_contained_and_small(page: str) -> None:
    parser = Collector()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    for tag, attributes in parser.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert (attributes.get("src") or "data:").startswith("data:")
        assert not {"href", "onerror"} & attributes.keys()
    assert "http" not in page
    assert len(page.encode()) < 2_000_000


def test_it_tells_counts_reasons_and_duplicates(page: str) -> None:
    parser = Collector()
    parser.feed(page)
    assert HOSTILE in parser.text
    for wanted in ("103", "2.83% of 106", "unusable id", "media cannot be read", "caption empty"):
        assert wanted in parser.text, wanted
    for wanted in ("Near duplicates", "Exact duplicates", "3.jpg and exact.jpg", "4.jpg and near.png", "bits apart"):
        assert wanted in parser.text, wanted
    assert "1 pictures have several frames or pages" in parser.text
    assert "names a licence" in parser.text
    assert [tag for tag, _ in parser.tags].count("svg") == 3


def test_bars_hold_every_value_and_are_few() -> None:
    generator = np.random.default_rng(0)
    for values in (generator.lognormal(6, 1, 5000).round(), generator.normal(0, 1e-4, 500), np.array([1.0, 2.0])):
        drawn = bars(values)
        assert sum(bar.count for bar in drawn) == len(values)
        assert len(drawn) <= 26
        assert all(bar.low < bar.high for bar in drawn)


def test_a_chart_of_one_value_is_a_line_of_text() -> None:
    assert chart("Side", "pixels", np.full(3, 72.0)) == "<div><h3>Side</h3>\n<p>72 pixels: all 3</p></div>"
