"""The local run's own part: finding outputs and saying what is missing."""

from pathlib import Path

import pytest

from latentflow.errors import LatentflowError
from latentflow.manifest import DuplicateCounts, RecordsManifest
from latentflow.params import STEP_INPUTS
from pipelines import local


def test_every_step_has_an_output_to_check() -> None:
    assert [output.step for output in local.OUTPUTS] == list(STEP_INPUTS)
    assert all(output.manifest.model_fields["step"].default == output.step for output in local.OUTPUTS)


def test_a_missing_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "ingest" / "records").mkdir(parents=True)
    with pytest.raises(LatentflowError, match=r"ingest left no records/records\.parquet, summary"):
        local.collect(tmp_path)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    records = tmp_path / "ingest" / "records"
    records.mkdir(parents=True)
    (records / "records.parquet").touch()
    (tmp_path / "ingest" / "summary").touch()
    with pytest.raises(LatentflowError, match=r"holds no manifest\.json"):
        local.collect(tmp_path)
    RecordsManifest(
        digest="d",
        fingerprint="f",
        inputs={},
        source="s",
        revision="r",
        license="l",
        credit="c",
        counts={},
        quarantined=0,
        duplicates=DuplicateCounts(exact=0, near=0, dropped=0),
    ).write(records)
    with pytest.raises(LatentflowError, match="autoencoder left no"):
        local.collect(tmp_path)


def test_relative_folders_are_made_absolute_and_names_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    monkeypatch.chdir(tmp_path)
    assert local._absolute("pictures") == str(tmp_path / "pictures")
    assert local._absolute("emoji") == "emoji"
    assert local._absolute("") == ""


def test_a_bad_setting_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert local.main(["--set", "train.steps"]) == 1
    assert "expected section.field=value" in capsys.readouterr().err
