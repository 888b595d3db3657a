"""A real MLflow store per test, and a real (tiny) model folder with its evaluation."""

import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from registry_helpers import INPUTS, clean_environment, write_evaluation, write_model

from pipelines.mlflow_server import mlflow_server

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/tiny.py


def enter_store(empty_store: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "mlruns").mkdir(parents=True)
    shutil.copy(empty_store, folder / "mlruns" / "mlflow.db")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def new_store(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Goes to a folder with an empty default store, as a user does who enters a fresh clone."""

    clean_environment(monkeypatch)
    return lambda folder: enter_store(empty_store, folder, monkeypatch)


@pytest.fixture(scope="session")
def registered_project(empty_store: Path, tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose registry holds version 1 of `tiny`; tests only read it."""
    from latentflow.steps import register

    folder = tmp_path_factory.mktemp("registered")
    model = write_model(folder / "model", tiny_pipeline)
    evaluation = write_evaluation(folder / "evaluation", "e" * 64, guidance=2.0)
    with pytest.MonkeyPatch.context() as patch:
        clean_environment(patch)
        enter_store(empty_store, folder / "project", patch)
        register.run(INPUTS, model, evaluation, folder / "registration")
    return folder / "project"


@pytest.fixture
def registered(registered_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    clean_environment(monkeypatch)
    monkeypatch.chdir(registered_project)
    return registered_project


@pytest.fixture(scope="session")
def drawn_in_one_thread() -> None:
    """A picture may differ in its last bit between thread counts; what is compared is drawn with the same."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def project(new_store: Callable[[Path], Path], tmp_path: Path) -> Path:
    return new_store(tmp_path / "project")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import build_pipeline

    return build_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture
def model(tiny_pipeline: Path, tmp_path: Path) -> Path:
    """What `latentflow train` leaves behind."""
    return write_model(tmp_path / "model", tiny_pipeline)


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "evaluation", "e" * 64, guidance=2.0)


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> int:
    """MLFLOW_TRACKING_URI names a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    return port


@pytest.fixture
def server(closed_port: int, empty_store: Path, tmp_path: Path) -> Iterator[str]:
    """`mlflow server` on the port that MLFLOW_TRACKING_URI names already."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    with mlflow_server(folder, closed_port) as uri:
        yield uri
