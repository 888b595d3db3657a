"""The pipeline's first step: the run form becomes one validated set of parameters per step."""

from typing import Any, NamedTuple

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def prerequisites(
    defaults: dict[str, Any],
    overrides: dict[str, Any],
    ingest_source: str,
    ingest_revision: str,
    ingest_limit: int,
    autoencoder_pretrained: str,
    autoencoder_resolution: int,
    autoencoder_steps: int,
    encode_text_encoder: str,
    encode_max_tokens: int,
    model_denoiser: str,
    model_pretrained: str,
    train_steps: int,
    train_batch_size: int,
    train_learning_rate: float,
    train_precision: str,
    train_seed: int,
    evaluate_guidance: float,
    evaluate_steps: int,
    evaluate_captions: int,
    register_name: str,
    version: str,
    image_cpu: str,
    image_gpu: str,
    storage: str,
    encode_parts: int,
    train_num_nodes: int,
    train_gpus: int,
) -> NamedTuple(  # type: ignore[valid-type]
    "StepParameters",
    [
        ("ingest", dict),
        ("autoencoder", dict),
        ("encode", dict),
        ("train", dict),
        ("evaluate", dict),
        ("register", dict),
        ("parts", list),
        ("revision", str),
        ("trainer", str),
    ],
):
    """Checks in seconds all that can fail a run later, and emits one set of parameters per step.

    It validates every parameter, resolves the data's revision, compares the autoencoder, the text models and the
    denoiser that are named by their configs, and tries MLflow, the work store and ``storage`` by writing there. Never
    cached, and it emits parameters only, so a step whose own parameters are unchanged keeps its cache.

    Args:
        defaults: Every parameter as in params.yaml when the pipeline was compiled.
        overrides: Parameters without a field of their own, as ``{"section.field": value}``; they win over the form.
        version: The version of the pipeline package, which the images must have too.
        image_cpu: The image of the steps without GPUs.
        image_gpu: The image of the steps with GPUs.
        storage: A bucket's URL or a folder on a shared volume; empty: data travels as artifacts.
        encode_parts: Pods that encode side by side, each its share of whole shards.
        train_num_nodes: Nodes that train together.
        train_gpus: GPUs per node for training; 0 trains on the CPU.

    Returns:
        ingest: Parameters of the ingest step.
        autoencoder: Parameters of the autoencoder step.
        encode: Parameters of the encode step.
        train: Parameters of the train step: the sections train, model and diffusion.
        evaluate: Parameters of the evaluate step.
        register: Parameters of the register step.
        parts: The parts of the encode step, such as ``["1/2", "2/2"]``.
        revision: What the data source holds now, as a commit's SHA or a digest.
        trainer: ``pod`` where one process trains, else ``job``.
    """
    from latentflow.steps import prerequisites as step

    fields = {
        "ingest.source": ingest_source,
        "ingest.revision": ingest_revision,
        "ingest.limit": ingest_limit,
        "autoencoder.pretrained": autoencoder_pretrained,
        "autoencoder.resolution": autoencoder_resolution,
        "autoencoder.steps": autoencoder_steps,
        "encode.text_encoder": encode_text_encoder,
        "encode.max_tokens": encode_max_tokens,
        "model.denoiser": model_denoiser,
        "model.pretrained": model_pretrained,
        "train.steps": train_steps,
        "train.batch_size": train_batch_size,
        "train.learning_rate": train_learning_rate,
        "train.precision": train_precision,
        "train.seed": train_seed,
        "evaluate.guidance": evaluate_guidance,
        "evaluate.steps": evaluate_steps,
        "evaluate.captions": evaluate_captions,
        "register.name": register_name,
    }
    request = step.Request(
        defaults=defaults,
        fields=fields,
        overrides=overrides,
        version=version,
        images=(image_cpu, image_gpu),
        storage=storage,
        encode_parts=encode_parts,
        num_nodes=train_num_nodes,
        gpus=train_gpus,
    )
    checked = step.run(request)
    # A dict travels with its integers as floats; the steps validate again, which makes them integers again.
    return (*checked.sections.values(), checked.parts, checked.revision, checked.trainer)  # type: ignore[return-value]
