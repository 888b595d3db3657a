"""What both pipelines do with tasks: equip them for a cluster, and train in a pod or in a job of many."""

from typing import Any, NamedTuple

from kfp import dsl

from components.train import train
from components.train_distributed import train_distributed
from latentflow import __version__
from pipelines.cluster import Cluster, Step

IMAGE_CPU, IMAGE_GPU = f"latentflow-cpu:{__version__}", f"latentflow-gpu:{__version__}"


class Images(NamedTuple):
    """The pipeline's inputs ``image_cpu`` and ``image_gpu``, or those of a pipeline within it under the same names."""

    cpu: str
    gpu: str


class Training(NamedTuple):
    """What a training is given: the checked parameters and which trainer, its inputs, and the run's own choices."""

    params: Any
    trainer: Any
    encoded: Any
    autoencoder: Any
    shards: Any
    num_nodes: int
    gpus: int
    storage: str
    force_rerun: str


def equip(task: dsl.PipelineTask, step: Step, cluster: Cluster, images: Images) -> None:
    """Image, accelerators and everything else that the cluster's options say of a step."""
    gpus = cluster.pod(step).gpus
    task.set_container_image(images.gpu if gpus else images.cpu)
    if gpus:
        task.set_accelerator_type(cluster.accelerator).set_accelerator_limit(gpus)
    cluster.equip(task, step)


def trained_model(wanted: Training, cluster: Cluster, images: Images) -> Any:
    """The model of ``train``, or of ``train_distributed`` where several processes train it."""
    # An argument that is left out is not the same as one that is None.
    parts = {} if wanted.shards is None else {"shards": wanted.shards}
    with dsl.If(wanted.trainer == "pod"):
        alone = train(
            params=wanted.params,
            encoded=wanted.encoded,
            autoencoder=wanted.autoencoder,
            image=images.gpu,
            version=__version__,
            gpus=wanted.gpus,
            storage=wanted.storage,
            force_rerun=wanted.force_rerun,
            **parts,
        )
        alone.set_container_image(images.gpu)
        # In a branch, KFP hands an input on to a resource only if the task takes it as an argument too: hence `gpus`.
        alone.set_accelerator_type(cluster.accelerator).set_accelerator_limit(wanted.gpus)
        cluster.equip(alone, "train")
    with dsl.Else():
        together = train_distributed(
            params=wanted.params,
            encoded=wanted.encoded,
            autoencoder=wanted.autoencoder,
            image=images.gpu,
            version=__version__,
            num_nodes=wanted.num_nodes,
            gpus=wanted.gpus,
            storage=wanted.storage,
            options=cluster.job_options(),
            force_rerun=wanted.force_rerun,
            **parts,
        )
        equip(together, "train_distributed", cluster, images)
    return dsl.OneOf(alone.outputs["model"], together.outputs["model"])
