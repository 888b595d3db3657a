"""Versions: one per model and evaluation, aliases, lineage, and a registry that cannot be reached."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_helpers import FOREIGN_RUN, INPUTS, MODEL_METRICS, NAME, inputs, model_manifest, write_evaluation

from latentflow.errors import LatentflowError, RegistryError
from latentflow.manifest import RegistrationManifest
from latentflow.registry import glance, marks, store, tracking
from latentflow.registry.gate import rules_key
from latentflow.steps import register


def logged_models() -> int:
    client = store.connect()
    return len(client.search_logged_models([store.experiment_id(client)]))


def children(parent: str) -> int:
    client = store.connect()
    return len(client.search_runs([store.experiment_id(client)], f"tags.`{tracking.PARENT}` = '{parent}'"))


def test_the_same_pair_is_one_version_and_one_upload(
    project: Path, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    out = tmp_path / "registration"
    first = register.run(INPUTS, model, evaluation, out)
    assert (first.name, first.version, first.alias) == (NAME, "1", "champion")
    assert RegistrationManifest.read(out) == first
    assert register.run(INPUTS, model, evaluation, out) == first
    assert logged_models() == 1
    version = store.connect().get_model_version(NAME, "1")
    assert version.run_id == first.mlflow_run_id
    assert version.tags["latentflow.model_digest"] == "d" * 64
    assert version.tags["latentflow.git_commit"] == "c0ffee"
    assert version.tags["latentflow.metric.retrieval/train/top5"] == "0.2"
    kept = store.connect().get_logged_model(version.source.removeprefix("models:/"))
    assert str(kept.status) == "READY"
    assert {metric.key: metric.value for metric in kept.metrics}["retrieval/train/top5"] == pytest.approx(0.2)
    assert kept.source_run_id == first.mlflow_run_id


def test_another_evaluation_is_another_child_run_and_a_challenger(
    project: Path, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    out = tmp_path / "registration"
    first = register.run(INPUTS, model, evaluation, out)
    stronger = write_evaluation(tmp_path / "stronger", "b" * 64, guidance=4.0)
    second = register.run(INPUTS, model, stronger, out)
    assert (second.version, second.alias) == ("2", "challenger")
    assert second.mlflow_run_id == first.mlflow_run_id
    assert children(first.mlflow_run_id) == 2
    # Back to the first parameters: the version that was there, still the champion.
    assert register.run(INPUTS, model, evaluation, out) == first
    client = store.connect()
    assert client.get_registered_model(NAME).aliases == {"champion": 1, "challenger": 2}
    # What a person promotes stays promoted.
    client.set_registered_model_alias(NAME, "champion", "2")
    assert register.run(INPUTS, model, stronger, out).alias == "champion"


def test_an_evaluation_that_was_logged_is_used_and_not_logged_again(
    project: Path, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    with tracking.training_run({}, {}) as trained:
        pass
    manifest = model_manifest(trained.id)
    manifest.write(model)
    with tracking.evaluation_run(manifest, "e" * 64) as judged:
        judged.log_metrics({"retrieval/train/top5": 0.2, "heldout_loss_by_sigma/0.50": 0.8})
    registered = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert registered.mlflow_run_id == trained.id
    client = store.connect()
    assert client.get_model_version(NAME, "1").tags["latentflow.evaluation_run_id"] == judged.id
    assert children(trained.id) == 1
    assert len(client.get_metric_history(judged.id, "retrieval/train/top5")) == 1


def test_a_clone_with_another_store_rebuilds_what_its_store_lacks(
    new_store: Callable[[Path], Path], model: Path, evaluation: Path, tmp_path: Path
) -> None:
    """DVC's run cache restores model and evaluation in the clone; neither train nor evaluate runs there."""
    model_manifest(FOREIGN_RUN).write(model)
    new_store(tmp_path / "clone")
    first = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert first.mlflow_run_id != FOREIGN_RUN
    parent = store.connect().get_run(first.mlflow_run_id)
    assert parent.data.tags[tracking.ORIGINAL] == FOREIGN_RUN
    assert parent.data.metrics == MODEL_METRICS
    assert children(first.mlflow_run_id) == 1
    again = write_evaluation(tmp_path / "again", "b" * 64, guidance=4.0)
    assert register.run(INPUTS, model, again, tmp_path / "registration").mlflow_run_id == first.mlflow_run_id


def test_a_deleted_version_is_registered_anew(project: Path, model: Path, evaluation: Path, tmp_path: Path) -> None:
    out = tmp_path / "registration"
    register.run(INPUTS, model, evaluation, out)
    store.connect().delete_model_version(NAME, "1")
    second = register.run(INPUTS, model, evaluation, out)
    assert (second.version, second.alias) == ("2", "champion")
    assert glance.registered(INPUTS.register_, "d" * 64, "e" * 64) is not None


def test_an_upload_that_broke_off_is_made_anew(
    project: Path, model: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_model_artifacts", full)
        with pytest.raises(RegistryError, match="No space left"):
            register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert register.run(INPUTS, model, evaluation, tmp_path / "registration").version == "1"


def test_without_a_registry_the_model_is_kept_and_the_command_is_told(
    closed_port: int, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    before = sorted(model.rglob("*"))
    with pytest.raises(RegistryError) as caught:
        register.run(INPUTS, model, evaluation, tmp_path / "registration")
    message = str(caught.value)
    assert f"http://127.0.0.1:{closed_port} does not answer" in message
    assert f"kept at {model / 'pipeline'}" in message
    assert (
        f"`latentflow register --model {model} --evaluation {evaluation} --out {tmp_path / 'registration'}`" in message
    )
    assert sorted(model.rglob("*")) == before


def test_an_evaluation_of_another_model_is_refused(
    project: Path, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    model_manifest().model_copy(update={"digest": "0" * 64}).write(model)
    with pytest.raises(LatentflowError, match="judges another model"):
        register.run(INPUTS, model, evaluation, tmp_path / "registration")


def test_a_model_without_its_pipeline_is_refused(project: Path, model: Path, evaluation: Path, tmp_path: Path) -> None:
    shutil.rmtree(model / "pipeline")
    with pytest.raises(LatentflowError, match=r"lacks model_index\.json"):
        register.run(INPUTS, model, evaluation, tmp_path / "registration")


def test_the_digest_says_what_was_registered_not_where(
    new_store: Callable[[Path], Path], model: Path, evaluation: Path, tmp_path: Path
) -> None:
    new_store(tmp_path / "one")
    other = write_evaluation(tmp_path / "other", "b" * 64, guidance=4.0)
    register.run(INPUTS, model, other, tmp_path / "registration")
    second = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    new_store(tmp_path / "two")
    first = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert (first.version, second.version) == ("1", "2")
    assert (first.digest, first.fingerprint) == (second.digest, second.fingerprint)


def test_the_package(project: Path, model: Path, evaluation: Path, tmp_path: Path) -> None:
    from importlib.metadata import version as installed

    from mlflow.models import Model

    register.run(INPUTS, model, evaluation, tmp_path / "registration")
    source = store.connect().get_model_version(NAME, "1").source
    location = store.connect().get_logged_model(source.removeprefix("models:/")).artifact_location
    folder = Path(location.removeprefix("file://"))
    generation = json.loads((folder / "artifacts" / "pipeline" / "generation.json").read_text())
    assert generation == {"height": 16, "width": 16, "call": {}, "sampler": "euler", "steps": 3, "guidance": 2.0}
    card = (folder / "artifacts" / "pipeline" / "README.md").read_text()
    for part in (
        "CC-BY-4.0",
        "somebody who wants to be named",
        "c0ffee",
        "retrieval/train/top5",
        f"models:/{NAME}/VERSION",
    ):
        assert part in card
    requirements = (folder / "requirements.txt").read_text().split()
    assert f"torch=={installed('torch').partition('+')[0]}" in requirements
    assert not any("latentflow" in line or "+" in line for line in requirements)
    signature = Model.load(str(folder)).signature
    assert signature.inputs.input_names() == ["prompt", "negative_prompt"]
    assert signature.inputs.required_input_names() == ["prompt"]
    assert {p.name: p.default for p in signature.params.params} == {
        "seed": 0,
        "steps": 3,
        "guidance": 2.0,
        "height": 16,
        "width": 16,
        "sampler": "euler",
    }


def test_nothing_to_do_is_found_out_without_importing_mlflow(
    project: Path, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    first = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    script = """
import sys
from pathlib import Path
from latentflow.params import RegisterInputs
from latentflow.steps import register
inputs, *folders = sys.argv[1:]
register.run(RegisterInputs.model_validate_json(inputs), *map(Path, folders))
assert not {"mlflow", "torch", "diffusers"} & set(sys.modules)
"""
    out = tmp_path / "again"
    inputs = INPUTS.model_dump_json(by_alias=True)
    subprocess.run([sys.executable, "-c", script, inputs, str(model), str(evaluation), str(out)], check=True)
    assert RegistrationManifest.read(out) == first


def settled_copy(registered: Path, copy: Path, aliases: dict[str, str], tags: dict[str, str]) -> None:
    """A copy of the registry with other aliases and tags of version 1; version 2 need not exist to carry an alias."""
    shutil.copy(registered / "mlruns" / "mlflow.db", copy)
    with sqlite3.connect(copy) as connection:
        connection.execute("delete from registered_model_aliases")
        query = "insert into registered_model_aliases (name, alias, version) values (?, ?, ?)"
        connection.executemany(query, [(NAME, alias, number) for alias, number in aliases.items()])
        query = "update model_version_tags set value = ? where key = ? and name = ?"
        connection.executemany(query, [(value, key, NAME) for key, value in tags.items()])


@pytest.mark.parametrize(
    ("aliases", "status", "judged_against", "alias"),
    [
        ({"champion": "1"}, "passed", "", "champion"),
        ({"champion": "1"}, "failed", "2", "champion"),
        ({"champion": "2", "challenger": "1"}, "passed", "2", "challenger"),
        ({"champion": "2", "challenger": "1"}, "inconclusive", "2", "challenger"),
        ({"champion": "2"}, "failed", "2", ""),
        ({"champion": "2"}, "not_comparable", "2", ""),
        # What is left is to be done: another champion, a challenger to be named or unnamed, no champion at all.
        ({"champion": "2", "challenger": "1"}, "passed", "3", None),
        ({"champion": "2", "challenger": "2"}, "passed", "2", None),
        ({"champion": "2", "challenger": "1"}, "failed", "2", None),
        ({"challenger": "1"}, "passed", "", None),
        ({}, "failed", "", None),
    ],
)
def test_the_glance_answers_only_where_nothing_is_to_be_done(
    registered: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    aliases: dict[str, str],
    status: str,
    judged_against: str,
    alias: str | None,
) -> None:
    rules = rules_key(INPUTS.register_.gate, judged_against)
    copy = tmp_path / "mlflow.db"
    settled_copy(registered, copy, aliases, {marks.STATUS: status, marks.CHAMPION: judged_against, marks.RULES: rules})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    found = glance.registered(INPUTS.register_, "d" * 64, "e" * 64)
    assert (found and (found.alias, found.status)) == (None if alias is None else (alias, status))
    assert glance.registered(INPUTS.register_, "d" * 64, "0" * 64) is None


def test_the_glance_leaves_other_rules_and_promotion_to_mlflow(
    registered: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rules = rules_key(INPUTS.register_.gate, "2")
    copy = tmp_path / "mlflow.db"
    settled_copy(registered, copy, {"champion": "2", "challenger": "1"}, {marks.RULES: rules})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    assert glance.registered(inputs(promote="when_passed").register_, "d" * 64, "e" * 64) is None
    stricter = {"thresholds": {}, "comparisons": {"retrieval/train/top5": 0.01}, "confidence": 0.95}
    assert glance.registered(inputs(gate=stricter).register_, "d" * 64, "e" * 64) is None
    copy.write_text("not a database")
    assert glance.registered(INPUTS.register_, "d" * 64, "e" * 64) is None
