"""What the Kubeflow UI is given of a step."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from latentflow import kubeflow_ui
from latentflow.manifest import DuplicateCounts, Manifest, ModelManifest, RecordsManifest, RegistrationManifest
from latentflow.registry.store import connect, experiment_id

HEAD: dict[str, Any] = {"digest": "d" * 64, "fingerprint": "f" * 64, "inputs": {}}
MODEL = ModelManifest(**HEAD, pipeline_class="PixArtAlphaPipeline", resolution=32, mlflow_run_id="", lineage={})


@dataclass
class Output:
    """An output as KFP hands it to a component."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)
    logged: dict[str, float] = field(default_factory=dict)

    def log_metric(self, metric: str, value: float) -> None:
        self.logged[metric] = value


def shown(manifest: Manifest, folder: Path) -> tuple[Output, Output, str]:
    (folder / "out").mkdir()
    (folder / "out" / "metrics.json").write_text(json.dumps({"loss": 0.5}))
    artifact, metrics, summary = Output(str(folder / "out")), Output(""), Output(str(folder / "summary"))
    kubeflow_ui.show(manifest, artifact, summary, metrics)
    return artifact, metrics, Path(summary.path).read_text()


def test_digests_figures_and_facts(tmp_path: Path) -> None:
    artifact, metrics, summary = shown(MODEL, tmp_path)
    assert artifact.metadata == {"digest": "d" * 64, "fingerprint": "f" * 64}
    assert metrics.logged == {"loss": 0.5}
    assert summary.startswith("# train\n")
    assert "| pipeline | PixArtAlphaPipeline |" in summary
    assert f"| digest | {'d' * 64} |" in summary


def test_a_step_without_figures_has_a_summary(tmp_path: Path) -> None:
    manifest = RegistrationManifest(**HEAD, name="emoji", version="3", alias="champion", mlflow_run_id="")
    artifact, summary = Output(str(tmp_path)), Output(str(tmp_path / "summary"))
    kubeflow_ui.show(manifest, artifact, summary)
    text = Path(summary.path).read_text()
    assert "| model | models:/emoji/3 |" in text
    assert "latentflow generate --model models:/emoji/3" in text


def test_what_people_wrote_cannot_break_the_table(tmp_path: Path) -> None:
    manifest = RecordsManifest(
        **HEAD,
        source="a|b",
        revision="",
        license="mine\nalone",
        credit="",
        counts={"train": 2},
        quarantined=0,
        duplicates=DuplicateCounts(exact=0, near=0, dropped=0),
    )
    _, _, summary = shown(manifest, tmp_path)
    assert "| source | a\\|b |" in summary
    assert "| licence | mine alone |" in summary
    assert "credit" not in summary


def test_the_run_s_page_is_linked_where_people_look_at_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = connect()
    run = client.create_run(experiment_id(client)).info
    manifest = MODEL.model_copy(update={"mlflow_run_id": run.run_id})
    artifact, _, _ = shown(manifest, tmp_path)
    assert artifact.metadata["mlflow_run_id"] == run.run_id
    assert "mlflow_url" not in artifact.metadata, "a file has no page"

    monkeypatch.setenv("MLFLOW_UI_URL", "https://mlflow.example.org/")
    (tmp_path / "more").mkdir()
    artifact, _, summary = shown(manifest, tmp_path / "more")
    url = f"https://mlflow.example.org/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    assert artifact.metadata["mlflow_url"] == url
    assert url in summary


def test_a_server_that_is_gone_costs_the_link_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    artifact, _, _ = shown(MODEL.model_copy(update={"mlflow_run_id": "abc"}), tmp_path)
    assert artifact.metadata["mlflow_run_id"] == "abc"
    assert "mlflow_url" not in artifact.metadata


def test_a_page_is_handed_on_unless_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, report = tmp_path / "report.html", Output(str(tmp_path / "handed"))
    page.write_text("<p>loss</p>")
    kubeflow_ui.show_page(page, report)
    assert Path(report.path).read_text() == "<p>loss</p>"
    kubeflow_ui.show_page(tmp_path / "none.html", report)
    assert "nothing to compare with" in Path(report.path).read_text()
    monkeypatch.setattr(kubeflow_ui, "MAX_PAGE", 5)
    kubeflow_ui.show_page(page, report)
    assert "The report has 11 bytes, too many for the UI: it is report.html" in Path(report.path).read_text()
