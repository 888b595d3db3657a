"""The pipeline's first step: the run form becomes one validated set of parameters per step."""

from typing import Any, NamedTuple

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def prerequisites(
    defaults: dict[str, Any],
    overrides: dict[str, Any],
    ingest_source: str,
    ingest_limit: int,
    autoencoder_pretrained: str,
    autoencoder_resolution: int,
    autoencoder_steps: int,
    encode_text_encoder: str,
    encode_max_tokens: int,
    encode_flip: bool,
    diffusion_definition: str,
    model_denoiser: str,
    train_steps: int,
    train_batch_size: int,
    train_learning_rate: float,
    train_caption_dropout: float,
    train_ema_decay: float,
    train_sigma_mean: float,
    train_precision: str,
    train_validate_every: int,
    train_sample_every: int,
    train_checkpoint_every: int,
    train_seed: int,
    evaluate_guidance: float,
    evaluate_sampler: str,
    evaluate_steps: int,
    evaluate_captions: int,
    evaluate_seeds: int,
    register_name: str,
    encode_parts: int,
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
    ],
):
    """Checks the run form before anything expensive starts and emits one set of parameters per step.

    Never cached, and it emits parameters only, so a step whose own parameters are unchanged keeps its cache.

    Args:
        defaults: Every parameter as in params.yaml when the pipeline was compiled.
        encode_parts: Pods that encode side by side, each its share of whole shards.
        overrides: Parameters without a field of their own, as ``{"section.field": value}``; they win over the form.

    Returns:
        ingest: Parameters of the ingest step.
        autoencoder: Parameters of the autoencoder step.
        encode: Parameters of the encode step.
        train: Parameters of the train step: the sections train, model and diffusion.
        evaluate: Parameters of the evaluate step.
        register: Parameters of the register step.
        parts: The parts of the encode step, such as ``["1/2", "2/2"]``.
    """
    from latentflow.errors import ParamsError
    from latentflow.params import STEP_INPUTS, Params, for_step, parse

    form = {
        "ingest.source": ingest_source,
        "ingest.limit": ingest_limit,
        "autoencoder.pretrained": autoencoder_pretrained,
        "autoencoder.resolution": autoencoder_resolution,
        "autoencoder.steps": autoencoder_steps,
        "encode.text_encoder": encode_text_encoder,
        "encode.max_tokens": encode_max_tokens,
        "encode.flip": encode_flip,
        "diffusion.definition": diffusion_definition,
        "model.denoiser": model_denoiser,
        "train.steps": train_steps,
        "train.batch_size": train_batch_size,
        "train.learning_rate": train_learning_rate,
        "train.caption_dropout": train_caption_dropout,
        "train.ema_decay": train_ema_decay,
        "train.sigma_mean": train_sigma_mean,
        "train.precision": train_precision,
        "train.validate_every": train_validate_every,
        "train.sample_every": train_sample_every,
        "train.checkpoint_every": train_checkpoint_every,
        "train.seed": train_seed,
        "evaluate.guidance": evaluate_guidance,
        "evaluate.sampler": evaluate_sampler,
        "evaluate.steps": evaluate_steps,
        "evaluate.captions": evaluate_captions,
        "evaluate.seeds": evaluate_seeds,
        "register.name": register_name,
    }
    for name, value in {**form, **overrides}.items():
        *parents, field = name.split(".")
        section: Any = defaults
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not parents or not isinstance(section, dict):
            raise ParamsError(f"overrides: {name!r} names no section; write it as section.field, e.g. train.beta2.")
        section[field] = value

    params = parse(Params, defaults, "run form")
    if not 1 <= encode_parts <= 1000:
        raise ParamsError(f"run form: encode_parts should be from 1 to 1000, found {encode_parts}.")
    parts = [f"{number}/{encode_parts}" for number in range(1, encode_parts + 1)]
    # A dict travels with its integers as floats; the steps validate again, which makes them integers again.
    sections = [for_step(params, step).model_dump(mode="json") for step in STEP_INPUTS]
    return (*sections, parts)  # type: ignore[return-value]
