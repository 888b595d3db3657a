"""prerequisites: every fault at once, each as a sentence, and what a run writes to is tried for real."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import CHECKPOINTS

from latentflow import __version__
from latentflow.errors import LatentflowError
from latentflow.params import load
from latentflow.registry.store import connect
from latentflow.steps import prerequisites
from latentflow.steps.prerequisites import Request

DEFAULTS = load(Path(__file__).parents[2] / "params.yaml").model_dump(mode="json")


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def request(**changes: Any) -> Request:
    given: dict[str, Any] = {"defaults": DEFAULTS, "fields": {}, "overrides": {}, "version": __version__}
    return Request(**(given | changes))


def test_a_run_that_can_work_leaves_nothing_but_a_tag(tmp_path: Path) -> None:
    checked = prerequisites.run(request(storage=str(tmp_path / "storage"), encode_parts=2))
    assert checked.parts == ["1/2", "2/2"]
    assert checked.trainer == "pod"
    assert checked.sections["ingest"]["ingest"] == DEFAULTS["ingest"]
    assert list((tmp_path / "storage").iterdir()) == list((tmp_path / "store").iterdir()) == []
    (experiment,) = [one for one in connect().search_experiments() if one.name == "latentflow"]
    assert "latentflow.last_checked" in experiment.tags


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "file" / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    wrong = request(
        overrides={"train.stepz": 3},
        version="9.9.9",
        storage=str(tmp_path / "file" / "storage"),
        encode_parts=0,
    )
    with pytest.raises(LatentflowError) as caught:
        prerequisites.run(wrong)
    said = str(caught.value)
    assert "6 found" in said
    for words in (
        "train.stepz: unknown parameter",
        f"the package is of latentflow 9.9.9 and the image in image_cpu holds {__version__}",
        "encode_parts should be from 1 to 1000, found 0",
        "LATENTFLOW_STORE: ",
        "storage: ",
        "The MLflow server at http://127.0.0.1:1 does not answer",
    ):
        assert words in said


def test_a_source_that_is_not_there_is_named() -> None:
    with pytest.raises(LatentflowError, match=r"ingest\.source: '/no/pictures' is neither `emoji` nor a folder"):
        prerequisites.run(request(fields={"ingest.source": "/no/pictures"}))


def test_images_of_another_release_are_refused() -> None:
    digest = f"registry/latentflow-cpu@sha256:{'0' * 64}"
    assert prerequisites.run(request(images=(digest, f"registry:5000/latentflow-gpu:{__version__}"))).parts
    with pytest.raises(LatentflowError, match=r"the image is registry:5000/latentflow-gpu:9\.9\.9"):
        prerequisites.run(request(images=(digest, "registry:5000/latentflow-gpu:9.9.9")))


def test_in_a_cluster_a_server_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(LatentflowError, match="MLFLOW_TRACKING_URI is not set"):
        prerequisites.run(request())


def test_models_that_do_not_belong_together_are_each_told(tmp_path: Path) -> None:
    folder = CHECKPOINTS["flux.1-dev"].write(tmp_path / "flux")
    wrong = {"model.pretrained": str(folder), "evaluate.sampler": "heun"}
    with pytest.raises(LatentflowError) as caught:
        prerequisites.run(request(fields={"ingest.source": "/no/pictures"}, overrides=wrong))
    said = str(caught.value)
    assert "3 found" in said
    for words in ("ingest.source: ", "evaluate.sampler heun: ", "name the same pipeline in both, and encode again"):
        assert words in said
