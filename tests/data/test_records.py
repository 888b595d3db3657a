"""The records folder: several tars, conditions, views of the table, and a digest that covers what counts."""

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from ingest_helpers import encoded, scene
from PIL import Image

from latentflow.data import tars
from latentflow.data.media_refs import BytesMedia
from latentflow.data.record_writer import record_writer
from latentflow.data.records import RecordSet
from latentflow.data.refusal import Fault, RefusedError
from latentflow.data.sources import Candidate
from latentflow.data.validation import Checked, Limits, check
from latentflow.errors import LatentflowError
from latentflow.manifest import DuplicateCounts, RecordsManifest

LIMITS = Limits(1, 20_000)


def checked(number: int = 0, **changes: object) -> Checked:
    data = encoded(Image.new("RGB", (8, 8), (number % 256, number // 256, 0)))
    return check(replace(Candidate(f"id-{number}", f"caption {number}", BytesMedia(data)), **changes), LIMITS)


def write(folder: Path, records: list[Checked], splits: tuple[str, ...] = ("train", "test")) -> tuple[RecordSet, str]:
    folder.mkdir()
    with record_writer(folder) as writer:
        for number, record in enumerate(records):
            writer.add(record, splits[number % len(splits)])
        digest = writer.digest
    RecordsManifest(
        digest=digest,
        fingerprint="",
        inputs={},
        source="made by hand",
        revision="",
        license="",
        credit="",
        counts=writer.counts,
        quarantined=0,
        duplicates=DuplicateCounts(exact=0, near=0, dropped=0),
    ).write(folder)
    return RecordSet.open(folder), digest


def test_a_table_of_several_row_groups_is_a_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentflow.data.record_writer.ROW_GROUP", 7)
    monkeypatch.setattr("latentflow.data.records._BATCH", 5)
    records, _ = write(tmp_path / "records", [checked(number) for number in range(40)])
    names = [f"id-{number}" for number in range(40)]
    assert [record.id for record in records.table] == names
    assert [records.table[place].id for place in range(40)] == names
    assert records.table[-1].id == "id-39"
    assert [record.id for record in records.table[10:30:3]] == names[10:30:3]
    assert [record.id for record in records.table[::-1]] == names[::-1]
    assert [record.id for record in records.split("test")] == names[1::2]
    assert [record.id for record in records.split("test")[5:8]] == names[11:17:2]
    assert list(records.split("validation")) == []
    with pytest.raises(IndexError):
        records.table[40]


def members(path: Path) -> int:
    with tarfile.open(path) as tar:
        return len(tar.getnames())


def test_media_go_into_several_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tars.TarWriter.__init__, "__defaults__", (5_000,))
    records, _ = write(tmp_path / "records", [checked(number) for number in range(20)])
    files = sorted((tmp_path / "records" / "media").iterdir())
    assert len(files) > 3
    assert all(path.stat().st_size <= 20_480 for path in files)
    assert sum(map(members, files)) == 20
    for number, record in enumerate(records.table):
        assert records.image(record, 8, 8).getpixel((0, 0)) == (number, 0, 0)
    files[-1].unlink()
    with pytest.raises(LatentflowError, match=r"0000\d\.tar is missing"):
        records.read(records.table[19])


def test_conditions_are_text_or_media(tmp_path: Path) -> None:
    control = encoded(scene(1), "JPEG")
    one = checked(0, conditions={"control": BytesMedia(control), "style": " pen\u202e "}, license="CC0")
    records, _ = write(tmp_path / "records", [one, checked(1)])
    record = records.table[0]
    media, text = record.conditions
    assert (media.name, media.text, text.name, text.text, text.media) == ("control", "", "style", "pen", -1)
    assert records.read(media) == control
    assert (record.license, records.table[1].conditions) == ("CC0", ())
    with tarfile.open(tmp_path / "records" / "media" / "00000.tar") as tar:
        assert tar.getnames() == ["00000000", "00000000.control", "00000001"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [(BytesMedia(b"nothing"), "condition control: .* no format"), ("a\0b", "condition control: .* NUL")],
)
def test_an_unusable_condition_refuses_the_record(value: object, reason: str) -> None:
    with pytest.raises(RefusedError, match=reason) as caught:
        checked(0, conditions={"control": value})
    assert caught.value.fault == Fault.CONDITION


def test_the_digest_covers_captions_split_media_and_conditions(tmp_path: Path) -> None:
    one = checked(0)
    variants = [
        [one],
        [replace(one, id="other")],
        [replace(one, captions=("caption 0", "more"))],
        [replace(one, sha256=b"0" * 32)],
        [checked(0, conditions={"style": "pen"})],
        [checked(0, conditions={"style": "ink"})],
        [one, checked(1)],
    ]
    digests = {write(tmp_path / str(number), records)[1] for number, records in enumerate(variants)}
    digests.add(write(tmp_path / "split", [one], ("test",))[1])
    assert len(digests) == len(variants) + 1
    assert write(tmp_path / "licensed", [replace(one, license="CC0")])[1] in digests
