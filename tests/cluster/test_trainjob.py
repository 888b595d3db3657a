"""The TrainJob against the API models of Kubeflow's SDK, and the pages that are generated from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trainings
import yaml
from typer.testing import CliRunner

pytest.importorskip("kubeflow.trainer", reason="Kubeflow's SDK is not installed (extra distributed)")

from kubeflow_trainer_api import models

from latentflow import __version__
from latentflow.cli import app
from latentflow.cluster.options import JobOptions, Toleration, Volume
from latentflow.cluster.trainjob import JobPlan, Owner, Work, as_yaml, command, job_name, trainjob
from latentflow.errors import LatentflowError
from latentflow.params import TrainInputs, parse_text

DOCS = Path(__file__).parents[2] / "docs"
WORK = Work(trainings.settings(), "s3://b/encoded", ("s3://b/p0",), "s3://b/vae", "s3://b/", "s3://b/models/m", "token")
PLAN = JobPlan("latentflow-abc", WORK, "gpu:1", 4, 8, JobOptions())


def built(plan: JobPlan) -> dict[str, Any]:
    """The object as it is sent, after the SDK's models have read it and written it again unchanged."""
    sent = json.loads(json.dumps(trainjob(plan).to_dict()))
    read = models.TrainerV1alpha1TrainJob.from_dict(sent)
    assert read
    assert json.loads(read.to_json()) == sent
    return sent


def patched(job: dict[str, Any]) -> dict[str, Any]:
    """What is changed in the runtime's pods."""
    (patch,) = job["spec"]["runtimePatches"]
    assert patch["manager"] == "trainer.kubeflow.org/kubeflow-sdk"
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == "node"
    return node["template"]["spec"]["template"]


def everywhere(value: Any) -> list[str]:
    """All keys and texts in a JSON value."""
    if isinstance(value, dict):
        return [*value, *(text for inner in value.values() for text in everywhere(inner))]
    if isinstance(value, list):
        return [text for inner in value for text in everywhere(inner)]
    return [str(value)]


def test_nodes_processes_and_gpus() -> None:
    job = built(PLAN)
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["spec"]["runtimeRef"] == {"kind": "ClusterTrainingRuntime", "name": "torch-distributed"}
    trainer = job["spec"]["trainer"]
    assert (trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == ("gpu:1", 4, 8)
    eight = {"nvidia.com/gpu": "8"}
    assert trainer["resourcesPerNode"] == {"limits": eight, "requests": eight}
    assert "suspend" not in job["spec"]
    assert "activeDeadlineSeconds" not in job["spec"]
    assert "ownerReferences" not in job["metadata"]


def test_on_the_cpu_there_is_one_process_a_node() -> None:
    trainer = built(replace(PLAN, gpus=0))["spec"]["trainer"]
    assert trainer["numProcPerNode"] == 1
    assert trainer["resourcesPerNode"] == {}


def test_the_command_leaves_nodes_and_meeting_point_to_the_torch_plugin_and_holds_the_parameters() -> None:
    words = command(WORK, grace_seconds=120)
    assert words[:6] == ["torchrun", "--shutdown-timeout", "115", "-m", "latentflow.cli", "train"]
    assert not {word for word in words if word.startswith(("--nnodes", "--nproc", "--rdzv", "--master"))}
    assert words[words.index("--parts") + 1] == "s3://b/p0"
    assert words[words.index("--force-rerun") + 1] == "token"
    sections = words[words.index("--sections") + 1]
    assert parse_text(TrainInputs, sections, "--sections") == WORK.inputs


def test_a_dollar_survives_what_kubernetes_replaces() -> None:
    inputs = trainings.settings(model__pretrained="models:/a$(HOME)b$$c")
    options = JobOptions(environment={"PLAIN": "a$(HOME)"})
    trainer = built(replace(PLAN, work=replace(WORK, inputs=inputs), options=options))["spec"]["trainer"]
    (sections,) = [word for word in trainer["args"] if "pretrained" in word]
    assert "models:/a$$(HOME)b$$$$c" in sections
    assert {"name": "PLAIN", "value": "a$$(HOME)"} in trainer["env"]


def test_secrets_are_named_and_never_valued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-value")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:hidden-value@mlflow")
    options = JobOptions(secret="mine", environment={"AWS_ENDPOINT_URL": "http://minio:9000"})
    job = built(replace(PLAN, options=options, environment=(("KFP_RUN_ID", "1"),)))
    env = {one["name"]: one for one in job["spec"]["trainer"]["env"]}
    assert len(env) == len(job["spec"]["trainer"]["env"]), "no variable is there twice"
    reference = {"key": "AWS_SECRET_ACCESS_KEY", "name": "mine", "optional": True}
    assert env["AWS_SECRET_ACCESS_KEY"] == {
        "name": "AWS_SECRET_ACCESS_KEY",
        "valueFrom": {"secretKeyRef": reference},
    }
    assert env["AWS_ENDPOINT_URL"]["value"] == "http://minio:9000"
    assert env["KFP_RUN_ID"]["value"] == "1"
    assert env["LATENTFLOW_CHECKPOINTS"]["value"] == "s3://b/checkpoints"
    assert "LATENTFLOW_STORE" not in env
    assert "hidden-value" not in "".join(everywhere(job))
    # The torch plugin's webhook refuses its own variables.
    assert not [name for name in env if name.startswith("PET_")]
    assert all("value" in one for one in built(replace(PLAN, options=JobOptions(secret="")))["spec"]["trainer"]["env"])


def test_kueue_has_its_label_and_a_suspended_job() -> None:
    job = built(replace(PLAN, options=JobOptions(queue="gpus", priority="high", labels={"team": "a"})))
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "gpus"
    assert labels["kueue.x-k8s.io/priority-class"] == "high"
    assert labels["team"] == "a"
    assert job["spec"]["suspend"] is True


def test_owner_label_and_deadline() -> None:
    plan = replace(PLAN, owner=Owner("step-pod", "uid"), fingerprint="f" * 64, kfp_run="run")
    job = built(replace(plan, options=JobOptions(deadline_seconds=3600, annotations={"note": "x"})))
    assert job["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": "step-pod",
            "uid": "uid",
            "controller": False,
            "blockOwnerDeletion": False,
        }
    ]
    assert job["metadata"]["labels"]["latentflow/fingerprint"] == "f" * 32
    assert job["metadata"]["labels"]["latentflow/kfp-run"] == "run"
    assert job["metadata"]["annotations"] == {"note": "x"}
    assert job["spec"]["activeDeadlineSeconds"] == 3600


def test_what_the_pods_get_besides() -> None:
    options = JobOptions(
        runtime="ours",
        runtime_kind="TrainingRuntime",
        accelerator="amd.com/gpu",
        cpu="8",
        memory="64Gi",
        shm="16Gi",
        node_selector={"pool": "gpu"},
        tolerations=[Toleration(key="nvidia.com/gpu", effect="NoSchedule")],
        volumes=[Volume(claim="shared", path="/mnt/a"), Volume(claim="shared", path="/mnt/b", read_only=True)],
        service_account="trainer",
        image_pull_secrets=["registry"],
        grace_seconds=60,
    )
    job = built(replace(PLAN, options=options))
    assert job["spec"]["runtimeRef"] == {"kind": "TrainingRuntime", "name": "ours"}
    assert job["spec"]["trainer"]["resourcesPerNode"] == {
        "limits": {"amd.com/gpu": "8", "memory": "64Gi"},
        "requests": {"amd.com/gpu": "8", "memory": "64Gi", "cpu": "8"},
    }
    pod = patched(job)
    # Side cars of a mesh would keep the pods from ending.
    assert pod["metadata"]["labels"] == pod["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert (spec["serviceAccountName"], spec["terminationGracePeriodSeconds"]) == ("trainer", 60)
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["volumes"] == [
        {"name": "volume-0", "persistentVolumeClaim": {"claimName": "shared"}},
        {"name": "volume-1", "persistentVolumeClaim": {"claimName": "shared", "readOnly": True}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
    ]
    (node,) = spec["containers"]
    assert set(node) == {"name", "volumeMounts"}, "the node container takes its environment from the trainer alone"
    assert [mount["mountPath"] for mount in node["volumeMounts"]] == ["/mnt/a", "/mnt/b", "/dev/shm"]
    assert job["spec"]["trainer"]["args"][1] == "55"


def test_nothing_is_patched_that_was_not_asked_for() -> None:
    assert set(patched(built(replace(PLAN, options=JobOptions(shm=""))))["spec"]) == {"terminationGracePeriodSeconds"}


def test_a_retry_has_the_same_name_and_another_run_another() -> None:
    key, run = "0123456789abcdef" * 4, "AAAABBBB-3333-4444-5555-666677778888"
    assert job_name(key, run) == job_name(key, run) == "latentflow-0123456789ab-aaaabbbb"
    assert job_name(key, "b" + run[1:]) != job_name(key, run)
    assert job_name(key) == "latentflow-0123456789ab"
    # The longest name that is made of it is a pod's host name, of 63 characters at most.
    assert len(f"{job_name(key, run)}-node-0-9999") < 63


def page_command() -> list[str]:
    """The command in docs/distributed.md that prints docs/trainjob.yaml."""
    text = (DOCS / "distributed.md").read_text(encoding="utf-8")
    block = text.split("latentflow trainjob", 1)[1].split("> docs/trainjob.yaml", 1)[0]
    return ["trainjob", *block.replace("\\\n", " ").split()]


def test_the_page_is_what_its_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DOCS.parent)
    printed = CliRunner().invoke(app, page_command())
    assert printed.exit_code == 0, printed.output
    assert (DOCS / "trainjob.yaml").read_text(encoding="utf-8") == printed.stdout
    assert f"latentflow-gpu:{__version__}" in printed.stdout


def test_the_yaml_says_what_the_object_says() -> None:
    assert yaml.safe_load(as_yaml(PLAN)) == built(PLAN)


def test_every_option_is_in_the_docs() -> None:
    text = (DOCS / "distributed.md").read_text(encoding="utf-8")
    for name, field in JobOptions.model_fields.items():
        default = field.default
        shown = '""' if default == "" else json.dumps(default) if isinstance(default, list | dict) else default
        if name == "secret_variables":
            assert all(f"`{key}`" in text for key in default)
            shown = "the keys below"
        assert f"| `{name}` | `{shown}` | {field.description} |" in text


def test_the_runtime_of_the_docs_is_one() -> None:
    text = yaml.safe_load((DOCS / "trainingruntime.yaml").read_text(encoding="utf-8"))
    runtime = models.TrainerV1alpha1TrainingRuntime.from_dict(text)
    assert runtime
    assert runtime.to_dict() == text, "the models know every field"


def test_without_the_sdk_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentflow.cluster.trainjob.find_spec", lambda name: None)
    with pytest.raises(LatentflowError, match=r"pip install 'latentflow\[distributed\]'"):
        as_yaml(PLAN)
