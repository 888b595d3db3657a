"""Folders that travel: whole or absent in a folder and behind URLs, compared on arrival."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from object_store import s3_bucket

from latentflow.data import parcels
from latentflow.data.parcels import DamagedFolderError
from latentflow.data.remote import RemoteFolder
from latentflow.errors import LatentflowError


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("parcels") as url:
        yield url


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "there")
    root = "memory:/" if request.param == "memory" else request.getfixturevalue("bucket")
    return f"{root}/{tmp_path.name}/there"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "made" / "pipeline").mkdir(parents=True)
    (tmp_path / "made" / "manifest.json").write_text("{}")
    (tmp_path / "made" / "pipeline" / "weights").write_bytes(bytes(range(256)) * 100)
    return tmp_path / "made"


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_delivered_is_collected_the_same(place: str, folder: Path, tmp_path: Path) -> None:
    before = content(folder)
    assert not parcels.is_there(place)
    parcels.deliver(folder, place)
    assert parcels.is_there(place)
    parcels.collect(place, tmp_path / "here")
    assert content(tmp_path / "here") == before == content(folder)


def test_a_second_delivery_replaces_the_first(place: str, folder: Path, tmp_path: Path) -> None:
    parcels.deliver(folder, place)
    (folder / "manifest.json").unlink()
    (folder / "other").write_text("new")
    parcels.deliver(folder, place)
    parcels.collect(place, tmp_path / "here")
    assert set(content(tmp_path / "here")) == {"other", "pipeline/weights"}


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_half_a_delivery_is_not_there(
    kind: str, bucket: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{'memory:/' if kind == 'memory' else bucket}/half/{tmp_path.name}"
    puts = RemoteFolder.put

    def breaks(self: RemoteFolder, path: Path, name: str) -> None:
        if name == "pipeline/weights":
            raise OSError("the connection broke")
        puts(self, path, name)

    monkeypatch.setattr(RemoteFolder, "put", breaks)
    with pytest.raises(OSError, match="the connection broke"):
        parcels.deliver(folder, url)
    monkeypatch.undo()
    assert RemoteFolder(url).names() == ["manifest.json"]
    assert not parcels.is_there(url)
    with pytest.raises(DamagedFolderError, match=r"its file files\.json is missing"):
        parcels.collect(url, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    parcels.deliver(folder, url)
    assert parcels.is_there(url)


@pytest.mark.parametrize(("data", "fault"), [(b"other", "is damaged"), (None, "is missing")])
def test_a_file_that_is_damaged_or_missing_is_named(
    bucket: str, folder: Path, tmp_path: Path, data: bytes | None, fault: str
) -> None:
    url = f"{bucket}/damaged/{tmp_path.name}"
    parcels.deliver(folder, url)
    files, path = fsspec.url_to_fs(f"{url}/pipeline/weights")
    files.rm_file(path) if data is None else files.pipe_file(path, data)
    with pytest.raises(DamagedFolderError, match=f"{url} cannot be used: its file pipeline/weights {fault}"):
        parcels.collect(url, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_bucket_that_is_not_there_is_told(bucket: str, folder: Path) -> None:
    with pytest.raises(LatentflowError, match=r"s3://absent-bucket/there cannot be written: .* Is its bucket there\?"):
        parcels.deliver(folder, "s3://absent-bucket/there")
