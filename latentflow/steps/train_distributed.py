"""train on many nodes: what they read is put where all reach it, a job trains, and its model is brought here."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.cluster.options import JobOptions
from latentflow.cluster.trainjob import JobPlan, Owner, Work, job_name
from latentflow.data import parcels
from latentflow.data.places import read_manifest
from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.files import digest_json
from latentflow.manifest import AutoencoderManifest, ModelManifest
from latentflow.params import TrainInputs
from latentflow.steps import train

if TYPE_CHECKING:
    from latentflow.cluster.api import Cluster

# Ids of this pipeline run that the model's lineage and its MLflow run need to know; nothing secret.
PASSED_ON = ("KFP_RUN_ID", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Nodes:
    """Where the job runs: ``count`` pods of ``image`` with ``gpus`` accelerators each; 0 trains on the CPU."""

    image: str
    count: int
    gpus: int


def run(
    inputs: TrainInputs,
    sources: train.Sources,
    storage: str,
    nodes: Nodes,
    options: JobOptions,
    out: Path,
    force_rerun: str = "",
) -> ModelManifest:
    """Has a TrainJob train what ``train`` would, waits for it however long it takes, and writes the model folder.

    ``storage`` is a bucket's URL or a folder on a volume that this process and the job's pods mount at the same path;
    there lie checkpoints, what this process alone could read, and the finished model, which is not trained again.
    Everything that can be checked is checked before the job asks for a GPU.
    """
    storage = _storage(storage, options)
    _check_share(inputs, nodes)
    key = train.identify(inputs, sources, force_rerun)
    model = f"{storage}/models/{key[:32]}"
    if parcels.is_there(model):
        log.info("the model of these parameters and data is in %s; nothing to train", RemoteFolder(model))
    else:
        cluster = _cluster()
        work = _work(inputs, sources, storage, model, force_rerun)
        _train(cluster, _plan(work, nodes, options, key), model)
    parcels.collect(model, out)
    manifest = ModelManifest.read(out)
    if manifest.fingerprint != key:
        raise LatentflowError(
            f"{model} is of another training (fingerprint {manifest.fingerprint[:12]}, expected {key[:12]}): the image "
            f"{nodes.image} holds another latentflow than this one; use images of one version and remove that folder."
        )
    return manifest


def _cluster() -> "Cluster":
    """The cluster, asked before anything is copied."""
    from latentflow.cluster.api import connect

    cluster = connect()
    cluster.check()
    return cluster


def _train(cluster: "Cluster", plan: JobPlan, model: str) -> None:
    from latentflow.cluster.watching import Launch

    Launch(cluster, plan).run(lambda: parcels.is_there(model))
    if not parcels.is_there(model):
        raise LatentflowError(
            f"TrainJob {cluster.namespace}/{plan.name} is complete, but {model} is not there: its pods wrote to "
            "another place. Compare storage and volumes with theirs."
        )


def _plan(work: Work, nodes: Nodes, options: JobOptions, key: str) -> JobPlan:
    kfp_run = os.environ.get("KFP_RUN_ID", "")
    # Kubeflow Pipelines tells every step its pod.
    pod, uid = os.environ.get("KFP_POD_NAME"), os.environ.get("KFP_POD_UID")
    return JobPlan(
        name=job_name(key, kfp_run),
        work=work,
        image=nodes.image,
        nodes=nodes.count,
        gpus=nodes.gpus,
        options=options,
        fingerprint=key,
        kfp_run=kfp_run,
        environment=tuple((name, os.environ[name]) for name in PASSED_ON if os.environ.get(name)),
        owner=Owner(pod, uid) if pod and uid else None,
    )


def _storage(storage: str, options: JobOptions) -> str:
    """``storage`` without its last slash. Raises LatentflowError where the job's pods could not reach it."""
    if not storage:
        raise LatentflowError(
            "storage: training on many nodes needs a bucket (s3://bucket/folder) or a folder on a volume that all pods "
            "mount, found none; name one."
        )
    folder = local_folder(storage)
    if folder is not None and not any(folder.is_relative_to(volume.path) for volume in options.volumes):
        raise LatentflowError(
            f"storage {folder} lies on none of the volumes that the job's pods mount; name its claim in the cluster "
            'option volumes, as {"claim": "shared", "path": "/mnt/shared"}.'
        )
    return str(folder or storage).rstrip("/")


def _check_share(inputs: TrainInputs, nodes: Nodes) -> None:
    from latentflow.training.parallel import share

    if nodes.count < 1 or nodes.gpus < 0:
        raise LatentflowError(f"{nodes.count} nodes of {nodes.gpus} GPUs train nothing; give at least one node.")
    share(inputs.train, 0, nodes.count * max(1, nodes.gpus))


def _work(inputs: TrainInputs, sources: train.Sources, storage: str, model: str, force_rerun: str) -> Work:
    digest = read_manifest(sources.encoded).digest
    vae = AutoencoderManifest.read(sources.autoencoder_folder).digest
    return Work(
        inputs=inputs,
        encoded=_reachable(sources.encoded, storage, f"encoded/{digest[:32]}"),
        parts=[_reachable(part, storage, f"encoded/{digest[:32]}") for part in sources.parts],
        autoencoder=_reachable(sources.autoencoder, storage, f"autoencoders/{vae[:32]}"),
        storage=storage,
        out=model,
        force_rerun=force_rerun,
    )


def _reachable(place: Path | str, storage: str, name: str) -> str:
    """Where every node finds a folder: where it is, or in ``storage``, to which it is copied once."""
    folder = local_folder(place)
    if folder is None:
        return str(place)
    home = local_folder(storage)
    if home is not None and folder.absolute().is_relative_to(home.absolute()):
        return str(folder.absolute())
    # Parts of one set are known by their files' names: how many there are is no matter of the set's digest.
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    target = f"{storage}/{name}/{digest_json(files)[:16]}"
    if not parcels.is_there(target):
        size = sum((folder / file).stat().st_size for file in files)
        log.info("copying %s (%.1f MB), which only this machine can read, to %s", folder, size / 1e6, target)
        parcels.deliver(folder, target)
    return target
