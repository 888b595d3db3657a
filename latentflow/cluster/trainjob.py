"""One training as a Kubeflow TrainJob: what is asked for, and the object of the SDK's API that says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from latentflow.cluster.options import JobOptions, Toleration
from latentflow.data.remote import local_folder
from latentflow.errors import LatentflowError
from latentflow.params import TrainInputs

if TYPE_CHECKING:
    from kubeflow_trainer_api import models

FINGERPRINT_LABEL = "latentflow/fingerprint"
RUN_LABEL = "latentflow/kfp-run"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
# A mesh's side car outlives the training and stands between the ranks.
NO_SIDECAR = {"sidecar.istio.io/inject": "false"}


@dataclass(frozen=True)
class Owner:
    """The pod with which the job goes: when Kubernetes removes the pod, it removes the job."""

    pod: str
    uid: str


@dataclass(frozen=True)
class Work:
    """What the job's processes do: parameters, and places that every node reaches (a mounted folder or a URL).

    ``storage`` also takes the checkpoints. ``out`` is where the model appears, whole.
    """

    inputs: TrainInputs
    encoded: str
    parts: Sequence[str]
    autoencoder: str
    storage: str
    out: str
    force_rerun: str = ""


@dataclass(frozen=True)
class JobPlan:
    """A job: its name, ``nodes`` pods of ``image`` with ``gpus`` accelerators each (0: one process on the CPU)."""

    name: str
    work: Work
    image: str
    nodes: int
    gpus: int
    options: JobOptions
    fingerprint: str = ""
    kfp_run: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    owner: Owner | None = None

    @property
    def processes_per_node(self) -> int:
        return max(1, self.gpus)


def require_sdk() -> None:
    """Raises LatentflowError where Kubeflow's SDK is not installed."""
    if find_spec("kubeflow") is None or find_spec("kubeflow_trainer_api") is None:
        raise LatentflowError(
            "Training on many nodes needs Kubeflow's SDK, found none: pip install 'latentflow[distributed]'."
        )


def job_name(fingerprint: str, kfp_run: str = "") -> str:
    """The name under which a retry of the same step finds its job again."""
    return "-".join(["latentflow", fingerprint[:12], *([kfp_run.replace("-", "")[:8].lower()] if kfp_run else [])])


def command(work: Work, grace_seconds: int) -> list[str]:
    """What every pod runs. Nodes, processes and the meeting point come by the PET_* variables of the torch plugin."""
    # torchrun passes SIGTERM on and kills what has not ended when this time is over; the pod's own ends just after.
    launcher = ["torchrun", "--shutdown-timeout", str(grace_seconds - 5), "-m", "latentflow.cli", "train"]
    places = ["--encoded", work.encoded, *(word for part in work.parts for word in ("--parts", part))]
    places += ["--autoencoder", work.autoencoder, "--out", work.out]
    token = ["--force-rerun", work.force_rerun] if work.force_rerun else []
    return [*launcher, *places, *token, "--sections", _sections(work.inputs)]


def _sections(inputs: TrainInputs) -> str:
    import yaml

    return yaml.safe_dump(inputs.model_dump(mode="json"), sort_keys=False)


def trainjob(plan: JobPlan) -> "models.TrainerV1alpha1TrainJob":
    """The TrainJob of the SDK's API models."""
    from kubeflow.trainer.constants import constants
    from kubeflow_trainer_api import models

    options = plan.options
    return models.TrainerV1alpha1TrainJob(
        apiVersion=constants.API_VERSION,
        kind=constants.TRAINJOB_KIND,
        metadata=models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
            name=plan.name,
            labels=_labels(plan),
            annotations=options.annotations or None,
            ownerReferences=[owner_reference(plan.owner)] if plan.owner else None,
        ),
        spec=models.TrainerV1alpha1TrainJobSpec(
            runtimeRef=models.TrainerV1alpha1RuntimeRef(name=options.runtime, kind=options.runtime_kind),
            # Kueue sees a job before it starts, and lets it go when there is room.
            suspend=True if options.queue else None,
            activeDeadlineSeconds=options.deadline_seconds or None,
            trainer=_trainer(plan),
            runtimePatches=[_patch(options)],
        ),
    )


def as_yaml(plan: JobPlan) -> str:
    """The same as a manifest for ``kubectl apply``; a text of several lines stays readable."""
    import yaml

    require_sdk()

    class Dumper(yaml.SafeDumper):
        """Writes such texts as blocks."""

    Dumper.add_representer(
        str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|" if "\n" in text else None)
    )
    return yaml.dump(trainjob(plan).to_dict(), Dumper=Dumper, sort_keys=False, width=1000)


def owner_reference(owner: Owner) -> "models.IoK8sApimachineryPkgApisMetaV1OwnerReference":
    """The reference by which Kubernetes' garbage collection finds the job of a pod that is gone."""
    from kubeflow_trainer_api import models

    return models.IoK8sApimachineryPkgApisMetaV1OwnerReference(
        apiVersion="v1", kind="Pod", name=owner.pod, uid=owner.uid, controller=False, blockOwnerDeletion=False
    )


def _labels(plan: JobPlan) -> dict[str, str]:
    own = {
        "app.kubernetes.io/managed-by": "latentflow",
        FINGERPRINT_LABEL: plan.fingerprint[:32],
        RUN_LABEL: plan.kfp_run,
        QUEUE_LABEL: plan.options.queue,
        PRIORITY_LABEL: plan.options.priority,
    }
    return plan.options.labels | {name: value for name, value in own.items() if value}


def _trainer(plan: JobPlan) -> "models.TrainerV1alpha1Trainer":
    from kubeflow_trainer_api import models

    first, *rest = command(plan.work, plan.options.grace_seconds)
    return models.TrainerV1alpha1Trainer(
        image=plan.image,
        command=[first],
        args=[_literal(word) for word in rest],
        numNodes=plan.nodes,
        numProcPerNode=plan.processes_per_node,
        resourcesPerNode=_resources(plan),
        env=_environment(plan),
    )


def _literal(word: str) -> str:
    """A word that Kubernetes, which replaces $(NAME) in commands and values, passes on as it is."""
    return word.replace("$", "$$")


def _resources(plan: JobPlan) -> "models.IoK8sApiCoreV1ResourceRequirements":
    from kubeflow_trainer_api import models

    options = plan.options
    both = {options.accelerator: str(plan.gpus) if plan.gpus else "", "memory": options.memory}
    limits = {name: _quantity(value) for name, value in both.items() if value}
    requests = limits | ({"cpu": _quantity(options.cpu)} if options.cpu else {})
    return models.IoK8sApiCoreV1ResourceRequirements(limits=limits or None, requests=requests or None)


def _quantity(value: str) -> "models.IoK8sApimachineryPkgApiResourceQuantity":
    from kubeflow_trainer_api import models

    return models.IoK8sApimachineryPkgApiResourceQuantity(value)


def _environment(plan: JobPlan) -> "list[models.IoK8sApiCoreV1EnvVar]":
    from kubeflow_trainer_api import models

    storage = plan.work.storage.rstrip("/")
    plain = {"LATENTFLOW_CHECKPOINTS": f"{storage}/checkpoints", "LATENTFLOW_IMAGE": plan.image}
    plain |= dict(plan.environment)
    if local_folder(storage) is not None:
        # On a volume, sample grids and averages outlive a pod too.
        plain["LATENTFLOW_STORE"] = f"{storage}/store"
    plain |= plan.options.environment
    secret = [_from_secret(name, plan.options.secret) for name in plan.options.secret_variables if name not in plain]
    return [
        *(models.IoK8sApiCoreV1EnvVar(name=name, value=_literal(value)) for name, value in plain.items()),
        *(secret if plan.options.secret else []),
    ]


def _from_secret(variable: str, secret: str) -> "models.IoK8sApiCoreV1EnvVar":
    from kubeflow_trainer_api import models

    key = models.IoK8sApiCoreV1SecretKeySelector(name=secret, key=variable, optional=True)
    return models.IoK8sApiCoreV1EnvVar(name=variable, valueFrom=models.IoK8sApiCoreV1EnvVarSource(secretKeyRef=key))


def _patch(options: JobOptions) -> "models.TrainerV1alpha1RuntimePatch":
    """What a TrainJob has no field for and changes in its runtime's pods."""
    from kubeflow.trainer.constants import constants
    from kubeflow.trainer.options import RuntimePatch
    from kubeflow_trainer_api import models

    metadata = models.IoK8sApimachineryPkgApisMetaV1ObjectMeta(
        labels=NO_SIDECAR | options.labels, annotations=NO_SIDECAR | options.annotations
    )
    template = models.TrainerV1alpha1PodTemplatePatch(metadata=metadata, spec=_pod(options))
    job = models.TrainerV1alpha1JobTemplatePatch(spec=models.TrainerV1alpha1JobSpecPatch(template=template))
    node = models.TrainerV1alpha1ReplicatedJobPatch(name=constants.NODE, template=job)
    jobs = models.TrainerV1alpha1JobSetTemplatePatch(spec=models.TrainerV1alpha1JobSetSpecPatch(replicatedJobs=[node]))
    return models.TrainerV1alpha1RuntimePatch(
        manager=RuntimePatch().manager,
        trainingRuntimeSpec=models.TrainerV1alpha1TrainingRuntimeSpecPatch(template=jobs),
    )


def _pod(options: JobOptions) -> "models.TrainerV1alpha1PodSpecPatch":
    from kubeflow.trainer.constants import constants
    from kubeflow_trainer_api import models

    volumes, mounts = _volumes(options)
    return models.TrainerV1alpha1PodSpecPatch(
        nodeSelector=options.node_selector or None,
        tolerations=[_toleration(one) for one in options.tolerations] or None,
        imagePullSecrets=[models.IoK8sApiCoreV1LocalObjectReference(name=name) for name in options.image_pull_secrets]
        or None,
        serviceAccountName=options.service_account or None,
        terminationGracePeriodSeconds=options.grace_seconds,
        volumes=volumes or None,
        containers=[models.TrainerV1alpha1ContainerPatch(name=constants.NODE, volumeMounts=mounts)] if mounts else None,
    )


def _toleration(one: Toleration) -> "models.IoK8sApiCoreV1Toleration":
    from kubeflow_trainer_api import models

    return models.IoK8sApiCoreV1Toleration(
        key=one.key or None, operator=one.operator, value=one.value or None, effect=one.effect or None
    )


def _volumes(
    options: JobOptions,
) -> "tuple[list[models.IoK8sApiCoreV1Volume], list[models.IoK8sApiCoreV1VolumeMount]]":
    from kubeflow_trainer_api import models

    volumes, mounts = [], []
    for number, volume in enumerate(options.volumes):
        name = f"volume-{number}"
        claim = models.IoK8sApiCoreV1PersistentVolumeClaimVolumeSource(
            claimName=volume.claim, readOnly=volume.read_only or None
        )
        volumes.append(models.IoK8sApiCoreV1Volume(name=name, persistentVolumeClaim=claim))
        mounts.append(
            models.IoK8sApiCoreV1VolumeMount(name=name, mountPath=volume.path, readOnly=volume.read_only or None)
        )
    if options.shm:
        memory = models.IoK8sApiCoreV1EmptyDirVolumeSource(medium="Memory", sizeLimit=_quantity(options.shm))
        volumes.append(models.IoK8sApiCoreV1Volume(name="shm", emptyDir=memory))
        mounts.append(models.IoK8sApiCoreV1VolumeMount(name="shm", mountPath="/dev/shm"))
    return volumes, mounts
