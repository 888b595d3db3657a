"""What about a job is a matter of the cluster and not of the run: queue, nodes, volumes, the Secret."""

from typing import Annotated, Literal

from pydantic import Field

from latentflow.params import Section

# Keys of the optional Secret that become environment variables of pods; one that it lacks leaves its variable unset.
SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GIT_TOKEN",
    "GIT_USERNAME",
    "HF_TOKEN",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_UI_URL",
)

Quantity = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?(m|[kKMGTPE]i?)?)?$")]
Absolute = Annotated[str, Field(pattern=r"^/")]


class Toleration(Section):
    """A taint of nodes that the pods put up with, as Kubernetes writes it."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class Volume(Section):
    """A PersistentVolumeClaim and where every pod sees it."""

    claim: str
    path: Absolute
    read_only: bool = False


class JobOptions(Section):
    """The options of a job; every one has a default that fits a cluster with Kubeflow Trainer as it is installed."""

    runtime: str = Field(default="torch-distributed", description="training runtime with the torch plugin")
    runtime_kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = Field(
        default="ClusterTrainingRuntime", description="whether the runtime is the cluster's or the namespace's"
    )
    queue: str = Field(default="", description="Kueue queue; the job then starts suspended and Kueue admits it")
    priority: str = Field(default="", description="Kueue's priority class of the job")
    accelerator: str = Field(default="nvidia.com/gpu", description="resource that counts a node's accelerators")
    cpu: Quantity = Field(default="", description="CPU request per node")
    memory: Quantity = Field(default="", description="memory request and limit per node")
    shm: Quantity = Field(default="8Gi", description="size of /dev/shm; empty leaves the container's own 64 MiB")
    node_selector: dict[str, str] = Field(default={}, description="labels that a node must have")
    tolerations: list[Toleration] = Field(default=[], description="taints that the pods put up with")
    volumes: list[Volume] = Field(default=[], description="claims that are mounted in every pod")
    secret: str = Field(default="latentflow", description="optional Secret whose keys become environment variables")
    secret_variables: list[str] = Field(default=list(SECRET_VARIABLES), description="the keys that do")
    environment: dict[str, str] = Field(default={}, description="further variables; nothing secret belongs here")
    service_account: str = Field(default="", description="service account of the job's pods; empty: the default one")
    image_pull_secrets: list[str] = Field(default=[], description="Secrets with which the image is pulled")
    labels: dict[str, str] = Field(default={}, description="further labels of the job and its pods")
    annotations: dict[str, str] = Field(default={}, description="further annotations of the job and its pods")
    grace_seconds: int = Field(default=120, ge=10, description="time that a stopped pod has to leave a checkpoint")
    deadline_seconds: int = Field(
        default=0, ge=0, description="time after which the cluster ends the job wherever it is; 0: never"
    )
