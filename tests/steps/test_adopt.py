"""adopt: a set in its place and the autoencoder within it become the inputs of a training."""

import json
from pathlib import Path

import pytest
from encoding import build_autoencoder, build_text_encoder, inputs, make_records, write_pictures

from latentflow.errors import LatentflowError
from latentflow.manifest import AutoencoderManifest, EncodedManifest
from latentflow.steps import adopt, encode


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set that two parts and a merge left in a shared place."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTFLOW_STORE", str(folder / "store"))
        records = make_records(write_pictures(folder / "pictures", 20), folder / "records")
        vae, given = build_autoencoder(folder / "autoencoder"), inputs(build_text_encoder(folder / "text"))
        storage = str(folder / "volume")
        encode.run_part(given, records, vae, folder / "part", encode.Part(1, 1), storage=storage)
        merged = encode.merge(given, records, vae, folder / "merged", [folder / "part"], storage=storage)
    return encode.shared_place(storage, merged.fingerprint)


def test_a_set_is_whole_by_itself(place: str, tmp_path: Path) -> None:
    manifest = adopt.run(place, "", tmp_path / "encoded", tmp_path / "autoencoder")
    assert EncodedManifest.read(tmp_path / "encoded") == manifest
    assert sorted(path.name for path in (tmp_path / "encoded").iterdir()) == ["manifest.json", "metrics.json"]
    assert json.loads((tmp_path / "encoded" / "metrics.json").read_text())["records"] == 20
    assert AutoencoderManifest.read(tmp_path / "autoencoder").digest == manifest.inputs["autoencoder"]
    assert (tmp_path / "autoencoder" / "vae" / "config.json").is_file()
    assert adopt.run(place, f"{place}/autoencoder", tmp_path / "a", tmp_path / "b", manifest.digest) == manifest


def test_another_digest_than_was_asked_for_is_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match=r"has the digest .*, but 123 was asked for"):
        adopt.run(place, "", tmp_path / "encoded", tmp_path / "autoencoder", "123")
    assert list(tmp_path.iterdir()) == []


def test_another_autoencoder_is_refused(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = build_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(LatentflowError, match="is not the autoencoder with which"):
        adopt.run(place, str(other), tmp_path / "encoded", tmp_path / "autoencoder")
    with pytest.raises(LatentflowError, match=r"holds no manifest\.json"):
        adopt.run(str(tmp_path / "nothing"), "", tmp_path / "encoded", tmp_path / "autoencoder")
