"""What the tasks of a local run are given when each is a container of the images, as a cluster would run them."""

import codecs
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from docker import DockerClient, from_env
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import Mount
from kfp import local
from kfp.local import docker_task_handler

from latentflow.cluster.options import SECRET_VARIABLES
from latentflow.errors import LatentflowError

# A container takes from this process's environment what a pod takes from the Secret, and the number of threads.
PASSED_ON = (*SECRET_VARIABLES, "OMP_NUM_THREADS")

# Containers carry the run's id under this label.
RUN_LABEL = "latentflow.run"


@contextmanager
def engine_with(images: Iterable[str]) -> Iterator[DockerClient]:
    """The Docker engine; raises LatentflowError when none answers or an image is not there."""
    try:
        client = from_env()
        client.ping()
    except DockerException as error:
        raise LatentflowError(
            f"No Docker engine answers ({error}): start one, or leave out --docker to run the tasks as processes."
        ) from None
    try:
        for image in images:
            try:
                client.images.get(image)
            except ImageNotFound:
                raise LatentflowError(f"There is no image {image} here: `make images` builds both.") from None
        yield client
    finally:
        client.close()


@contextmanager
def container_runner(
    client: DockerClient, root: Path, folders: Iterable[Path], tracking_uri: str
) -> Iterator[local.DockerRunner]:
    """kfp's runner for containers that work in ``root`` and see it and ``folders`` (read-only) at the same paths.

    Work store and whatever else a task keeps in its current folder lie in ``root`` and outlive the container. No
    container runs as root, and none is left at the end.
    """
    run_id = uuid4().hex
    seen = {str(root): False} | {str(folder): True for folder in folders}
    theirs, docker_task_handler.run_docker_container = docker_task_handler.run_docker_container, run_container
    try:
        yield local.DockerRunner(
            # Servers on this machine's own address (MLflow, an object store) are a task's, too.
            network_mode="host",
            user=_user(root),
            working_dir=str(root),
            mounts=[Mount(path, path, type="bind", read_only=read_only) for path, read_only in seen.items()],
            environment=_environment(root, tracking_uri),
            labels={RUN_LABEL: run_id},
            # Loader processes hand their batches over in shared memory, of which Docker gives 64 MB.
            shm_size="1g",
            init=True,
        )
    finally:
        docker_task_handler.run_docker_container = theirs
        for container in client.containers.list(filters={"label": f"{RUN_LABEL}={run_id}"}):
            container.remove(force=True)


def run_container(
    client: DockerClient, image: str, command: list[str], volumes: Mapping[str, Any], **given: Any
) -> int:
    """Runs a task's container, prints its log, removes it and returns its exit code.

    Stands in for kfp's function of the same signature, whose containers remove themselves: one that is gone before its
    exit code is asked for counts as a success there (1 of 12 that failed, kfp 2.17.0 with Docker 20.10).
    """
    try:
        container = client.containers.run(image=image, command=command, volumes=volumes, detach=True, **given)
    except APIError as error:
        raise LatentflowError(f"The Docker engine starts no container of {image}: {error.explanation}.") from None
    try:
        # A chunk of the log may end inside a character.
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for chunk in container.logs(stream=True):
            print(decode(chunk), end="", flush=True)
        code: int = container.wait()["StatusCode"]
        return code
    finally:
        # When the whole run is stopped, container_runner may have been first.
        with suppress(NotFound):
            container.remove(force=True)


def _user(root: Path) -> str | None:
    """Whoever runs this, in group 0; root's containers run as the image's own user, to whom ``root`` is opened."""
    if os.getuid():
        return f"{os.getuid()}:0"
    for folder in (root, *(path for path in root.iterdir() if path.is_dir())):
        os.chown(folder, -1, 0)
        folder.chmod(folder.stat().st_mode | 0o070)
    return None


def _environment(root: Path, tracking_uri: str) -> dict[str, str]:
    given = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    return given | {"LATENTFLOW_STORE": str(root / ".latentflow" / "store"), "MLFLOW_TRACKING_URI": tracking_uri}
