"""The same against a real MLflow server that also keeps the artifacts, as in a cluster: over sqlite and PostgreSQL."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow_servers import Server, postgresql
from PIL import Image
from registry_helpers import INPUTS, LINEAGE, MODEL_METRICS, NAME, model_manifest

from latentflow.registry import journal, pulling, store, tracking
from latentflow.steps import register
from latentflow.workspace import work_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 40


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server; MLFLOW_TRACKING_URI names it."""
    place = tmp_path / "server"
    place.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "work"))

    def run(database: str) -> Iterator[Server]:
        made = Server(place, database)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
        made.start()
        try:
            yield made
        finally:
            made.kill()

    if request.param == "sqlite":
        yield from run(f"sqlite:///{place / 'mlflow.db'}")
    else:
        with postgresql(place) as database:
            yield from run(database)


# Goes to the step that a line on standard input names, and so on; a line on standard output for each step.
TRAINING = """
import sys
from pathlib import Path
import numpy as np
from latentflow.registry import tracking
tracking.PAUSE_SECONDS = 0.5
tracking.LONGEST_PAUSE_SECONDS = 2.0
kept, page, first, last, known = sys.argv[1:]
lineage = {"git_commit": "c0ffee"}
with tracking.training_run({"train.steps": last}, lineage, run_id=known or None, kept=Path(kept)) as run:
    step = int(first)
    while step <= int(last):
        until = int(sys.stdin.readline())
        for step in range(step, until + 1):
            run.log_metrics({"loss": 1 / step, "rate": 0.1}, step)
            if step % 5 == 0:
                run.log_image(np.full((4, 4, 3), step, dtype=np.uint8), "samples/grid", step)
            print(step, run.id, flush=True)
        step += 1
    run.log_artifact(Path(page))
"""


class Training:
    """A process that logs step by step, and a file that it logs at its end."""

    def __init__(self, folder: Path, first: int = 1, known: str = "") -> None:
        page = folder / "page.html"
        page.write_text("<p>done")
        arguments = [str(folder / "kept"), str(page), str(first), str(STEPS), known]
        command = [sys.executable, "-c", TRAINING, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.run_id = ""

    def until(self, step: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            done, self.run_id = line.split()
            if int(done) == step:
                return
        raise AssertionError(f"ended before step {step}")

    def finish(self) -> None:
        self.until(STEPS)
        assert self.process.wait(timeout=300) == 0


def check_complete(run_id: str) -> None:
    client = store.connect()
    run = tracking.find_training(client, run_id)
    for name in ("loss", "rate"):
        points = client.get_metric_history(run, name)
        assert [point.step for point in points] == list(range(1, STEPS + 1))
    assert math.isclose(client.get_metric_history(run, "loss")[-1].value, 1 / STEPS)
    files = [Path(file.path).name for file in client.list_artifacts(run, "images")]
    steps = {int(name.replace("%", "+").split("+")[2]) for name in files if name.endswith(".png")}
    assert steps == set(range(5, STEPS + 1, 5))
    for name in files:
        if name.endswith(".png"):
            picture = Image.open(client.download_artifacts(run, f"images/{name}"))
            assert int(np.asarray(picture).max()) == int(name.replace("%", "+").split("+")[2])
    assert "page.html" in [file.path for file in client.list_artifacts(run)]
    assert client.get_run(run).info.status == "FINISHED"


def test_a_server_that_is_killed_in_the_middle_and_comes_back_has_everything(server: Server, tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.until(8)
    server.kill()
    training.until(20)
    server.start()
    training.finish()
    check_complete(training.run_id)
    assert not (tmp_path / "kept").exists()


def test_a_training_that_is_killed_while_the_server_is_away_goes_on_where_both_left_off(
    server: Server, tmp_path: Path
) -> None:
    training = Training(tmp_path)
    training.until(8)
    server.kill()
    training.until(20)
    training.process.send_signal(signal.SIGKILL)
    training.process.wait()
    server.start()
    # Its checkpoint was of step 11.
    again = Training(tmp_path, first=12, known=training.run_id)
    again.finish()
    assert again.run_id == training.run_id
    check_complete(again.run_id)


def test_a_server_that_never_answers_costs_nothing_but_a_command_later(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.kill()
    with work_folder("train", "f" * 64) as work:
        training = Training(work)
        training.finish()
        assert (work / "kept").is_dir()
        (work / "kept").rename(work / journal.NAME)
    server.start()
    done = subprocess.run(
        [sys.executable, "-m", "latentflow.cli", "deliver"], capture_output=True, text=True, check=False, env=os.environ
    )
    assert (done.returncode, "what waited of 1 runs" in done.stdout) == (0, True), done.stderr
    check_complete(training.run_id)


def test_runs_versions_and_pulling_through_a_server(
    server: Server, model: Path, evaluation: Path, tmp_path: Path
) -> None:
    with tracking.training_run({"train.steps": "30"}, LINEAGE) as trained:
        trained.log_metrics(MODEL_METRICS, step=1)
        trained.log_dataset("encoded", "9" * 64, "data/encoded", "training")
    model_manifest(trained.id).write(model)
    first = register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert first == register.run(INPUTS, model, evaluation, tmp_path / "registration")
    assert (first.version, first.alias, first.mlflow_run_id) == ("1", "champion", trained.id)
    client = store.connect()
    assert client.get_run(trained.id).info.status == "FINISHED"
    assert len(client.search_logged_models([store.experiment_id(client)])) == 1
    folder = pulling.pull(f"models:/{NAME}@champion")
    assert json.loads((folder / "generation.json").read_text())["guidance"] == 2.0
    with pytest.raises(Exception, match="no alias 'best'"):
        pulling.pull(f"models:/{NAME}@best")
