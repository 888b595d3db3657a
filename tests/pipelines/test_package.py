"""The compiled package: fresh, and acceptable to a backend as far as that can be told without one."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines import compile as compiling
from pipelines.configuration import defaults, dotted, lookup
from pipelines.training import EXTRA_FIELDS, SECRET, SECRET_VARIABLES, form_fields

STEPS = ("ingest", "autoencoder", "encode", "merge", "train", "evaluate", "register")
GROUPS = ("encode-in-parts", "for-loop-1")


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(compiling.PACKAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def spec(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return documents[0]


def tasks(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """(definitions of the parent's inputs, task name, task) for every task of every graph."""
    for component in (spec["root"], *spec["components"].values()):
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            yield component.get("inputDefinitions", {}), name, task


def test_committed_package_is_what_the_sources_give() -> None:
    assert compiling.package() == compiling.PACKAGE.read_text(encoding="utf-8"), "run `python -m pipelines.compile`"


def test_check_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiling.main(["--check"]) == 0
    stale = tmp_path / compiling.PACKAGE.name
    stale.write_text("stale")
    monkeypatch.setattr(compiling, "PACKAGE", stale)
    monkeypatch.setattr(compiling, "PROJECT", tmp_path)
    assert compiling.main(["--check"]) == 1
    assert "python -m pipelines.compile" in capsys.readouterr().err


def test_one_pipeline_and_one_platform_document_that_parse(documents: list[dict[str, Any]]) -> None:
    pipeline, platform = documents
    parsed = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert parsed.schema_version == "2.1.0"
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,127}", parsed.pipeline_info.name)
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_every_task_input_exists_in_its_parent(spec: dict[str, Any]) -> None:
    for defined, name, task in tasks(spec):
        inputs = task.get("inputs", {})
        for kind in ("parameters", "artifacts"):
            for value in inputs.get(kind, {}).values():
                if (parent := value.get("componentInputParameter") or value.get("componentInputArtifact")) is not None:
                    assert parent in defined.get(kind, {}), f"{name} takes {parent}, which its parent does not have"


def test_every_task_input_is_defined_by_its_component(spec: dict[str, Any]) -> None:
    for _, name, task in tasks(spec):
        defined = spec["components"][task["componentRef"]["name"]].get("inputDefinitions", {})
        for kind in ("parameters", "artifacts"):
            given = set(task.get("inputs", {}).get(kind, {}))
            assert given <= set(defined.get(kind, {})), name
            required = {key for key, item in defined.get(kind, {}).items() if not item.get("isOptional")}
            assert required - {task.get("parameterIterator", {}).get("itemInput")} <= given, name


def test_every_consumer_waits_for_its_producer(spec: dict[str, Any]) -> None:
    for _, name, task in tasks(spec):
        for kind in ("parameters", "artifacts"):
            for value in task.get("inputs", {}).get(kind, {}).values():
                produced = value.get("taskOutputParameter") or value.get("taskOutputArtifact")
                if produced:
                    assert produced["producerTask"] in task["dependentTasks"], name


def test_form_defaults_are_those_of_params_yaml(spec: dict[str, Any]) -> None:
    form = spec["root"]["inputDefinitions"]["parameters"]
    assert set(form) == {*form_fields(), *EXTRA_FIELDS}
    values = defaults()
    for field in form_fields():
        expected = lookup(values, dotted(field))
        assert form[field]["defaultValue"] == expected, f"{field} differs from params.yaml"
        kinds = {bool: "BOOLEAN", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", str: "STRING"}
        assert form[field]["parameterType"] == kinds[type(expected)]
    # The run form refuses a parameter without a default.
    assert all("defaultValue" in parameter for parameter in form.values())
    assert form["overrides"]["defaultValue"] == {}
    assert form["force_rerun"]["defaultValue"] == ""
    assert form["encode_parts"]["defaultValue"] == 1


def test_prerequisites_gets_every_field_and_all_defaults(spec: dict[str, Any]) -> None:
    given = spec["root"]["dag"]["tasks"]["prerequisites"]["inputs"]["parameters"]
    for field in form_fields():
        assert given[field] == {"componentInputParameter": field}
    assert given["defaults"]["runtimeValue"]["constant"] == defaults()


def test_caching_is_off_exactly_where_it_must_be(spec: dict[str, Any]) -> None:
    cached = {name for _, name, task in tasks(spec) if task.get("cachingOptions", {}).get("enableCache")}
    assert cached - set(GROUPS) == set(STEPS) - {"register"}


def test_uncached_prerequisites_emits_no_artifact(spec: dict[str, Any]) -> None:
    assert set(spec["components"]["comp-prerequisites"]["outputDefinitions"]) == {"parameters"}


def test_every_step_takes_the_rerun_token(spec: dict[str, Any]) -> None:
    steps = {name: task for _, name, task in tasks(spec) if name in STEPS}
    assert set(steps) == set(STEPS)
    for task in steps.values():
        (source,) = task["inputs"]["parameters"]["force_rerun"].values()
        assert source.endswith("force_rerun")


def test_every_part_of_the_encoding_is_a_task_of_its_own(spec: dict[str, Any]) -> None:
    (loop,) = [task for _, name, task in tasks(spec) if name == "for-loop-1"]
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--parts"}
    parts = spec["root"]["dag"]["tasks"]["encode-in-parts"]["inputs"]["parameters"]["parts"]
    assert parts["taskOutputParameter"] == {"outputParameterKey": "parts", "producerTask": "prerequisites"}
    for name in ("merge", "train", "evaluate"):
        shards = spec["components"][f"comp-{name}"]["inputDefinitions"]["artifacts"]["shards"]
        assert shards["isArtifactList"] is True


def test_only_train_asks_for_an_accelerator(spec: dict[str, Any]) -> None:
    asking = {
        name: executor["container"]["resources"]["accelerator"]
        for name, executor in spec["deploymentSpec"]["executors"].items()
        if "accelerator" in executor["container"].get("resources", {})
    }
    assert set(asking) == {"exec-train"}
    assert asking["exec-train"]["resourceType"] == "nvidia.com/gpu"


def test_secrets_are_names_only_and_optional(documents: list[dict[str, Any]]) -> None:
    executors = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == {f"exec-{step}" for step in STEPS}
    for executor in executors.values():
        (secret,) = executor["secretAsEnv"]
        assert secret["optional"] is True
        assert secret["secretName"] == SECRET
        assert {pair["envVar"] for pair in secret["keyToEnv"]} == set(SECRET_VARIABLES)
    # Nothing in the package sets a variable to a value.
    assert not any("env" in item["container"] for item in documents[0]["deploymentSpec"]["executors"].values())
