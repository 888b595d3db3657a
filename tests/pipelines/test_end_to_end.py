"""The whole pipeline, tiny, in a clone of the project: through DVC, again, changed, pulled, and through Kubeflow."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from latentflow.errors import LatentflowError
from latentflow.params import STEP_INPUTS
from pipelines import local
from pipelines.clone import Clone, clone_project
from pipelines.configuration import PARAMS, PROJECT, read_overrides


class Project(Clone):
    """A clone with the tiny parameters in which `dvc repro` has run once."""

    def latentflow(self, *arguments: str) -> str:
        return self.run([sys.executable, "-m", "latentflow.cli", *arguments])

    def set(self, name: str, value: object) -> None:
        path = self.folder / "params.yaml"
        values = yaml.safe_load(path.read_text())
        section, field = name.split(".")
        values[section][field] = value
        path.write_text(yaml.safe_dump(values, sort_keys=False))

    def registration(self) -> dict[str, str]:
        manifest: dict[str, str] = json.loads((self.folder / "data/registration/manifest.json").read_text())
        return manifest


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("end-to-end")
    cloned = clone_project(root, read_overrides(local.TINY))
    made = Project(cloned.folder, cloned.store)
    assert stages_run(made.dvc("repro")) == list(STEP_INPUTS)
    yield made
    # What the runs leave behind is a gigabyte, mostly copies of the text encoder.
    shutil.rmtree(root)


def test_the_same_again_asks_only_the_registry(project: Project) -> None:
    before = project.registration()
    assert (before["version"], before["alias"]) == ("1", "champion")
    assert stages_run(project.dvc("repro")) == ["register"]
    assert project.registration() == before
    changed = subprocess.run(
        ["git", "status", "--porcelain"], cwd=project.folder, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(changed) <= {"M", "??", "params.yaml", "dvc.lock"}


def test_metrics_and_plots_are_declared(project: Project) -> None:
    shown = json.loads(project.dvc("metrics", "show", "--json"))[""]["data"]
    assert {"data/autoencoder/metrics.json", "data/model/metrics.json", "data/evaluation/metrics.json"} <= set(shown)
    project.dvc("plots", "show", "--out", "plots")
    page = (project.folder / "plots" / "index.html").read_text()
    assert "validation_by_sigma" in page or "held-out loss by sigma" in page
    shutil.rmtree(project.folder / "plots")


def clone(project: Project, name: str) -> Project:
    """Another machine's clone of the project's commit, without data and with a work store of its own."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "--all"], ["commit", "--quiet", "--allow-empty", "--message", "locked"]):
        subprocess.run(["git", *identity, *command], cwd=project.folder, check=True)
    other = Project(project.folder.parent / name, project.folder.parent / f"{name}-store")
    subprocess.run(["git", "clone", "--quiet", project.folder, other.folder], check=True)
    return other


def digests(folder: Path) -> dict[str, str]:
    return {path.parent.name: json.loads(path.read_text())["digest"] for path in sorted(folder.glob("*/manifest.json"))}


def test_another_clone_pulls_what_was_pushed(project: Project) -> None:
    remote = project.folder.parent / "remote"
    project.dvc("remote", "add", "--default", "team", str(remote))
    project.dvc("push")
    # Records, VAE, encoded set, model and evaluation are few files, however many pictures they hold.
    assert len([path for path in remote.rglob("*") if path.is_file()]) < 120
    pulled, repeated = clone(project, "pulled"), clone(project, "repeated")
    pulled.dvc("pull")
    assert stages_run(repeated.dvc("repro", "--pull")) == ["register"]
    expected = digests(project.folder / "data")
    for other in (pulled, repeated):
        found = digests(other.folder / "data")
        assert {"records", "encoded", "model", "evaluation"} <= set(found)
        assert found == {name: expected[name] for name in found}
        shutil.rmtree(other.folder)


def test_a_remote_in_s3(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed")
    server_room = pytest.importorskip("moto.server", reason="moto is not installed")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    server = server_room.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        address = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="team")
        project.dvc("remote", "add", "--force", "bucket", "s3://team/latentflow")
        project.dvc("remote", "modify", "bucket", "endpointurl", address)
        project.dvc("push", "--remote", "bucket")
        other = clone(project, "from-s3")
        other.dvc("pull", "--remote", "bucket")
        assert digests(other.folder / "data").items() <= digests(project.folder / "data").items()
        assert (other.folder / "data/encoded/manifest.json").is_file()
        shutil.rmtree(other.folder)
    finally:
        server.stop()


def test_three_ways_give_the_same_picture(project: Project) -> None:
    from PIL import Image

    name = "models:/latentflow-tiny@champion"
    project.latentflow("generate", "--model", name, "--prompt", "red heart", "--seed", "3", "--out", "a.png")
    project.latentflow("pull", name, "--out", "pulled")
    through_mlflow = (
        "import base64, mlflow\n"
        f"model = mlflow.pyfunc.load_model('{name}')\n"
        "print('PNG', model.predict({'prompt': ['red heart']}, params={'seed': 3})['image'][0])\n"
    )
    through_diffusers = (
        "import json, torch\n"
        "from diffusers import DiffusionPipeline\n"
        "defaults = json.load(open('pulled/generation.json'))\n"
        "pipe = DiffusionPipeline.from_pretrained('pulled')\n"
        "picture = pipe('red heart', num_inference_steps=defaults['steps'], guidance_scale=defaults['guidance'],\n"
        "    height=defaults['height'], width=defaults['width'],\n"
        "    generator=torch.Generator('cpu').manual_seed(3), **defaults['call']).images[0]\n"
        "picture.save('c.png')\n"
    )
    uri = f"sqlite:///{project.folder / 'mlruns/mlflow.db'}"
    answer = project.run(
        [sys.executable, "-c", f"import os; os.environ['MLFLOW_TRACKING_URI'] = {uri!r}\n" + through_mlflow]
    )
    project.run([sys.executable, "-c", through_diffusers])
    encoded = re.search(r"^PNG (\S+)$", answer, re.MULTILINE)
    assert encoded
    pictures = [
        Image.open(project.folder / "a.png"),
        Image.open(io.BytesIO(base64.b64decode(encoded[1]))),
        Image.open(project.folder / "c.png"),
    ]
    first, second, third = (picture.convert("RGB").tobytes() for picture in pictures)
    assert first == second == third
    for name in ("a.png", "c.png"):
        (project.folder / name).unlink()
    shutil.rmtree(project.folder / "pulled")


def test_another_guidance_reruns_evaluation_only_and_coming_back_finds_its_version(project: Project) -> None:
    given = yaml.safe_load((project.folder / "params.yaml").read_text())["evaluate"]["guidance"]
    project.set("evaluate.guidance", given + 2)
    assert stages_run(project.dvc("repro")) == ["evaluate", "register"]
    changed = project.registration()
    assert (changed["version"], changed["alias"]) == ("2", "challenger")
    project.set("evaluate.guidance", given)
    # DVC has seen these inputs; without `persist` its run cache would skip the command and with it the registry.
    assert stages_run(project.dvc("repro")) == ["evaluate", "register"]
    assert project.registration()["version"] == "1"


def test_a_definition_that_exists_nowhere_else(project: Project) -> None:
    page = (PROJECT / "docs" / "theory.md").read_text()
    (code,) = re.findall(r"```python\n(# my_definitions.py.*?)```", page, re.DOTALL)
    (project.folder / "my_definitions.py").write_text(code)
    own = ("--set", "diffusion.definition=my_definitions:parabola", "--set", "evaluate.sampler=heun")
    project.latentflow("train", *own, "--out", "own/model")
    project.latentflow("evaluate", *own, "--model", "own/model", "--out", "own/evaluation")
    judged = ("--model", "own/model", "--evaluation", "own/evaluation")
    project.latentflow("register", *judged, "--out", "own/registration")
    (project.folder / "my_definitions.py").unlink()
    version = json.loads((project.folder / "own/registration/manifest.json").read_text())["version"]
    wanted = ("--model", f"models:/latentflow-tiny/{version}", "--prompt", "red heart", "--out", "own/heart.png")
    with pytest.raises(LatentflowError, match="--trust-code"):
        project.latentflow("generate", *wanted)
    project.latentflow("generate", *wanted, "--trust-code")
    assert (project.folder / "own/heart.png").is_file()
    shutil.rmtree(project.folder / "own")


@pytest.mark.timeout(900)
def test_dvc_and_kubeflow_give_equal_digests(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "GIT_TOKEN", "HF_TOKEN"):
        monkeypatch.setenv(name, f"hidden-{name}")
    # The package's form keeps the project's defaults; the tiny values come in as overrides, as a user types them.
    tiny = (project.folder / "params.yaml").read_text()
    shutil.copy2(PARAMS, project.folder / "params.yaml")
    root = project.folder.parent / "kubeflow"
    kubeflow = Clone(project.folder, project.folder.parent / "kubeflow-store")
    said = kubeflow.run([sys.executable, "-m", "pipelines.local", "--root", str(root), "--encode-parts", "3"])
    (project.folder / "params.yaml").write_text(tiny)

    (outputs,) = (root / "outputs").iterdir()
    assert local.differences(local.collect(outputs), project.folder / "data") == []
    # Whoever runs it has secrets in the environment; neither the logs nor anything that was written holds one.
    assert "hidden-" not in said
    for path in (path for folder in (root, kubeflow.store) for path in folder.rglob("*") if path.is_file()):
        assert b"hidden-" not in path.read_bytes(), path
