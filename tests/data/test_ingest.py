"""ingest: what is usable becomes records, what is not is refused with a reason, and nothing else is lost."""

import csv
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from ingest_helpers import append, clip, encoded, make_folder, scene
from ingest_helpers import ingest_inputs as inputs
from PIL import Image

from latentflow.data.records import RecordSet, split_of, spread
from latentflow.data.refusal import Fault
from latentflow.errors import LatentflowError
from latentflow.steps import ingest


def picture(color: tuple[int, ...] = (255, 0, 0), size: tuple[int, int] = (20, 10), mode: str = "RGB") -> bytes:
    return encoded(Image.new(mode, size, color))


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path / "pictures")


def test_records_read_back_as_they_were(folder: Path, tmp_path: Path) -> None:
    manifest = ingest.run(inputs(folder), tmp_path / "records")
    records = RecordSet.open(tmp_path / "records")
    assert sum(manifest.counts.values()) == len(records.table) == 40
    assert [record.id for record in records.table] == sorted(record.id for record in records.table)
    for record in records.table:
        assert record.caption == f"picture {int(record.id[:2])}"
        assert records.image(record, 8, 8).getpixel((0, 0)) == (int(record.id[:2]), 0, 0)
    pixels = records.pixels(records.table[:3], 8)
    assert pixels.shape == (3, 3, 8, 8)
    assert pixels.min() == -1


FILES = ("media/00000.tar", "records.parquet", "manifest.json", "quarantine.jsonl", "duplicates.jsonl", "report.html")


def test_the_same_data_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    first, second = ingest.run(inputs(folder), tmp_path / "a"), ingest.run(inputs(folder), tmp_path / "b")
    assert first == second
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


MISSING, CHARACTERS = Fault.CAPTION_MISSING, Fault.CAPTION_CHARACTERS


@pytest.mark.parametrize(
    ("row", "content", "fault", "reason"),
    [
        ({"file_name": "gone.png", "text": "x"}, None, Fault.UNREADABLE, "does not exist"),
        ({"file_name": "../secret.png", "text": "x"}, None, Fault.UNREADABLE, "leaves the folder"),
        ({"file_name": "/etc/passwd", "text": "x"}, None, Fault.UNREADABLE, "leaves the folder"),
        ({"file_name": "bad.png", "text": "x"}, b"not a picture", Fault.UNKNOWN, "no format that Pillow reads"),
        ({"file_name": "bad.png", "text": "x"}, encoded(scene(0))[:300], Fault.BROKEN, "cannot be decoded"),
        ({"file_name": "bad.png", "text": "x"}, b"", Fault.EMPTY, "no bytes"),
        (
            {"file_name": "bad.png", "text": "x"},
            picture(size=(20, 3)),
            Fault.SMALL,
            "20x3 pixels, below ingest.min_side",
        ),
        ({"file_name": "bad.png", "text": "x"}, picture(size=(1, 1)), Fault.SMALL, "1x1 pixels, below ingest.min_side"),
        (
            {"file_name": "bad.png", "text": "x"},
            picture(size=(900, 9)),
            Fault.LARGE,
            "900x9 pixels, above ingest.max_side",
        ),
        ({"file_name": "bad.png", "text": "  "}, picture(), Fault.CAPTION_EMPTY, "caption is empty"),
        ({"file_name": "bad.png", "text": "\u202e\u2066"}, picture(), Fault.CAPTION_EMPTY, "caption is empty"),
        ({"file_name": "bad.png", "text": None}, picture(), MISSING, "caption is missing"),
        ({"file_name": "bad.png", "text": float("nan")}, picture(), MISSING, "caption is missing"),
        ({"file_name": "bad.png", "text": 3.5}, picture(), MISSING, "not text but float"),
        ({"file_name": "bad.png", "text": []}, picture(), MISSING, "list of captions is empty"),
        (
            {"file_name": "bad.png", "text": ["", None]},
            picture(),
            Fault.CAPTION_EMPTY,
            "none of 2 captions can be used",
        ),
        ({"file_name": "bad.png", "text": "a" * 100_000}, picture(), Fault.CAPTION_LONG, "100,000 characters"),
        ({"file_name": "bad.png", "text": "\ud83d"}, picture(), CHARACTERS, "not valid Unicode"),
        ({"file_name": "bad.png", "text": "a\0b"}, picture(), CHARACTERS, "NUL"),
        ({"file_name": "bad\ud83d.png", "text": "x"}, None, Fault.ID, "not valid Unicode"),
        ({"file_name": "00.png", "text": "again"}, None, Fault.DUPLICATE_ID, "the first one is kept"),
    ],
)
def test_a_bad_row_is_refused_with_a_reason(
    folder: Path, tmp_path: Path, row: dict[str, object], content: bytes | None, fault: Fault, reason: str
) -> None:
    if content is not None:
        (folder / "bad.png").write_bytes(content)
    append(folder, **row)
    manifest = ingest.run(inputs(folder, max_side=800), tmp_path / "records")
    assert manifest.quarantined == 1
    assert sum(manifest.counts.values()) == 40
    (line,) = lines(tmp_path / "records" / "quarantine.jsonl")
    assert line["fault"] == fault
    assert reason in str(line["reason"])


def test_a_link_that_leaves_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    append(folder, file_name="link.png", text="x")
    assert ingest.run(inputs(folder), tmp_path / "records").quarantined == 1


def test_content_and_not_the_extension_decides(folder: Path, tmp_path: Path) -> None:
    (folder / "picture.txt").write_bytes(encoded(scene(0), "JPEG"))
    (folder / "clip.jpg").write_bytes(clip(5))
    append(folder, file_name="picture.txt", text="a picture")
    append(folder, file_name="clip.jpg", text="a clip")
    assert ingest.run(inputs(folder), tmp_path / "records").quarantined == 0
    records = RecordSet.open(tmp_path / "records")
    assert [(record.kind, record.frames) for record in records.table[-2:]] == [("picture", 1), ("video", 5)]
    assert records.image(records.table[-1], 24, 32).size == (32, 24)


def test_of_several_captions_the_usable_ones_are_kept(folder: Path, tmp_path: Path) -> None:
    (folder / "many.png").write_bytes(picture())
    append(folder, file_name="many.png", text=[" first ", "", "a\0", "\u202eturned\u202c", None])
    ingest.run(inputs(folder), tmp_path / "records")
    record = RecordSet.open(tmp_path / "records").table[-1]
    assert record.captions == ("first", "turned")
    assert record.caption == "first"
    assert "3 unusable captions were left out" in (tmp_path / "records" / "report.html").read_text()


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
    assert records.image(record, 8, 8).getpixel((4, 4)) == (255, 255, 255)


def test_changed_media_are_noticed(folder: Path, tmp_path: Path) -> None:
    ingest.run(inputs(folder), tmp_path / "records")
    media = tmp_path / "records" / "media" / "00000.tar"
    media.write_bytes(media.read_bytes().replace(b"IDAT", b"IDAX"))
    records = RecordSet.open(tmp_path / "records")
    with pytest.raises(LatentflowError, match="changed; run ingest again"):
        records.image(records.table[0], 8, 8)


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


def test_the_order_is_the_sources(folder: Path, tmp_path: Path) -> None:
    rows = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(rows[::-1]) + "\n")
    ingest.run(inputs(folder), tmp_path / "records")
    assert [record.id for record in RecordSet.open(tmp_path / "records").table] == [
        f"{n:02d}.png" for n in range(39, -1, -1)
    ]


def test_a_limit_keeps_the_same_records_in_any_order(folder: Path, tmp_path: Path) -> None:
    ingest.run(inputs(folder, limit=25), tmp_path / "a")
    rows = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(rows[::-1]) + "\n")
    ingest.run(inputs(folder, limit=25), tmp_path / "b")
    first, second = ([record.id for record in RecordSet.open(tmp_path / name).table] for name in "ab")
    assert first == second[::-1]
    assert len(first) == 25


@pytest.mark.parametrize(("policy", "kept"), [("keep", 43), ("drop_exact", 42), ("drop_near", 41)])
def test_duplicates_are_reported_and_left_out_if_asked_for(
    folder: Path, tmp_path: Path, policy: str, kept: int
) -> None:
    image = scene(5)
    for name, data in (("a.png", encoded(image)), ("b.png", encoded(image)), ("c.jpg", encoded(image, "JPEG"))):
        (folder / name).write_bytes(data)
        append(folder, file_name=name, text=name)
    manifest = ingest.run(inputs(folder, duplicates=policy), tmp_path / "records")
    found = lines(tmp_path / "records" / "duplicates.jsonl")
    assert [(row["id"], row["of"], row["kind"]) for row in found] == [
        ("b.png", "a.png", "exact"),
        ("c.jpg", "a.png", "near"),
    ]
    assert sum(manifest.counts.values()) == kept
    assert manifest.duplicates.model_dump() == {"exact": 1, "near": 1, "dropped": 43 - kept}
    assert json.loads((tmp_path / "records" / "metrics.json").read_text())["duplicates_dropped"] == 43 - kept


def test_the_tar_is_a_tar_and_the_table_says_where(folder: Path, tmp_path: Path) -> None:
    ingest.run(inputs(folder), tmp_path / "records")
    rows = pq.read_table(tmp_path / "records" / "records.parquet").to_pylist()
    with tarfile.open(tmp_path / "records" / "media" / "00000.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{number:08d}" for number in range(40)]
        assert [(m.offset_data, m.size) for m in members] == [(row["offset"], row["size"]) for row in rows]
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
        assert tar.extractfile(members[7]).read() == (folder / "07.png").read_bytes()


def test_an_empty_source_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("")
    with pytest.raises(LatentflowError, match="holds no rows"):
        ingest.run(inputs(tmp_path), tmp_path / "records")
    assert not (tmp_path / "records").exists()
