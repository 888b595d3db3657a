"""The pipeline ``latentflow-training``: a checked run form, then the six steps."""

from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from components.autoencoder import autoencoder
from components.encode import encode
from components.evaluate import evaluate
from components.ingest import ingest
from components.merge import merge
from components.prerequisites import prerequisites
from components.register import register
from latentflow import __version__
from pipelines.cluster import Cluster, Step
from pipelines.configuration import defaults
from pipelines.tasks import IMAGE_CPU, IMAGE_GPU, Images, Training, equip, trained_model

NAME = "latentflow-training"

# Inputs that are no parameter of params.yaml.
EXTRA_FIELDS = (
    "encode_parts",
    "force_rerun",
    "image_cpu",
    "image_gpu",
    "overrides",
    "storage",
    "train_gpus",
    "train_num_nodes",
)


def make(cluster: Cluster) -> BaseComponent:
    """The pipeline for a cluster."""

    # A pipeline of its own, because a loop over another task's output runs nowhere but inside one. Its images are
    # called like the pipeline's own inputs, by which a local run knows them.
    @dsl.pipeline(name="encode-in-parts")  # type: ignore[untyped-decorator]
    def encode_in_parts(
        params: dict[str, Any],
        records: dsl.Input[dsl.Dataset],
        autoencoder: dsl.Input[dsl.Model],
        parts: list[str],
        storage: str,
        image_cpu: str,
        image_gpu: str,
        force_rerun: str,
    ) -> list[dsl.Dataset]:
        """Encodes every part in a pod of its own."""
        with dsl.ParallelFor(parts) as part:
            encoded = encode(
                params=params,
                records=records,
                autoencoder=autoencoder,
                part=part,
                storage=storage,
                force_rerun=force_rerun,
            )
            equip(encoded, "encode", cluster, Images(image_cpu, image_gpu))
        return dsl.Collected(encoded.outputs["shards"])  # type: ignore[no-any-return]

    @dsl.pipeline(name=NAME)  # type: ignore[untyped-decorator]
    def training(
        ingest_source: str = "emoji",
        ingest_revision: str = "",
        ingest_limit: int = 0,
        autoencoder_pretrained: str = "",
        autoencoder_resolution: int = 32,
        autoencoder_steps: int = 1000,
        encode_text_encoder: str = "minilm",
        encode_max_tokens: int = 12,
        encode_parts: int = 1,
        model_denoiser: str = "pixart",
        model_pretrained: str = "",
        train_steps: int = 1300,
        train_batch_size: int = 64,
        train_learning_rate: float = 0.003,
        train_precision: str = "auto",
        train_seed: int = 0,
        train_gpus: int = 1,
        train_num_nodes: int = 1,
        evaluate_guidance: float = 3.0,
        evaluate_steps: int = 24,
        evaluate_captions: int = 256,
        register_name: str = "latentflow-emoji",
        image_cpu: str = IMAGE_CPU,
        image_gpu: str = IMAGE_GPU,
        storage: str = "",
        overrides: dict[str, Any] = {},  # noqa: B006  (the compiler writes it into the package as the form's default)
        force_rerun: str = "",
    ) -> None:
        """Trains a text-conditional latent diffusion model by flow matching, judges it and registers it in MLflow."""
        checked = prerequisites(
            defaults=defaults(),
            overrides=overrides,
            ingest_source=ingest_source,
            ingest_revision=ingest_revision,
            ingest_limit=ingest_limit,
            autoencoder_pretrained=autoencoder_pretrained,
            autoencoder_resolution=autoencoder_resolution,
            autoencoder_steps=autoencoder_steps,
            encode_text_encoder=encode_text_encoder,
            encode_max_tokens=encode_max_tokens,
            model_denoiser=model_denoiser,
            model_pretrained=model_pretrained,
            train_steps=train_steps,
            train_batch_size=train_batch_size,
            train_learning_rate=train_learning_rate,
            train_precision=train_precision,
            train_seed=train_seed,
            evaluate_guidance=evaluate_guidance,
            evaluate_steps=evaluate_steps,
            evaluate_captions=evaluate_captions,
            register_name=register_name,
            version=__version__,
            image_cpu=image_cpu,
            image_gpu=image_gpu,
            storage=storage,
            encode_parts=encode_parts,
            train_num_nodes=train_num_nodes,
            train_gpus=train_gpus,
        )
        # Emits parameters only, so running it each time busts nobody's cache.
        checked.set_caching_options(False)

        ingested = ingest(
            params=checked.outputs["ingest"], revision=checked.outputs["revision"], force_rerun=force_rerun
        )
        records = ingested.outputs["records"]
        compressed = autoencoder(params=checked.outputs["autoencoder"], records=records, force_rerun=force_rerun)
        vae = compressed.outputs["autoencoder"]
        shards = encode_in_parts(
            params=checked.outputs["encode"],
            records=records,
            autoencoder=vae,
            parts=checked.outputs["parts"],
            storage=storage,
            image_cpu=image_cpu,
            image_gpu=image_gpu,
            force_rerun=force_rerun,
        ).output
        merged = merge(
            params=checked.outputs["encode"],
            records=records,
            autoencoder=vae,
            shards=shards,
            storage=storage,
            force_rerun=force_rerun,
        )
        encoded = merged.outputs["encoded"]

        images = Images(image_cpu, image_gpu)
        wanted = Training(
            params=checked.outputs["train"],
            trainer=checked.outputs["trainer"],
            encoded=encoded,
            autoencoder=vae,
            shards=shards,
            num_nodes=train_num_nodes,
            gpus=train_gpus,
            storage=storage,
            force_rerun=force_rerun,
        )
        model = trained_model(wanted, cluster, images)

        judged = evaluate(
            params=checked.outputs["evaluate"],
            model=model,
            encoded=encoded,
            shards=shards,
            records=records,
            force_rerun=force_rerun,
        )
        registered = register(
            params=checked.outputs["register"],
            model=model,
            evaluation=judged.outputs["evaluation"],
            encoded=encoded,
            shards=shards,
            records=records,
            force_rerun=force_rerun,
        )
        # Its effect is outside the pipeline: a cached success would register nothing.
        registered.set_caching_options(False)

        steps: dict[Step, dsl.PipelineTask] = {
            "prerequisites": checked,
            "ingest": ingested,
            "autoencoder": compressed,
            "merge": merged,
            "evaluate": judged,
            "register": registered,
        }
        for step, task in steps.items():
            equip(task, step, cluster, images)

    return training


def form_fields() -> list[str]:
    """The fields of the run form that stand for a parameter of params.yaml."""
    return [name for name in make(Cluster()).component_spec.inputs or {} if name not in EXTRA_FIELDS]
