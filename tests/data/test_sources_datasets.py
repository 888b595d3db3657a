"""Datasets of the library `datasets`: saved ones of every kind, the hub when it cannot be asked."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from source_helpers import PARAMS, opened, params_of, png, refusal

from latentflow.data.columns import Columns
from latentflow.data.huggingface import DatasetSource, HubMedia
from latentflow.data.media_refs import BytesMedia
from latentflow.errors import LatentflowError

datasets = pytest.importorskip("datasets", reason="datasets is not installed (extra hub)")


def made(count: int = 5, **columns: list[Any]) -> Any:
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(count)], "text": [f"no {n}" for n in range(count)]}
    dataset = datasets.Dataset.from_dict(rows | columns)
    return dataset.cast_column("image", datasets.Image())


def test_a_saved_dataset_gives_its_bytes_undecoded(tmp_path: Path) -> None:
    made(license=["CC0-1.0"] * 5, score=[0.5] * 5).save_to_disk(tmp_path / "saved")
    candidates = list(opened(tmp_path / "saved", condition_columns=["score"]).candidates())
    assert [each.id for each in candidates] == [f"{n:08d}" for n in range(5)]
    assert [each.captions for each in candidates] == [f"no {n}" for n in range(5)]
    assert [each.license for each in candidates] == ["CC0-1.0"] * 5
    assert [each.conditions for each in candidates] == [{"score": "0.5"}] * 5
    assert [pickle.loads(pickle.dumps(each)).media for each in candidates] == [BytesMedia(png(n)) for n in range(5)]


def test_an_id_column_names_the_records(tmp_path: Path) -> None:
    made(id=[f"x{n}" for n in range(5)]).save_to_disk(tmp_path / "saved")
    assert [each.id for each in opened(tmp_path / "saved").candidates()] == [f"x{n}" for n in range(5)]


def test_conditions_may_be_pictures(tmp_path: Path) -> None:
    dataset = made(control=[{"bytes": png(n + 100), "path": None} for n in range(5)])
    dataset.cast_column("control", datasets.Image()).save_to_disk(tmp_path / "saved")
    candidates = list(opened(tmp_path / "saved", condition_columns=["control"]).candidates())
    assert [each.conditions["control"] for each in candidates] == [BytesMedia(png(n + 100)) for n in range(5)]


def test_a_class_is_captioned_with_its_name(tmp_path: Path) -> None:
    dataset = made(label=[0, 1, 0, 1, -1]).cast_column("label", datasets.ClassLabel(names=["shirt", "bag"]))
    dataset.save_to_disk(tmp_path / "saved")
    captions = [each.captions for each in opened(tmp_path / "saved", caption_column="label").candidates()]
    assert captions == ["shirt", "bag", "shirt", "bag", -1]


def test_clips_pass_through(tmp_path: Path) -> None:
    rows = {"video": [{"bytes": b"clip", "path": "a.mp4"}], "prompt": ["x"]}
    features = datasets.Features({"video": datasets.Video(), "prompt": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    (found,) = opened(tmp_path / "saved").candidates()
    assert (found.captions, found.media) == ("x", BytesMedia(b"clip"))


def test_a_row_without_media_or_with_a_path_elsewhere_is_refused(tmp_path: Path) -> None:
    values = [{"bytes": png(), "path": None}, None, {"bytes": None, "path": "/etc/passwd"}]
    dataset = datasets.Dataset.from_dict({"image": values, "text": ["a", "b", "c"]})
    dataset.save_to_disk(tmp_path / "saved")
    reasons = [refusal(each) for each in opened(tmp_path / "saved").candidates()]
    assert reasons == ["", "the column image holds no media", "the file's name leaves the folder"]


def test_of_several_splits_the_named_one_is_read(tmp_path: Path) -> None:
    datasets.DatasetDict(train=made(3), test=made(2)).save_to_disk(tmp_path / "saved")
    assert len(list(opened(tmp_path / "saved").candidates())) == 3
    assert len(list(opened(tmp_path / "saved", hub_split="test").candidates())) == 2
    with pytest.raises(LatentflowError, match=r"no split 'validation' \(found train, test\)"):
        opened(tmp_path / "saved", hub_split="validation")


def test_the_revision_follows_the_data(tmp_path: Path) -> None:
    made(3).save_to_disk(tmp_path / "a")
    made(4).save_to_disk(tmp_path / "b")
    assert opened(tmp_path / "a").revision == opened(tmp_path / "a").revision != opened(tmp_path / "b").revision


def test_wrong_columns_and_broken_folders_are_named(tmp_path: Path) -> None:
    made(name=["x"] * 5).save_to_disk(tmp_path / "saved")
    with pytest.raises(LatentflowError, match=r"no column picture \(found image, text, name\)"):
        opened(tmp_path / "saved", media_column="picture")
    with pytest.raises(LatentflowError, match="the column name holds string and no media"):
        opened(tmp_path / "saved", media_column="name")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"broken")
    with pytest.raises(LatentflowError, match="cannot be opened as a saved dataset"):
        opened(tmp_path / "saved")


def test_a_stream_that_breaks_off_names_the_row() -> None:
    class Stream:
        features = None

        def __iter__(self) -> Iterator[dict[str, Any]]:
            yield {"image": png(), "text": "one"}
            raise ConnectionError("the network is gone")

    source = DatasetSource("hf:a/b", "1", "", "", Stream(), Columns("image", "text", ()), HubMedia)
    candidates = source.candidates()
    assert next(candidates).media == BytesMedia(png())
    with pytest.raises(LatentflowError, match=r"hf:a/b: cannot be read on after row 1 \(.*the network is gone\)"):
        next(candidates)


class HubFiles(MemoryFileSystem):
    """The hub's files, in memory."""

    protocol = "hf"
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("hf://").lstrip("/")


def test_files_and_members_of_archives_on_the_hub_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("a.png", png(1))
    monkeypatch.setitem(import_module("fsspec.registry")._registry, "hf", HubFiles)
    HubFiles().pipe_file("hf://datasets/a/b/c.png", png(2))
    HubFiles().pipe_file("hf://datasets/a/b/c.zip", archive.getvalue())
    assert HubMedia("hf://datasets/a/b/c.png").read() == png(2)
    assert HubMedia("zip://a.png::hf://datasets/a/b/c.zip").read() == png(1)


@pytest.mark.parametrize("url", ["/etc/passwd", "file:///etc/passwd", "file:///etc/passwd::hf://datasets/a/b/c.zip"])
def test_a_dataset_cannot_name_files_of_this_machine(url: str) -> None:
    with pytest.raises(ValueError, match="refers to a file outside the hub"):
        HubMedia(url).read()


def test_the_hub_is_streamed_at_the_sha_of_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(3).to_parquet(tmp_path / "data.parquet")
    files = str(tmp_path / "data.parquet")
    stream = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    asked: dict[str, Any] = {}

    def load(name: str, subset: str | None, **arguments: Any) -> Any:
        asked.update(arguments, name=name, subset=subset)
        return stream

    card = SimpleNamespace(sha="0123", card_data=SimpleNamespace(license=["mit", "cc-by-4.0"]))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda self, name, revision: card)
    monkeypatch.setattr("datasets.load_dataset", load)
    source = opened("hf:owner/name", revision="v1", subset="small", hub_split="test")
    assert asked == {"name": "owner/name", "subset": "small", "split": "test", "revision": "0123", "streaming": True}
    assert (source.revision, source.license) == ("0123", "mit, cc-by-4.0")
    assert [each.media for each in source.candidates()] == [BytesMedia(png(n)) for n in range(3)]


def test_what_the_hub_refuses_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, name: str, revision: str | None) -> None:
        raise ConnectionError(f"no {name} at {revision}\nsecond line")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(LatentflowError, match=r"hf:a/b with revision v1, .* cannot be opened \(.*no a/b at v1\)\.$"):
        opened("hf:a/b", revision="v1")


def test_an_offline_hub_is_told_in_one_sentence(tmp_path: Path) -> None:
    program = (
        "import sys; from latentflow.params import load; from latentflow.data.sources import open_source; "
        "from pathlib import Path; open_source(load(Path(sys.argv[1]), ['ingest.source=hf:owner/name']).ingest)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(PARAMS)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "LatentflowError: hf:owner/name cannot be fetched because HF_HUB_OFFLINE is set: unset it, or" in last


@pytest.mark.parametrize("name", ["name", "owner/name/more", "../x", "owner/na me"])
def test_names_that_are_no_dataset_are_refused(name: str) -> None:
    with pytest.raises(LatentflowError, match="expected hf:owner/name"):
        opened(f"hf:{name}")


def test_a_folder_of_the_same_name_is_not_taken_for_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LatentflowError, match="there is a folder of that name"):
        opened("hf:owner/name")


def test_hub_fields_are_for_hub_sources() -> None:
    assert params_of("hf:owner/name", revision="v1", subset="small").subset == "small"
