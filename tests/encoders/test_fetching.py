"""An autoencoder behind a URL: fetched once, compared with its manifest."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from encoding import build_autoencoder
from object_store import s3_bucket

from latentflow.data.remote import RemoteFolder
from latentflow.encoders.fetching import autoencoder_folder
from latentflow.errors import LatentflowError
from latentflow.files import digest_folder


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("autoencoders") as url:
        yield url


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return build_autoencoder(tmp_path / "autoencoder")


def upload(folder: Path, url: str) -> None:
    """As any tool would: file by file."""
    files, root = fsspec.url_to_fs(url)
    files.put(f"{folder}/", f"{root}/", recursive=True)


def test_a_folder_stays_where_it_is(made: Path) -> None:
    assert autoencoder_folder(made) == autoencoder_folder(f"file://{made}") == made


def test_it_is_fetched_once(made: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(made, f"{bucket}/good")
    fetched = autoencoder_folder(f"{bucket}/good")
    assert digest_folder(fetched / "vae") == digest_folder(made / "vae")
    monkeypatch.setattr(RemoteFolder, "fetch", None)
    assert autoencoder_folder(f"{bucket}/good/") == fetched


def test_other_weights_than_the_manifest_names_are_refused(made: Path, bucket: str, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "mixed")
    shutil.copytree(
        build_autoencoder(tmp_path / "other", seed=1) / "vae", tmp_path / "mixed" / "vae", dirs_exist_ok=True
    )
    upload(tmp_path / "mixed", f"{bucket}/mixed")
    for _ in range(2):
        with pytest.raises(LatentflowError, match=f"{bucket}/mixed/vae is not the autoencoder that its"):
            autoencoder_folder(f"{bucket}/mixed")


def test_a_place_without_one_is_told(bucket: str) -> None:
    with pytest.raises(LatentflowError, match=r"holds no manifest\.json: upload the whole folder"):
        autoencoder_folder(f"{bucket}/nothing")
