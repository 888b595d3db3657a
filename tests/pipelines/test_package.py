"""The compiled packages: fresh, and acceptable to a backend as far as that can be told without one."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from latentflow.cluster.options import SECRET_VARIABLES
from latentflow.errors import ParamsError
from pipelines import compile as compiling
from pipelines.cluster import Cluster
from pipelines.configuration import defaults, dotted, lookup
from pipelines.fine_tune import lora_defaults
from pipelines.training import EXTRA_FIELDS, form_fields

STEPS = ("ingest", "autoencoder", "encode", "merge", "train", "train-distributed", "evaluate", "register")
GPU_IMAGE, CPU_IMAGE = (f"{{{{$.inputs.parameters['pipelinechannel--image_{kind}']}}}}" for kind in ("gpu", "cpu"))
OPTIONS = """
secret: my-secret
image_pull_secrets: [pull]
image_pull_policy: Always
accelerator: amd.com/gpu
volumes: [{claim: shared, path: /mnt/shared}]
work_store: /mnt/shared/store
environment: {HTTPS_PROXY: "http://proxy:3128"}
job: {queue: gpus, memory: 64Gi}
pods:
  encode: {gpus: 1, retries: 7, timeout_seconds: 3600}
  train:
    memory_limit: 32Gi
    node_selector: {gpu: h200}
    tolerations: [{key: gpu, effect: NoSchedule}]
    shm_size: 16Gi
"""


def parsed(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


@pytest.fixture(scope="module", params=compiling.PIPELINES)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Each committed package in turn, for the rules that hold for any."""
    return parsed(compiling.PACKAGES[request.param].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def training() -> list[dict[str, Any]]:
    return parsed(compiling.PACKAGES["training"].read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def of_a_cluster(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The training package as a cluster with options of its own has it."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "cluster.yaml").write_text(OPTIONS)
    wanted = ["--cluster", str(folder / "cluster.yaml"), "--out", str(folder / "package.yaml")]
    assert compiling.main(wanted) == 0
    return parsed((folder / "package.yaml").read_text())


def tasks(spec: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, dict[str, Any]]]:
    """(definitions of the parent's inputs, task name, task) for every task of every graph."""
    for component in (spec["root"], *spec["components"].values()):
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            yield component.get("inputDefinitions", {}), name, task


def steps(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The tasks that are containers, by name."""
    return {
        name: task for _, name, task in tasks(spec) if "dag" not in spec["components"][task["componentRef"]["name"]]
    }


def executors(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the platform document says of each container."""
    found: dict[str, dict[str, Any]] = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return found


def container(documents: list[dict[str, Any]], step: str) -> dict[str, Any]:
    found: dict[str, Any] = documents[0]["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return found


@pytest.mark.parametrize("name", compiling.PIPELINES)
def test_committed_package_is_what_the_sources_give(name: str) -> None:
    committed = compiling.PACKAGES[name].read_text(encoding="utf-8")
    assert compiling.package(name) == committed, "run `python -m pipelines.compile`"


def test_check_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compiling.main(["--check"]) == 0
    stale = tmp_path / "training.yaml"
    stale.write_text("stale")
    monkeypatch.setitem(compiling.PACKAGES, "training", stale)
    monkeypatch.setattr(compiling, "PROJECT", tmp_path)
    assert compiling.main(["--check"]) == 1
    assert "training.yaml is not what the sources give: run `python -m pipelines.compile`" in capsys.readouterr().err


def test_one_pipeline_and_one_platform_document_that_parse(documents: list[dict[str, Any]]) -> None:
    pipeline, _platform = documents
    spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert spec.schema_version == "2.1.0"
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]{0,127}", spec.pipeline_info.name)
    json_format.ParseDict(documents[1], pipeline_spec_pb2.PlatformSpec())
    for executor in executors(documents).values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_every_task_input_exists_in_its_parent(documents: list[dict[str, Any]]) -> None:
    for defined, name, task in tasks(documents[0]):
        inputs = task.get("inputs", {})
        for kind in ("parameters", "artifacts"):
            for value in inputs.get(kind, {}).values():
                if (parent := value.get("componentInputParameter") or value.get("componentInputArtifact")) is not None:
                    assert parent in defined.get(kind, {}), f"{name} takes {parent}, which its parent does not have"


def test_every_task_input_is_defined_by_its_component(documents: list[dict[str, Any]]) -> None:
    for _, name, task in tasks(documents[0]):
        defined = documents[0]["components"][task["componentRef"]["name"]].get("inputDefinitions", {})
        for kind in ("parameters", "artifacts"):
            given = set(task.get("inputs", {}).get(kind, {}))
            # What an image or a resource is made of is handed to the task without being an argument of it.
            extra = given - set(defined.get(kind, {})) - {"base_image", "accelerator_count"}
            assert not [key for key in extra if not key.startswith("pipelinechannel--")], name
            required = {key for key, item in defined.get(kind, {}).items() if not item.get("isOptional")}
            assert required - {task.get("parameterIterator", {}).get("itemInput")} <= given, name


def test_every_placeholder_is_an_input_of_its_task(documents: list[dict[str, Any]]) -> None:
    spec = documents[0]
    for name, task in steps(spec).items():
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        described = spec["deploymentSpec"]["executors"][label]["container"]
        described = {key: described[key] for key in ("image", "resources") if key in described}
        for wanted in re.findall(r"inputs\.parameters\['([^']+)'\]", str(described).replace('"', "'")):
            assert wanted in task["inputs"]["parameters"], f"{name} asks for {wanted}"


def test_every_consumer_waits_for_its_producer(documents: list[dict[str, Any]]) -> None:
    for _, name, task in tasks(documents[0]):
        for kind in ("parameters", "artifacts"):
            for value in task.get("inputs", {}).get(kind, {}).values():
                produced = value.get("taskOutputParameter") or value.get("taskOutputArtifact")
                if produced:
                    assert produced["producerTask"] in task["dependentTasks"], name


def test_every_field_has_a_concrete_default(documents: list[dict[str, Any]]) -> None:
    # The run form refuses a parameter without a default.
    for field in documents[0]["root"]["inputDefinitions"]["parameters"].values():
        assert "defaultValue" in field


def test_form_defaults_are_those_of_params_yaml(training: list[dict[str, Any]]) -> None:
    form = training[0]["root"]["inputDefinitions"]["parameters"]
    assert set(form) == {*form_fields(), *EXTRA_FIELDS}
    values = defaults()
    for field in form_fields():
        expected = lookup(values, dotted(field))
        assert form[field]["defaultValue"] == expected, f"{field} differs from params.yaml"
        kinds = {bool: "BOOLEAN", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", str: "STRING"}
        assert form[field]["parameterType"] == kinds[type(expected)]
    assert form["overrides"]["defaultValue"] == {}
    assert form["storage"]["defaultValue"] == form["force_rerun"]["defaultValue"] == ""
    assert form["encode_parts"]["defaultValue"] == form["train_gpus"]["defaultValue"] == 1


def test_fine_tuning_has_the_same_defaults_but_for_its_adapter() -> None:
    form = parsed(compiling.PACKAGES["fine_tune"].read_text())[0]["root"]["inputDefinitions"]["parameters"]
    values = defaults()
    shared = set(form) & set(form_fields())
    assert {"train_steps", "train_learning_rate", "model_pretrained"} <= shared
    for field in shared:
        assert form[field]["defaultValue"] == lookup(values, dotted(field)), f"{field} differs from params.yaml"
    changed = lora_defaults()
    assert changed["train"]["adapter"].pop("kind") == "lora"
    del values["train"]["adapter"]["kind"]
    assert changed == values


def test_prerequisites_gets_every_field_and_all_defaults(training: list[dict[str, Any]]) -> None:
    given = training[0]["root"]["dag"]["tasks"]["prerequisites"]["inputs"]["parameters"]
    for field in form_fields():
        assert given[field] == {"componentInputParameter": field}
    assert given["defaults"]["runtimeValue"]["constant"] == defaults()


def test_caching_is_off_exactly_where_it_must_be(documents: list[dict[str, Any]]) -> None:
    uncached = {
        name for name, task in steps(documents[0]).items() if not task.get("cachingOptions", {}).get("enableCache")
    }
    assert uncached == {"prerequisites", "register"} & set(steps(documents[0]))


def test_uncached_prerequisites_emits_no_artifact(documents: list[dict[str, Any]]) -> None:
    assert set(documents[0]["components"]["comp-prerequisites"]["outputDefinitions"]) == {"parameters"}


def test_nothing_runs_before_the_prerequisites(documents: list[dict[str, Any]]) -> None:
    first = {name for name, task in documents[0]["root"]["dag"]["tasks"].items() if not task.get("dependentTasks")}
    assert first == {"prerequisites"}


def test_every_step_takes_the_rerun_token(training: list[dict[str, Any]]) -> None:
    found = {name: task for name, task in steps(training[0]).items() if name != "prerequisites"}
    assert set(found) == set(STEPS)
    for task in found.values():
        (source,) = task["inputs"]["parameters"]["force_rerun"].values()
        assert source.endswith("force_rerun")


def test_a_step_is_given_its_own_parameters_only(training: list[dict[str, Any]]) -> None:
    for name, task in steps(training[0]).items():
        if name == "prerequisites":
            continue
        source = next(iter(task["inputs"]["parameters"]["params"].values()))
        named = source["outputParameterKey"] if isinstance(source, dict) else source
        section = {"merge": "encode", "train-distributed": "train"}.get(name, name)
        assert named.removeprefix("pipelinechannel--prerequisites-") in (section, "pipelinechannel--params"), name


def test_the_data_s_revision_is_a_parameter_of_ingest(training: list[dict[str, Any]]) -> None:
    revision = training[0]["root"]["dag"]["tasks"]["ingest"]["inputs"]["parameters"]["revision"]
    assert revision["taskOutputParameter"] == {"outputParameterKey": "revision", "producerTask": "prerequisites"}


def test_every_part_of_the_encoding_is_a_task_of_its_own(training: list[dict[str, Any]]) -> None:
    spec = training[0]
    (loop,) = [task for _, name, task in tasks(spec) if name.startswith("for-loop")]
    assert loop["parameterIterator"]["items"] == {"inputParameter": "pipelinechannel--parts"}
    parts = spec["root"]["dag"]["tasks"]["encode-in-parts"]["inputs"]["parameters"]["parts"]
    assert parts["taskOutputParameter"] == {"outputParameterKey": "parts", "producerTask": "prerequisites"}
    for name in ("merge", "train", "evaluate"):
        shards = spec["components"][f"comp-{name}"]["inputDefinitions"]["artifacts"]["shards"]
        assert shards["isArtifactList"] is True


def test_one_process_trains_in_its_pod_and_several_in_a_job(documents: list[dict[str, Any]]) -> None:
    (branches,) = [
        component["dag"]["tasks"]
        for name, component in documents[0]["components"].items()
        if name.startswith("comp-condition-branches")
    ]
    conditions = [task["triggerPolicy"]["condition"] for task in branches.values()]
    assert conditions[0].endswith("-trainer'] == 'pod'")
    assert conditions[1].startswith("!(")


def test_images_are_inputs(documents: list[dict[str, Any]]) -> None:
    for name in steps(documents[0]):
        assert container(documents, name)["image"] == (GPU_IMAGE if name == "train" else CPU_IMAGE)


def test_only_train_asks_for_accelerators_and_as_many_as_the_form_says(documents: list[dict[str, Any]]) -> None:
    resources = {name: container(documents, name).get("resources", {}) for name in steps(documents[0])}
    assert [name for name, asked in resources.items() if "accelerator" in asked] == ["train"]
    asked = resources["train"]["accelerator"]
    assert asked["resourceType"] == "nvidia.com/gpu"
    assert asked["resourceCount"] == "{{$.inputs.parameters['pipelinechannel--train_gpus']}}"


def test_failed_pods_are_tried_again(documents: list[dict[str, Any]]) -> None:
    for name, task in steps(documents[0]).items():
        if name == "prerequisites":
            assert "retryPolicy" not in task
            assert executors(documents)["exec-prerequisites"]["activeDeadlineSeconds"] == "900"
        else:
            assert task["retryPolicy"]["maxRetryCount"] == (5 if name.startswith("train") else 2)
            assert task["retryPolicy"]["backoffDuration"] == "60s"
            assert task["retryPolicy"]["backoffFactor"] == 2


def test_training_has_room_in_shared_memory(documents: list[dict[str, Any]]) -> None:
    (shm,) = executors(documents)["exec-train"]["emptyDirMounts"]
    assert shm == {"medium": "Memory", "mountPath": "/dev/shm", "sizeLimit": "8Gi", "volumeName": "shm"}


def test_secrets_are_names_only_and_optional(documents: list[dict[str, Any]]) -> None:
    assert set(executors(documents)) == {f"exec-{step}" for step in steps(documents[0])}
    for executor in executors(documents).values():
        (secret,) = executor["secretAsEnv"]
        assert secret["optional"] is True
        assert secret["secretName"] == "latentflow"
        assert {pair["envVar"] for pair in secret["keyToEnv"]} == set(SECRET_VARIABLES)
        assert all(pair["envVar"] == pair["secretKey"] for pair in secret["keyToEnv"])
    # Nothing in the package sets a variable to a value.
    assert not any("env" in item["container"] for item in documents[0]["deploymentSpec"]["executors"].values())


def test_no_secret_of_whoever_compiles_is_in_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET_VARIABLES:
        monkeypatch.setenv(name, f"hidden-{name}")
    for name in compiling.PIPELINES:
        assert "hidden-" not in compiling.package(name)


def test_a_cluster_s_options_are_where_they_should_be(of_a_cluster: list[dict[str, Any]]) -> None:
    spec, platform = of_a_cluster[0], executors(of_a_cluster)
    for name, executor in platform.items():
        assert executor["secretAsEnv"][0]["secretName"] == "my-secret"
        assert executor["imagePullSecret"][0]["secretName"] == "pull"
        assert executor["imagePullPolicy"] == "Always"
        assert executor["pvcMount"][0]["mountPath"] == "/mnt/shared"
        described = container(of_a_cluster, name.removeprefix("exec-"))
        variables = {pair["name"]: pair["value"] for pair in described["env"]}
        assert variables == {"LATENTFLOW_STORE": "/mnt/shared/store", "HTTPS_PROXY": "http://proxy:3128"}
    assert container(of_a_cluster, "encode")["image"] == GPU_IMAGE
    asked = container(of_a_cluster, "encode")["resources"]["accelerator"]
    assert (asked["resourceType"], asked["resourceCount"]) == ("amd.com/gpu", "1")
    assert steps(spec)["encode"]["retryPolicy"]["maxRetryCount"] == 7
    assert platform["exec-encode"]["activeDeadlineSeconds"] == "3600"
    train = platform["exec-train"]
    assert train["nodeSelector"]["labels"] == {"gpu": "h200"}
    assert train["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert train["emptyDirMounts"][0]["sizeLimit"] == "16Gi"
    assert container(of_a_cluster, "train")["resources"]["resourceMemoryLimit"] == "32Gi"
    # Training on several nodes takes over what holds for one, under its own options.
    job = steps(spec)["train-distributed"]["inputs"]["parameters"]["options"]["runtimeValue"]["constant"]
    assert (job["queue"], job["memory"], job["shm"], job["secret"]) == ("gpus", "64Gi", "16Gi", "my-secret")
    assert job["volumes"] == [{"claim": "shared", "path": "/mnt/shared", "read_only": False}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("secrets: x", "secrets: unknown parameter; check the spelling"),
        ("pods: {trian: {gpus: 1}}", "pods.trian"),
        ("pods: {train: {memory_limit: much}}", "pods.train.memory_limit"),
        ("volumes: [{claim: x, path: relative}]", "volumes.0.path"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_an_option_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "cluster.yaml").write_text(text)
    with pytest.raises(ParamsError, match=re.escape(message)):
        Cluster.read(tmp_path / "cluster.yaml")


def test_a_cluster_file_that_cannot_be_used_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--cluster", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "package.yaml")]
    assert compiling.main(wanted) == 1
    assert "none.yaml cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "package.yaml").exists()
