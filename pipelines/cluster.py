"""What a cluster asks of every run's pods: resources, nodes, volumes, Secret, retries. Options of the compiled package.

A run's own choices are fields of its form (see training.py); these here are decided once per cluster, in a YAML file
for ``python -m pipelines.compile --cluster`` and ``latentflow submit --cluster``.
"""

from pathlib import Path
from typing import Any, Literal

import yaml
from kfp import dsl, kubernetes
from pydantic import Field

from latentflow.cluster.options import SECRET_VARIABLES, JobOptions, Quantity, Toleration, Volume
from latentflow.errors import ParamsError
from latentflow.params import Section, parse

Step = Literal[
    "prerequisites",
    "ingest",
    "autoencoder",
    "encode",
    "merge",
    "adopt",
    "train",
    "train_distributed",
    "evaluate",
    "register",
]


class Pod(Section):
    """The pods of one step. Resources that are empty are not asked for; 0 seconds is no timeout."""

    cpu_request: Quantity = Field(default="", description="CPU that the pod is promised")
    cpu_limit: Quantity = Field(default="", description="CPU that it may use")
    memory_request: Quantity = Field(default="", description="memory that it is promised")
    memory_limit: Quantity = Field(default="", description="memory beyond which it is killed")
    gpus: int = Field(
        default=0, ge=0, description="accelerators; above 0 the step uses image_gpu (train: the form's train_gpus)"
    )
    shm_size: Quantity = Field(default="", description="shared memory at /dev/shm; empty leaves the runtime's 64 MB")
    node_selector: dict[str, str] = Field(default={}, description="labels that the node must have")
    tolerations: list[Toleration] = Field(default=[], description="taints that it may have")
    retries: int = Field(
        default=2, ge=0, description="how often a failed pod is tried again; finished work is not done again"
    )
    retry_seconds: int = Field(
        default=60, ge=0, description="wait before the first retry, doubled for every further one"
    )
    retry_max_seconds: int = Field(default=3600, ge=1, description="longest wait between retries")
    timeout_seconds: int = Field(default=0, ge=0, description="a pod that runs longer fails")


_DEFAULT_PODS: dict[Step, Pod] = {
    "prerequisites": Pod(cpu_request="500m", memory_request="1Gi", retries=0, timeout_seconds=900),
    "merge": Pod(cpu_request="500m", memory_request="2Gi"),
    "adopt": Pod(cpu_request="500m", memory_request="2Gi"),
    "train": Pod(cpu_request="4", memory_request="16Gi", shm_size="8Gi", retries=5),
    # Its job has retries of its own and may wait in a queue for days.
    "train_distributed": Pod(cpu_request="200m", memory_request="1Gi", retries=5),
}
_USUAL_POD = Pod(cpu_request="2", memory_request="8Gi")


class Cluster(Section):
    """One cluster's options; every one has a default, with which the committed package is compiled."""

    secret: str = Field(
        default="latentflow", description="optional Secret of the run's namespace whose keys become environment"
    )
    image_pull_secrets: list[str] = Field(default=[], description="Secrets with which the images are pulled")
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = Field(
        default="", description="empty: Kubernetes decides"
    )
    accelerator: str = Field(default="nvidia.com/gpu", description="resource name of the accelerators")
    volumes: list[Volume] = Field(default=[], description="claims mounted in every pod, e.g. for the form's `storage`")
    work_store: str = Field(
        default="", description="LATENTFLOW_STORE: a folder on one of the volumes; empty: inside the pod"
    )
    environment: dict[str, str] = Field(default={}, description="further variables for every pod; nothing secret")
    job: JobOptions = Field(
        default=JobOptions(), description="further options of the TrainJob of several nodes, such as its `queue`"
    )
    pods: dict[Step, Pod] = Field(default={}, description="per step; a step that is not named keeps its default")

    @classmethod
    def read(cls, path: Path) -> "Cluster":
        """Reads a YAML file. Raises ParamsError that names every field that does not fit."""
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ParamsError(f"{path} cannot be read as YAML: {error}") from None
        return parse(cls, values or {}, str(path))

    def pod(self, step: Step) -> Pod:
        """The pods of a step."""
        return self.pods.get(step) or _DEFAULT_PODS.get(step, _USUAL_POD)

    def job_options(self) -> dict[str, Any]:
        """What the job of several nodes is given: its own options over those that hold for ``train`` in one pod."""
        pod = self.pod("train")
        shared = JobOptions(
            accelerator=self.accelerator,
            cpu=pod.cpu_request,
            memory=pod.memory_limit or pod.memory_request,
            shm=pod.shm_size,
            node_selector=pod.node_selector,
            tolerations=pod.tolerations,
            volumes=self.volumes,
            secret=self.secret,
            environment=self.environment,
            image_pull_secrets=self.image_pull_secrets,
        )
        own = self.job.model_dump(mode="json", exclude_unset=True)
        return JobOptions.model_validate(shared.model_dump(mode="json") | own).model_dump(mode="json")

    def equip(self, task: dsl.PipelineTask, step: Step) -> None:
        """Gives a task everything but its image and accelerators."""
        pod = self.pod(step)
        _resources(task, pod)
        _placement(task, pod)
        self._surroundings(task)
        if pod.shm_size:
            kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=pod.shm_size)
        if pod.retries:
            task.set_retry(pod.retries, f"{pod.retry_seconds}s", 2, f"{pod.retry_max_seconds}s")
        if pod.timeout_seconds:
            kubernetes.set_timeout(task, pod.timeout_seconds)

    def _surroundings(self, task: dsl.PipelineTask) -> None:
        """Secret, volumes, environment; and which run this is, for the lineage of the model."""
        kubernetes.use_secret_as_env(task, self.secret, {name: name for name in SECRET_VARIABLES}, optional=True)
        kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")
        for volume in self.volumes:
            kubernetes.mount_pvc(task, pvc_name=volume.claim, mount_path=volume.path)
        if self.image_pull_secrets:
            kubernetes.set_image_pull_secrets(task, self.image_pull_secrets)
        if self.image_pull_policy:
            kubernetes.set_image_pull_policy(task, self.image_pull_policy)
        if self.work_store:
            task.set_env_variable("LATENTFLOW_STORE", self.work_store)
        for name, value in self.environment.items():
            task.set_env_variable(name, value)


def _resources(task: dsl.PipelineTask, pod: Pod) -> None:
    for quantity, ask in (
        (pod.cpu_request, task.set_cpu_request),
        (pod.cpu_limit, task.set_cpu_limit),
        (pod.memory_request, task.set_memory_request),
        (pod.memory_limit, task.set_memory_limit),
    ):
        if quantity:
            ask(quantity)


def _placement(task: dsl.PipelineTask, pod: Pod) -> None:
    for label, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, label, value)
    for one in pod.tolerations:
        kubernetes.add_toleration(
            task, key=one.key or None, operator=one.operator, value=one.value or None, effect=one.effect or None
        )


def described() -> dict[str, Any]:
    """Every option with its default and meaning, for the docs: ``{"secret": ("latentflow", "..."), ...}``."""
    own = {name: field for name, field in Cluster.model_fields.items() if name not in ("pods", "job")}
    pods = {f"pods.STEP.{name}": field for name, field in Pod.model_fields.items()}
    job = {f"job.{name}": field for name, field in JobOptions.model_fields.items()}
    return {name: (field.default, field.description) for name, field in (own | pods | job).items()}
