"""The parts of a submission: names of versions, order and pods of tasks, times."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kfp_server import WORKFLOW, node_id

from latentflow import __version__
from latentflow.errors import LatentflowError, ParamsError
from latentflow.params import load
from latentflow.registry.lineage import git_state
from pipelines.configuration import PARAMS
from pipelines.submission import packages
from pipelines.submission.arguments import leaves, parse_field
from pipelines.submission.packages import Package
from pipelines.submission.schedule import seconds
from pipelines.submission.tasks import attempt_id, pod_names, tasks_of

COMMIT = "4f200c8a1b2c3d4e5f60718293a4b5c6d7e8f901"


def test_a_version_is_named_by_what_decides_its_package() -> None:
    package = Package("text", COMMIT, dirty=False)
    digest = package.digest[:8]
    assert package.version == "4f200c8a1b2c"
    assert Package("text", COMMIT, dirty=True).version == f"4f200c8a1b2c-dirty-{digest}"
    assert Package("text", COMMIT, True, ("cluster",)).version == f"4f200c8a1b2c-dirty-cluster-{digest}"
    assert Package("text", "", dirty=False).version == f"v{__version__}-{digest}"
    assert "no git commit" in Package("text", "", dirty=False).description
    assert "with changes" in Package("text", COMMIT, dirty=True).description
    assert package.same_package(package.description)
    assert not package.same_package(Package("other", COMMIT, dirty=False).description)
    assert not package.same_package(None)


def test_the_state_of_a_repository(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=x", "-c", "user.email=x@y.z"]
        done = subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert git_state(tmp_path / "nowhere") == {}
    git("init", "-q")
    (tmp_path / "file").write_text("a")
    git("add", ".")
    git("commit", "-qm", "first")
    assert git_state(tmp_path) == {"git_commit": git("rev-parse", "HEAD"), "git_dirty": "false"}
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path)["git_dirty"] == "true"


def test_a_pipeline_that_there_is_not_is_named() -> None:
    with pytest.raises(LatentflowError, match="--pipeline gone: choose one of training, fine_tune"):
        packages.build("gone")


def test_a_cluster_s_options_make_a_package_of_their_own(tmp_path: Path) -> None:
    options = tmp_path / "cluster.yaml"
    options.write_text("secret: another")
    package = packages.build(cluster=options)
    assert "secretName: another" in package.text
    assert "-cluster-" in package.version
    options.write_text("secretz: another")
    with pytest.raises(LatentflowError, match="secretz: unknown parameter"):
        packages.build(cluster=options)


def test_tasks_are_in_an_order_in_which_they_can_run() -> None:
    names = packages.task_names(packages.build().spec)
    before, training, after = names[:5], names[5:7], names[7:]
    assert before == ["prerequisites", "ingest", "autoencoder", "encode", "merge"]
    assert set(training) == {"train", "train-distributed"}
    assert after == ["evaluate", "register"]


def test_every_parameter_is_a_leaf_under_its_name() -> None:
    found = leaves(load(PARAMS))
    assert found["train.adapter.rank"] == 16
    assert found["register.name"] == "latentflow-emoji"
    assert found["train.ideas"] == {}
    assert not any(name.startswith("register_") for name in found)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("7", "STRING", "7"),
        ("7", "NUMBER_INTEGER", 7),
        ("7", "NUMBER_DOUBLE", 7.0),
        ("1e-3", "NUMBER_DOUBLE", 0.001),
        ("true", "BOOLEAN", True),
        ('{"a": 1}', "STRUCT", {"a": 1}),
        ("[1, 2]", "LIST", [1, 2]),
    ],
)
def test_a_field_gets_its_type(text: str, kind: str, value: Any) -> None:
    found = parse_field("x", text, kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"), [("true", "NUMBER_INTEGER"), ("yes?", "BOOLEAN"), ("{", "STRUCT"), ("x", "NUMBER_DOUBLE")]
)
def test_a_field_of_another_type_is_refused(text: str, kind: str) -> None:
    with pytest.raises(ParamsError, match="--field x: expected"):
        parse_field("x", text, kind)


def test_an_attempts_id_follows_from_its_tasks() -> None:
    name = f"{WORKFLOW}.root.train.executor"
    assert attempt_id(node_id(name), 12) == node_id(f"{name}(12)")


def test_pods_of_attempts_come_before_the_executors_own() -> None:
    name = f"{WORKFLOW}.root.train.executor"
    attempts = [node_id(f"{name}({number})") for number in range(2)]
    numbers = [attempt.rpartition("-")[2] for attempt in attempts]
    assert pod_names(node_id(name), [*attempts, "other-1"])[:4] == [
        f"{WORKFLOW}-retry-system-container-impl-{numbers[1]}",
        attempts[1],
        f"{WORKFLOW}-retry-system-container-impl-{numbers[0]}",
        attempts[0],
    ]
    assert pod_names("a-name-without-a-number", attempts)[-1] == "a-name-without-a-number"


def test_a_run_without_details_waits() -> None:
    (task,) = tasks_of(SimpleNamespace(run_details=None), ["train"])
    assert (task.name, task.state, task.started) == ("train", "waiting", None)
    assert tasks_of(SimpleNamespace(run_details=None)) == []


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86400)])
def test_times(text: str, value: int) -> None:
    assert seconds(text, "--timeout") == value


@pytest.mark.parametrize("text", ["", "0", "soon", "1.5h", "-3m", "2 weeks"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(LatentflowError, match=r"--timeout .*: expected a time such as 90s"):
        seconds(text, "--timeout")
