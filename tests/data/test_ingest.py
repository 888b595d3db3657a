"""ingest: what is usable becomes records, what is not is refused with a reason, and nothing else is lost."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from latentflow.data.records import RecordSet, split_of, spread
from latentflow.errors import LatentflowError
from latentflow.params import IngestInputs
from latentflow.steps import ingest


def inputs(source: Path | str, **changes: object) -> IngestInputs:
    fields = {
        "source": str(source),
        "revision": "",
        "path": "",
        "subset": "",
        "hub_split": "train",
        "media_column": "",
        "caption_column": "",
        "condition_columns": [],
        "limit": 0,
        "validation_fraction": 0.2,
        "test_fraction": 0.2,
        "max_bad_fraction": 0.5,
        "min_side": 4,
    }
    return IngestInputs.model_validate({"ingest": fields | changes})


def picture(color: tuple[int, ...] = (255, 0, 0), size: tuple[int, int] = (20, 10), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def noisy() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((20, 20), 50).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty good pictures with metadata.jsonl; tests append bad rows."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "pictures"
    root.mkdir()
    with (root / "metadata.jsonl").open("w") as file:
        for number in range(40):
            name = f"{number:02d}.png"
            (root / name).write_bytes(picture((number, 0, 0)))
            file.write(json.dumps({"file_name": name, "text": f"picture {number}"}) + "\n")
    return root


def append(root: Path, **row: object) -> None:
    with (root / "metadata.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_records_read_back_as_they_were(folder: Path, tmp_path: Path) -> None:
    manifest = ingest.run(inputs(folder), tmp_path / "records")
    records = RecordSet.open(tmp_path / "records")
    assert sum(manifest.counts.values()) == len(records.table) == 40
    assert [record.id for record in records.table] == sorted(record.id for record in records.table)
    for record in records.table:
        assert record.caption == f"picture {int(record.id[:2])}"
        assert records.image(record, 8).getpixel((0, 0)) == (int(record.id[:2]), 0, 0)
    pixels = records.pixels(records.table[:3], 8)
    assert pixels.shape == (3, 3, 8, 8)
    assert pixels.min() == -1


def test_the_same_data_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first, second = ingest.run(inputs(folder), tmp_path / "a"), ingest.run(inputs(folder), tmp_path / "b")
    assert first == second
    for name in ("media.tar", "records.parquet", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("row", "content", "reason"),
    [
        ({"file_name": "gone.png", "text": "x"}, None, "does not exist"),
        ({"file_name": "bad.png", "text": "x"}, b"not a picture", "no format that Pillow reads"),
        ({"file_name": "bad.png", "text": "x"}, noisy()[:300], "cannot be decoded"),
        ({"file_name": "bad.png", "text": "x"}, b"", "no bytes"),
        ({"file_name": "bad.png", "text": "x"}, picture(size=(20, 3)), "below ingest.min_side 4"),
        ({"file_name": "bad.png", "text": "  "}, picture(), "caption is empty"),
        ({"file_name": "bad.png", "text": None}, picture(), "not text but NoneType"),
        ({"file_name": "bad.png", "text": 3.5}, picture(), "not text but float"),
        ({"file_name": "../secret.png", "text": "x"}, None, "leaves the folder"),
        ({"file_name": "/etc/passwd", "text": "x"}, None, "leaves the folder"),
        ({"file_name": "bad.png", "text": "\ud83d"}, picture(), "not valid Unicode"),
        ({"file_name": "00.png", "text": "again"}, None, "the first one is kept"),
    ],
)
def test_a_bad_row_is_refused_with_a_reason(
    folder: Path, tmp_path: Path, row: dict[str, object], content: bytes | None, reason: str
) -> None:
    if content is not None:
        (folder / "bad.png").write_bytes(content)
    append(folder, **row)
    manifest = ingest.run(inputs(folder), tmp_path / "records")
    assert manifest.quarantined == 1
    assert sum(manifest.counts.values()) == 40
    (line,) = (tmp_path / "records" / "quarantine.jsonl").read_text().splitlines()
    assert reason in json.loads(line)["reason"]


def test_too_many_bad_rows_stop_the_step_and_keep_the_list(folder: Path, tmp_path: Path) -> None:
    for number in range(10):
        append(folder, file_name=f"gone-{number}.png", text="x")
    with pytest.raises(LatentflowError, match="10 of 50 records were refused, above"):
        ingest.run(inputs(folder, max_bad_fraction=0.1), tmp_path / "records")
    assert not (tmp_path / "records").exists()
    assert len((tmp_path / ".latentflow" / "quarantine.jsonl").read_text().splitlines()) == 10


def test_a_wrong_column_is_named(folder: Path, tmp_path: Path) -> None:
    append(folder, file="a.png", text="x")
    with pytest.raises(LatentflowError, match=r"row 41: no column file_name \(found file, text\)"):
        ingest.run(inputs(folder), tmp_path / "records")


def test_csv_with_a_byte_order_mark(folder: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").unlink()
    with (folder / "metadata.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
    assert sum(ingest.run(inputs(folder), tmp_path / "records").counts.values()) == 40


def test_alpha_lies_on_white(folder: Path, tmp_path: Path) -> None:
    (folder / "clear.png").write_bytes(picture((0, 0, 0, 0), mode="RGBA"))
    append(folder, file_name="clear.png", text="nothing")
    ingest.run(inputs(folder), tmp_path / "records")
    records = RecordSet.open(tmp_path / "records")
    (record,) = [record for record in records.table if record.id == "clear.png"]
    assert records.image(record, 8).getpixel((4, 4)) == (255, 255, 255)


def test_changed_media_are_noticed(folder: Path, tmp_path: Path) -> None:
    ingest.run(inputs(folder), tmp_path / "records")
    media = tmp_path / "records" / "media.tar"
    media.write_bytes(media.read_bytes().replace(b"IDAT", b"IDAX"))
    records = RecordSet.open(tmp_path / "records")
    with pytest.raises(LatentflowError, match="changed; run ingest again"):
        records.image(records.table[0], 8)


def test_new_records_move_nothing_between_splits() -> None:
    before = {f"{n}.png": split_of(f"{n}.png", 0.1, 0.1) for n in range(2000)}
    shares = {split: list(before.values()).count(split) / 2000 for split in ("train", "validation", "test")}
    assert shares["validation"] == pytest.approx(0.1, abs=0.02)
    assert shares["test"] == pytest.approx(0.1, abs=0.02)


def test_emoji_are_the_pinned_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = ingest.run(inputs("emoji", limit=100), tmp_path / "records")
    assert sum(manifest.counts.values()) == 100
    records = RecordSet.open(tmp_path / "records").table
    assert len(spread(records, 10)) == 10
    assert all(record.width == record.height == 72 for record in records)


def test_an_unknown_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match="neither `emoji` nor a folder"):
        ingest.run(inputs(tmp_path / "nowhere"), tmp_path / "records")


def test_a_file_that_is_not_utf8_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_bytes("file_name,text\n00.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(LatentflowError, match=r"metadata\.csv is not UTF-8"):
        ingest.run(inputs(folder), tmp_path / "records")


def test_a_good_row_after_a_refused_one_of_the_same_id_is_kept(folder: Path, tmp_path: Path) -> None:
    append(folder, file_name="new.png", text="")
    append(folder, file_name="new.png", text="new")
    (folder / "new.png").write_bytes(picture())
    manifest = ingest.run(inputs(folder), tmp_path / "records")
    assert (sum(manifest.counts.values()), manifest.quarantined) == (41, 1)
