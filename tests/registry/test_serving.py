"""A registered model behind MLflow's own server and its batch scoring: right pictures, refusals in a sentence."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow_servers import free_port
from PIL import Image
from registry_helpers import NAME

from latentflow.generation.drawing import Model
from latentflow.generation.orders import Dials, Order
from latentflow.registry.pulling import Pulled, pull

pytestmark = pytest.mark.slow
JSON = "application/json"


def mlflow_environment(project: Path) -> dict[str, str]:
    """One thread, as the pictures that are compared with are drawn; MLflow finds uvicorn on the path."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MLFLOW_TRACKING_URI": f"sqlite:///{project / 'mlruns' / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }


@dataclass(frozen=True)
class Served:
    """A running `mlflow models serve`, and the same model here."""

    address: str
    model: Model

    def post(self, body: bytes, content_type: str | None = JSON) -> tuple[int, str]:
        request = urllib.request.Request(f"{self.address}/invocations", data=body)
        if content_type:
            request.add_header("Content-Type", content_type)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, **body: Any) -> tuple[int, dict[str, Any]]:
        status, text = self.post(json.dumps(body).encode())
        return status, json.loads(text)

    def expected(self, prompt: str, seed: int, negative: str = "", dials: Dials | None = None) -> np.ndarray:
        return np.asarray(self.model.draw(Order(prompt, seed, negative), dials or Dials()))


def decoded(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


@contextmanager
def running(command: list[str], project: Path, folder: Path) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """A server that ``command`` starts on a free port, and its address, once it answers."""
    port = free_port()
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, "--port", str(port)],
            cwd=folder,
            env=mlflow_environment(project) | {"LATENTFLOW_STORE": str(folder / "work")},
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=1).close()
                break
            except OSError:
                time.sleep(0.5)
        yield address, process
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def model(registered_project: Path, drawn_in_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The registered model, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_environment(registered_project)["MLFLOW_TRACKING_URI"])
        pulled = pull(f"models:/{NAME}@champion", tmp_path_factory.mktemp("served") / "pulled")
    return Model(Pulled(NAME, pulled), device="cpu")


@pytest.fixture(scope="module")
def served(registered_project: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    command = ["mlflow", "models", "serve", "-m", f"models:/{NAME}@champion", "--env-manager", "local"]
    with running(command, registered_project, tmp_path_factory.mktemp("mlflow")) as (address, _):
        yield Served(address, model)


def test_sixteen_at_once_each_get_their_own_picture(served: Served) -> None:
    asked = [("red heart", seed) if seed % 2 else ("blue cat", seed) for seed in range(16)]

    def one(wish: tuple[str, int]) -> np.ndarray:
        status, answer = served.ask(dataframe_records=[{"prompt": wish[0]}], params={"seed": wish[1]})
        assert status == 200, answer
        return decoded(answer["predictions"][0]["image"])

    with ThreadPoolExecutor(16) as clients:
        pictures = list(clients.map(one, asked))
    for (prompt, seed), picture in zip(asked, pictures, strict=True):
        assert np.array_equal(picture, served.expected(prompt, seed)), (prompt, seed)
    assert len({picture.tobytes() for picture in pictures}) == 16


def test_different_samplers_and_sizes_at_once_do_not_mix(served: Served) -> None:
    dials = [Dials(sampler=name, steps=steps) for name in ("euler", "heun", "unipc") for steps in (2, 5)]
    dials += [Dials(width=32), Dials(height=24, width=16), Dials(guidance=1.0)]

    def one(dial: Dials) -> np.ndarray:
        params = dial.model_dump(exclude_none=True) | {"seed": 5}
        status, answer = served.ask(dataframe_records=[{"prompt": "red heart"}], params=params)
        assert status == 200, answer
        return decoded(answer["predictions"][0]["image"])

    with ThreadPoolExecutor(9) as clients:
        pictures = list(clients.map(one, dials))
    for dial, picture in zip(dials, pictures, strict=True):
        assert np.array_equal(picture, served.expected("red heart", 5, dials=dial)), dial


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_records": [{"prompt": "cat"}, {"prompt": "red heart", "negative_prompt": "green dog"}]},
        {
            "dataframe_split": {
                "columns": ["negative_prompt", "prompt"],
                "data": [[None, "cat"], ["green dog", "red heart"]],
            }
        },
        {
            "instances": [
                {"prompt": "cat", "negative_prompt": ""},
                {"prompt": "red heart", "negative_prompt": "green dog"},
            ]
        },
        {"inputs": {"prompt": ["cat", "red heart"], "negative_prompt": ["", "green dog"]}},
    ],
    ids=lambda body: next(iter(body)),
)
def test_every_form_of_request_gives_a_picture_per_row(served: Served, body: dict[str, Any]) -> None:
    status, answer = served.ask(**body, params={"seed": 2})
    assert status == 200, answer
    first, second = (decoded(row["image"]) for row in answer["predictions"])
    assert np.array_equal(first, served.expected("cat", 2))
    assert np.array_equal(second, served.expected("red heart", 2, "green dog"))


def test_csv_is_drawn_with_the_model_s_own_dials(served: Served) -> None:
    status, text = served.post(b"prompt\nred heart\n", "text/csv")
    assert status == 200, text
    assert np.array_equal(decoded(json.loads(text)["predictions"][0]["image"]), served.expected("red heart", 0))


ROW = {"dataframe_records": [{"prompt": "red heart"}]}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (ROW | {"params": {"sead": 7}}, "unknown parameter sead: this model takes seed, steps, guidance"),
        (ROW | {"params": {"steps": 0}}, "steps is 0: it must be at least 1 and at most 1000."),
        (ROW | {"params": {"steps": 10**9}}, "steps is 1000000000: it must be at least 1"),
        (ROW | {"params": {"seed": -1}}, "seed is -1"),
        (ROW | {"params": {"steps": "many"}}, "many"),
        (ROW | {"params": {"sampler": "eular"}}, "sampler is 'eular': it must be one of euler, ancestral"),
        (ROW | {"params": {"width": 20}}, "divisible by 8"),
        (ROW | {"params": {"height": 4096}}, "height is 4096: it must be at least 1 and at most 64."),
        (ROW | {"params": [1]}, "Parameters must be a dictionary"),
        ({"dataframe_records": [{"promt": "red heart"}]}, "missing inputs ['prompt']"),
        ({"dataframe_records": [{"prompt": "a", "negativ": "b"}]}, "unknown column negativ: this model takes prompt"),
        ({"inputs": {"prompt": ["a"], "negativ": ["b"]}}, "unknown column negativ"),
        ({"dataframe_records": [{"prompt": None}]}, "prompt 0 is None: it must be text."),
        ({"dataframe_records": [{"prompt": 7}]}, "prompt"),
        ({"prompts": ["red heart"]}, "dataframe_split"),
        (
            {"dataframe_records": [{"prompt": "a", "negative_prompt": "b"}], "params": {"guidance": 1}},
            "a negative prompt acts through guidance above 1, and guidance is 1.0.",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_bad_request_is_answered_400_with_a_sentence(served: Served, body: dict[str, Any], sentence: str) -> None:
    status, answer = served.ask(**body)
    assert (status, sentence in answer["message"]) == (400, True), answer
    assert "stack_trace" not in answer


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [(b"{not json", JSON, 400), (b"[1]", JSON, 400), (b"\xff", JSON, 400), (b"x", "text/plain", 415)],
)
def test_what_is_no_request_at_all(served: Served, body: bytes, content_type: str, status: int) -> None:
    answered, text = served.post(body, content_type)
    assert (answered, bool(text)) == (status, True)


def test_the_server_draws_on_after_bad_requests(served: Served) -> None:
    served.ask(**ROW, params={"steps": 0})
    status, answer = served.ask(**ROW, params={"seed": 11})
    assert status == 200
    assert np.array_equal(decoded(answer["predictions"][0]["image"]), served.expected("red heart", 11))


@pytest.mark.parametrize(
    ("name", "text", "seed"),
    [
        ("prompts.csv", "prompt,negative_prompt\nred heart,green dog\ncat,\n", 0),
        (
            "prompts.json",
            json.dumps(
                {
                    "dataframe_records": [{"prompt": "red heart", "negative_prompt": "green dog"}, {"prompt": "cat"}],
                    "params": {"seed": 9},
                }
            ),
            9,
        ),
    ],
)
def test_batch_scoring(
    served: Served, registered_project: Path, tmp_path: Path, name: str, text: str, seed: int
) -> None:
    source, out = tmp_path / name, tmp_path / "pictures.json"
    source.write_text(text)
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", f"models:/{NAME}@champion"]
    command += ["--env-manager", "local", "-i", str(source), "-o", str(out), "-t", source.suffix[1:]]
    done = subprocess.run(
        command, cwd=tmp_path, env=mlflow_environment(registered_project), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (decoded(row["image"]) for row in json.loads(out.read_text())["predictions"])
    assert np.array_equal(first, served.expected("red heart", seed, "green dog"))
    assert np.array_equal(second, served.expected("cat", seed))


def test_latentflow_serve_answers_the_same_and_ends_when_asked(
    registered_project: Path, model: Model, tmp_path: Path
) -> None:
    command = ["latentflow.cli", "serve", f"models:/{NAME}@champion", "--device", "cpu"]
    with running(command, registered_project, tmp_path / "served") as (address, process):
        served = Served(address, model)
        status, answer = served.ask(**ROW, params={"seed": 4})
        assert status == 200, answer
        assert np.array_equal(decoded(answer["predictions"][0]["image"]), served.expected("red heart", 4))
        status, answer = served.ask(**ROW, params={"sead": 4})
        assert (status, "unknown parameter sead" in answer["message"]) == (400, True)
        request = urllib.request.Request(f"{address}/invocations", data=b"{}", headers={"Content-Type": ""})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 400
        assert "Content-Type is missing" in json.loads(refused.value.read())["message"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([f"models:/{NAME}@chamipon"], "has no alias 'chamipon'; its aliases: @champion"),
        (["nowhere"], "nowhere holds no MLmodel: give models:/<name>@<alias>"),
        ([f"models:/{NAME}/1", "--dtype", "float8"], "dtype is 'float8': it must be one of float32"),
    ],
)
def test_what_cannot_be_served_is_said_before_the_port_opens(
    registered_project: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "latentflow.cli", "serve", *arguments],
        cwd=tmp_path,
        env=mlflow_environment(registered_project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, sentence in done.stderr) == (1, True), done.stderr
