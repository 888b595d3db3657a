"""The serving image in a real container: a model from a registry at start, one that is mounted, and how it ends."""

import base64
import io
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mlflow_servers import Server, free_port
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
PROJECT = Path(__file__).parents[2]
BASE = "latentflow-cpu:0.1.0"
CODE = "/opt/latentflow/lib/python3.11/site-packages/latentflow"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def image() -> str:
    """The image on the base that is here; it runs this tree's code, which is mounted over the base's."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Docker engine answers")
    if not docker("images", "--quiet", BASE):
        pytest.skip(f"there is no image {BASE}: build containers/cpu first")
    name = "latentflow-serve:test"
    dockerfile = PROJECT / "containers" / "serve" / "Dockerfile"
    docker("build", "--build-arg", f"BASE_IMAGE={BASE}", "-f", str(dockerfile), "-t", name, str(dockerfile.parent))
    return name


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that keeps version 1 of `tiny`, with its artifacts."""
    sys.path.insert(0, str(PROJECT / "tests" / "registry"))
    from registry_helpers import INPUTS, write_evaluation, write_model
    from tiny import build_pipeline

    from latentflow.steps import register

    folder = tmp_path_factory.mktemp("registry")
    server = Server(folder, f"sqlite:///{folder / 'mlflow.db'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", server.uri)
        patch.setenv("LATENTFLOW_STORE", str(folder / "work"))
        server.start()
        model = write_model(folder / "model", build_pipeline(folder / "pipeline"))
        evaluation = write_evaluation(folder / "evaluation", "e" * 64, guidance=2.0)
        register.run(INPUTS, model, evaluation, folder / "registration")
        yield server.uri
    server.kill()


@contextmanager
def container(image: str, *options: str) -> Iterator[tuple[str, str]]:
    """A container as a cluster runs it, without a writable root; its name and its address once it answers."""
    name, port = f"latentflow-{uuid.uuid4().hex[:8]}", free_port()
    safe = ["--read-only", "--tmpfs", "/tmp", "--tmpfs", "/home/latentflow:uid=1000", "--cap-drop", "ALL"]
    code = ["--volume", f"{PROJECT / 'latentflow'}:{CODE}:ro", "--env", "OMP_NUM_THREADS=1"]
    command = ["latentflow", "serve", "--host", "127.0.0.1", "--port", str(port)]
    docker("run", "--detach", "--network", "host", "--name", name, *safe, *code, *options, image, *command)
    try:
        for _ in range(300):
            state = docker("inspect", "--format", "{{.State.Running}}", name).strip()
            assert state == "true", subprocess.run(["docker", "logs", name], capture_output=True, check=False)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=1).close()
                break
            except OSError:
                time.sleep(1)
        yield name, f"http://127.0.0.1:{port}"
    finally:
        docker("rm", "--force", name)


def picture(address: str) -> np.ndarray:
    body = json.dumps({"dataframe_records": [{"prompt": "red heart"}], "params": {"seed": 3}}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        image = json.loads(answer.read())["predictions"][0]["image"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))


def test_a_model_of_the_registry_and_one_that_is_mounted_draw_the_same(
    image: str, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentflow.registry import pulling

    from_registry = ["--env", f"MLFLOW_TRACKING_URI={registry}", "--env", "LATENTFLOW_MODEL=models:/tiny@champion"]
    with container(image, *from_registry) as (name, address):
        drawn = picture(address)
        assert docker("exec", name, "id", "-u").strip() == "1000"
        docker("stop", "--time", "60", name)
        # 137 would be a process that heard nothing and was killed.
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).strip() in ("0", "143")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path))
    folder = pulling.package("models:/tiny/1")
    for place in (folder, *folder.rglob("*")):
        place.chmod(place.stat().st_mode | 0o055)
    for place in list(tmp_path.rglob("*"))[:1] + list(tmp_path.parents)[:3]:
        place.chmod(0o755)
    with container(image, "--volume", f"{folder}:/mnt/models:ro") as (_, address):
        assert np.array_equal(picture(address), drawn)


def test_a_model_that_is_not_there_ends_the_container_with_a_sentence(image: str, registry: str) -> None:
    options = ["--env", f"MLFLOW_TRACKING_URI={registry}", "--env", "LATENTFLOW_MODEL=models:/tiny@chamipon"]
    code = ["--volume", f"{PROJECT / 'latentflow'}:{CODE}:ro"]
    command = ["docker", "run", "--rm", "--network", "host", *code, *options, image]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "no alias 'chamipon'" in done.stderr) == (1, True), done.stderr
