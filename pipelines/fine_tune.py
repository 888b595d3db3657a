"""The pipeline ``latentflow-fine-tune``: an encoded set in, a LoRA out."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.adopt import adopt
from components.prerequisites import prerequisites
from latentflow import __version__
from pipelines.cluster import Cluster
from pipelines.configuration import defaults, lookup
from pipelines.tasks import IMAGE_CPU, IMAGE_GPU, Images, Training, equip, trained_model

NAME = "latentflow-fine-tune"


def lora_defaults() -> dict[str, Any]:
    """The project's parameters with a LoRA; the form names the model that it changes."""
    values = defaults()
    values["train"]["adapter"]["kind"] = "lora"
    return values


def make(cluster: Cluster) -> BaseComponent:
    """The pipeline for a cluster."""
    values = lora_defaults()

    def default(name: str) -> Any:
        return lookup(values, name)

    @dsl.pipeline(name=NAME)  # type: ignore[untyped-decorator]
    def fine_tune(
        encoded_url: str = "",
        encoded_autoencoder_url: str = "",
        encoded_digest: str = "",
        model_denoiser: str = "pixart",
        model_pretrained: str = "",
        train_steps: int = 1300,
        train_batch_size: int = 64,
        train_learning_rate: float = 0.003,
        train_precision: str = "auto",
        train_seed: int = 0,
        train_gpus: int = 1,
        train_num_nodes: int = 1,
        image_cpu: str = IMAGE_CPU,
        image_gpu: str = IMAGE_GPU,
        storage: str = "",
        overrides: dict[str, Any] = {},  # noqa: B006  (the compiler writes it into the package as the form's default)
        force_rerun: str = "",
    ) -> None:
        """Trains a LoRA of a model on an encoded set that an earlier run left in its storage."""
        checked = prerequisites(
            defaults=values,
            overrides=overrides,
            ingest_source=default("ingest.source"),
            ingest_revision=default("ingest.revision"),
            ingest_limit=default("ingest.limit"),
            autoencoder_pretrained=default("autoencoder.pretrained"),
            autoencoder_resolution=default("autoencoder.resolution"),
            autoencoder_steps=default("autoencoder.steps"),
            encode_text_encoder=default("encode.text_encoder"),
            encode_max_tokens=default("encode.max_tokens"),
            model_denoiser=model_denoiser,
            model_pretrained=model_pretrained,
            train_steps=train_steps,
            train_batch_size=train_batch_size,
            train_learning_rate=train_learning_rate,
            train_precision=train_precision,
            train_seed=train_seed,
            evaluate_guidance=default("evaluate.guidance"),
            evaluate_steps=default("evaluate.steps"),
            evaluate_captions=default("evaluate.captions"),
            register_name=default("register.name"),
            version=__version__,
            image_cpu=image_cpu,
            image_gpu=image_gpu,
            storage=storage,
            encode_parts=1,
            train_num_nodes=train_num_nodes,
            train_gpus=train_gpus,
        )
        checked.set_caching_options(False)
        images = Images(image_cpu, image_gpu)
        taken = adopt(
            encoded_url=encoded_url, autoencoder_url=encoded_autoencoder_url, encoded_digest=encoded_digest
        ).after(checked)
        wanted = Training(
            params=checked.outputs["train"],
            trainer=checked.outputs["trainer"],
            encoded=taken.outputs["encoded"],
            autoencoder=taken.outputs["autoencoder"],
            shards=None,
            num_nodes=train_num_nodes,
            gpus=train_gpus,
            storage=storage,
            force_rerun=force_rerun,
        )
        trained_model(wanted, cluster, images)
        equip(checked, "prerequisites", cluster, images)
        equip(taken, "adopt", cluster, images)

    return fine_tune
