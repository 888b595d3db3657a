"""What a local run in containers prepares before a container starts: the images filled in, refusals, environment."""

from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from latentflow.errors import LatentflowError
from pipelines import local, local_package

containers = pytest.importorskip("pipelines.containers", reason="the Python package docker is not installed")

IMAGES = {"image_cpu": "registry/cpu@sha256:aa", "image_gpu": "registry/gpu:1"}


@dsl.component(base_image="plain:1", install_kfp_package=False)  # type: ignore[untyped-decorator]
def say(part: str) -> str:
    return part


@dsl.pipeline(name="inner")  # type: ignore[untyped-decorator]
def inner(image_cpu: str, parts: list[str]) -> None:
    with dsl.ParallelFor(parts) as part:
        say(part=part).set_container_image(image_cpu)


@dsl.pipeline(name="outer")  # type: ignore[untyped-decorator]
def outer(image_cpu: str = "c", image_gpu: str = "g", other: str = "o", parts: list[str] = ["a"]) -> None:  # noqa: B006
    say(part="plain")
    say(part="gpu").set_container_image(image_gpu).set_retry(2, backoff_duration="60s", backoff_factor=2.0)
    inner(image_cpu=image_cpu, parts=parts)


@dsl.pipeline(name="strange")  # type: ignore[untyped-decorator]
def strange(other: str = "o") -> None:
    say(part="other").set_container_image(other)


def compiled(pipeline: Any, folder: Path) -> str:
    compiler.Compiler().compile(pipeline, str(folder / "package.yaml"))
    return (folder / "package.yaml").read_text()


def test_images_are_filled_in_and_retries_wait_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = compiled(outer, tmp_path)
    monkeypatch.setattr(local_package, "package", lambda _: text)
    spec = local_package.local_pipeline("training", IMAGES).pipeline_spec
    images = [executor["container"]["image"] for executor in spec.deployment_spec["executors"].values()]
    assert sorted(images) == ["plain:1", "registry/cpu@sha256:aa", "registry/gpu:1"]
    defaults = {
        name: field.default_value.string_value for name, field in spec.root.input_definitions.parameters.items()
    }
    assert {name: defaults[name] for name in (*IMAGES, "other")} == IMAGES | {"other": "o"}
    policies = [task.retry_policy for task in spec.root.dag.tasks.values() if task.HasField("retry_policy")]
    assert [(policy.max_retry_count, policy.backoff_duration.seconds) for policy in policies] == [(2, 0)]


def test_an_image_of_another_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = compiled(strange, tmp_path)
    monkeypatch.setattr(local_package, "package", lambda _: text)
    with pytest.raises(LatentflowError, match="the input other, which is none of image_cpu, image_gpu"):
        local_package.local_pipeline("training", IMAGES)


def test_the_projects_package_has_images_in_all_tasks() -> None:
    spec = local_package.local_pipeline("training", IMAGES).pipeline_spec
    images = {executor["container"]["image"] for executor in spec.deployment_spec["executors"].values()}
    assert len(images) == 2
    assert not any("{{" in image for image in images)


def test_without_an_engine_it_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert local.main(["--docker", "--root", str(tmp_path / "root")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No Docker engine answers" in said
    assert "--docker" in said
    # Nor was an MLflow server started for nothing.
    assert not (tmp_path / "root" / "mlruns").exists()


def test_only_what_a_pod_would_be_given_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "given")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("LATENTFLOW_STORE", "/elsewhere")
    given = containers._environment(tmp_path, "http://127.0.0.1:5000")
    assert given["AWS_ACCESS_KEY_ID"] == "given"
    assert given["LATENTFLOW_STORE"] == str(tmp_path / ".latentflow/store")
    assert given["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert set(given) <= {*containers.PASSED_ON, "LATENTFLOW_STORE"}


@pytest.mark.parametrize("name", ["training", "fine_tune"])
def test_a_local_package_trains_in_the_branch_of_one_process(name: str) -> None:
    spec = local_package.local_pipeline(name).pipeline_spec
    for component in spec.components.values():
        for output in component.dag.outputs.artifacts.values():
            assert len(output.artifact_selectors) == 1
