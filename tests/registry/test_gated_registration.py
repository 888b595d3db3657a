"""What register does with a verdict: aliases, tags, files, errors; and a champion that must be judged first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_helpers import INPUTS, NAME, inputs, model_manifest, write_evaluation

from latentflow.errors import LatentflowError, RefusedError, RegistryError
from latentflow.manifest import DuplicateCounts, EvaluationManifest, RecordsManifest, RegistrationManifest
from latentflow.registry import judged, marks, store, versions
from latentflow.steps import evaluate, register


@pytest.fixture
def champion(project: Path, model: Path, evaluation: Path, tmp_path: Path) -> RegistrationManifest:
    """Version 1, which finds 20 of 100 captions."""
    return register.run(INPUTS, model, evaluation, tmp_path / "registration")


def aliases() -> dict[str, str]:
    return {alias: str(number) for alias, number in store.connect().get_registered_model(NAME).aliases.items()}


def candidate(
    model: Path, tmp_path: Path, name: str, guidance: float, reference: str = "records"
) -> Callable[..., RegistrationManifest]:
    """Registers the model with an evaluation that finds 10 · guidance captions."""
    mark = name[0] * 64
    folder = write_evaluation(tmp_path / name, mark, guidance, reference=reference)
    return lambda given=INPUTS, **more: register.run(given, model, folder, tmp_path / "registration", **more)


def test_a_worse_model_is_kept_without_an_alias_and_with_reasons(
    champion: RegistrationManifest, model: Path, tmp_path: Path
) -> None:
    assert (champion.status, champion.champion, champion.alias) == ("passed", "", "champion")
    again = candidate(model, tmp_path, "worse", guidance=0.5)
    worse = again()
    assert (worse.version, worse.alias, worse.status, worse.champion) == ("2", "", "failed", "1")
    assert aliases() == {"champion": "1"}
    version = store.connect().get_model_version(NAME, "2")
    assert version.tags[marks.STATUS] == "failed"
    assert version.tags[marks.REASONS].startswith("retrieval/train/top5: worse by more than 0.05: 0.05 against 0.2")
    assert "Gate: refused against version 1. retrieval/train/top5: worse" in version.description
    assert "Licence: CC-BY-4.0" in version.description
    verdict = json.loads((tmp_path / "registration" / "verdict.json").read_text())
    assert (verdict["status"], verdict["rulings"][0]["paired"]["units"]) == ("failed", 100)
    page = (tmp_path / "registration" / "verdict.md").read_text()
    assert page.startswith("# models:/tiny/2: refused")
    # What DVC does: the outputs are gone, and nothing is to be done.
    shutil.rmtree(tmp_path / "registration")
    assert again() == worse
    assert (tmp_path / "registration" / "verdict.md").read_text() == page


def test_strict_registers_and_then_fails(champion: RegistrationManifest, model: Path, tmp_path: Path) -> None:
    again = candidate(model, tmp_path, "worse", guidance=0.5)
    for _ in range(2):
        with pytest.raises(RefusedError, match=r"refuses version 2 of 'tiny' \(failed\).*verdict.md says why"):
            again(inputs(refused="fail"))
        assert RegistrationManifest.read(tmp_path / "registration").version == "2"


def test_too_little_evidence_makes_a_challenger_and_no_champion(
    champion: RegistrationManifest, model: Path, tmp_path: Path
) -> None:
    found = candidate(model, tmp_path, "near", guidance=1.8)(inputs(promote="when_passed"))
    assert (found.status, found.alias) == ("inconclusive", "challenger")
    assert "More captions or seeds" in (tmp_path / "registration" / "verdict.md").read_text()


def test_when_passed_promotes(champion: RegistrationManifest, model: Path, tmp_path: Path) -> None:
    better = candidate(model, tmp_path, "better", guidance=4.0)
    assert better().alias == "challenger"
    assert better(inputs(promote="when_passed")).alias == "champion"
    assert aliases() == {"champion": "2", "previous": "1"}
    reason = store.connect().get_model_version(NAME, "2").tags["latentflow.promoted_because"]
    assert reason == "passed the gate against version 1, register.promote is when_passed"
    # The champion is not judged against itself, nor against what it replaced.
    assert better().status == "passed"
    assert aliases() == {"champion": "2", "previous": "1"}


def test_a_first_model_below_a_threshold_is_no_champion(
    project: Path, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    gate = {"thresholds": {"retrieval/train/top5": {"min": 0.5}}, "comparisons": {}, "confidence": 0.95}
    out = tmp_path / "registration"
    found = register.run(inputs(gate=gate), model, evaluation, out)
    assert (found.version, found.alias, found.status) == ("1", "", "failed")
    # Other rules, another verdict, the same version.
    found = register.run(INPUTS, model, evaluation, out)
    assert (found.version, found.alias, found.status) == ("1", "champion", "passed")


def test_a_challenger_that_is_refused_now_loses_its_alias(
    champion: RegistrationManifest, model: Path, tmp_path: Path
) -> None:
    again = candidate(model, tmp_path, "near", guidance=1.8)
    assert again().alias == "challenger"
    gate = {"thresholds": {"retrieval/train/top5": {"min": 0.5}}, "comparisons": {}, "confidence": 0.95}
    assert again(inputs(gate=gate)).alias == ""
    assert aliases() == {"champion": "1"}


def test_other_real_pictures_are_not_comparable_unless_the_champion_can_be_judged_on_them(
    champion: RegistrationManifest, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = candidate(model, tmp_path, "other", guidance=4.0, reference="others")
    found = again()
    assert (found.status, found.alias) == ("not_comparable", "")
    assert "give --encoded and --records" in (tmp_path / "registration" / "verdict.md").read_text()
    write_records(tmp_path / "records", "others")
    asked: list[tuple[Path, str]] = []

    def judge_folder(
        params: object, model: Path, encoded: object, records: Path, out: Path, parts: object, digest: str
    ) -> EvaluationManifest:
        asked.append((model, digest))
        write_evaluation(out, "9" * 64, guidance=2.0, reference="others")
        return EvaluationManifest.read(out)

    monkeypatch.setattr(evaluate, "judge_folder", judge_folder)
    gate = {"thresholds": {}, "comparisons": {"retrieval/train/top5": 0.04}, "confidence": 0.95}
    given = {"encoded": tmp_path / "encoded", "records": tmp_path / "records"}
    found = again(inputs(gate=gate), **given)
    assert (found.status, found.alias) == ("passed", "challenger")
    assert [digest for _, digest in asked] == ["d" * 64]
    assert (asked[0][0] / "model_index.json").is_file()
    # It is in the registry now: another machine, whose work store is empty, does not judge it again.
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "elsewhere"))
    assert again(inputs(gate=gate), **given).status == "passed"
    assert len(asked) == 1


def write_records(folder: Path, digest: str) -> None:
    folder.mkdir()
    RecordsManifest(
        digest=digest,
        fingerprint="f",
        inputs={},
        source="made by hand",
        revision="1",
        license="CC0",
        credit="nobody",
        counts={},
        quarantined=0,
        duplicates=DuplicateCounts(exact=0, near=0, dropped=0),
    ).write(folder)


def test_a_champion_that_cannot_be_judged_is_said_to_be_so(
    champion: RegistrationManifest, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_records(tmp_path / "records", "others")

    def judge_folder(*_: object) -> None:
        raise LatentflowError("It draws 16x16 px pictures, the set holds 32 px ones.")

    monkeypatch.setattr(evaluate, "judge_folder", judge_folder)
    given = {"encoded": tmp_path / "encoded", "records": tmp_path / "records"}
    again = candidate(model, tmp_path, "other", guidance=4.0, reference="others")
    assert again(**given).status == "not_comparable"
    assert "It draws 16x16 px pictures" in (tmp_path / "registration" / "verdict.md").read_text()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate, "judge_folder", full_disk)
    shutil.rmtree(tmp_path / "project" / ".latentflow")
    with pytest.raises(RegistryError, match=r"The champion could not be judged: .*No space left"):
        again(**given)


def test_records_of_another_evaluation_and_unknown_figures_are_refused_before_anything_is_uploaded(
    project: Path, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    write_records(tmp_path / "records", "others")
    out = tmp_path / "registration"
    with pytest.raises(LatentflowError, match=r"made with other records \(records\) than those in .* \(others\)"):
        register.run(INPUTS, model, evaluation, out, encoded="encoded", records=tmp_path / "records")
    gate = {"thresholds": {"fid": {"max": 20}}, "comparisons": {}, "confidence": 0.95}
    with pytest.raises(LatentflowError, match=r"register\.gate\.thresholds names fid"):
        register.run(inputs(gate=gate), model, evaluation, out)
    assert not out.exists()
    assert store.connect().search_registered_models() == []


def test_a_champion_that_changes_meanwhile_is_compared_with_again(
    champion: RegistrationManifest, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate(model, tmp_path, "better", guidance=4.0)()
    asked: list[str] = []
    real = judged.of_champion

    def slow(client: object, version: object, *more: object) -> Path:
        asked.append(str(version.version))
        if len(asked) == 1:
            store.connect().set_registered_model_alias(NAME, "champion", "2")
        return real(client, version, *more)

    monkeypatch.setattr(judged, "of_champion", slow)
    found = candidate(model, tmp_path, "third", guidance=1.0)()
    assert asked == ["1", "2"]
    assert (found.version, found.champion, found.status) == ("3", "2", "failed")

    def always(client: object, version: object, *more: object) -> Path:
        other = "1" if str(version.version) == "2" else "2"
        store.connect().set_registered_model_alias(NAME, "champion", other)
        return real(client, version, *more)

    monkeypatch.setattr(judged, "of_champion", always)
    with pytest.raises(RegistryError, match=f"changed {versions.ROUNDS} times meanwhile"):
        candidate(model, tmp_path, "unlucky", guidance=3.0)()


def test_a_version_tells_its_whole_lineage(project: Path, model: Path, evaluation: Path, tmp_path: Path) -> None:
    lineage = {
        "git_commit": "c0ffee",
        "git_dirty": "false",
        "image": "sha256:1234",
        "kfp_run_id": "run-7",
        "data_source": "emoji",
        "data_revision": "2.0.0",
        "data_digest": "r" * 64,
        "digest_encoded": "e" * 64,
        "digest_autoencoder": "a" * 64,
        "digest_pretrained": "p" * 64,
        "parent_model": "models:/base/3",
        "fingerprint": "f" * 64,
        "dvc/data/encoded": "0123.dir",
        "params.train.steps": "30",
    }
    model_manifest().model_copy(update={"lineage": lineage}).write(model)
    register.run(INPUTS, model, evaluation, tmp_path / "registration")
    version = store.connect().get_model_version(NAME, "1")
    told = {name: value for name, value in lineage.items() if not name.startswith("params.")}
    assert {name: version.tags[f"latentflow.{name}"] for name in told} == told
    assert version.tags["latentflow.reference_digest"] == "records"
    assert "fine-tuned from models:/base/3" in version.description
