"""The pipeline ``latentflow-training``: a checked run form, then the six steps."""

from typing import Any

from kfp import dsl, kubernetes

from components.autoencoder import autoencoder
from components.encode import encode
from components.evaluate import evaluate
from components.ingest import ingest
from components.merge import merge
from components.prerequisites import prerequisites
from components.register import register
from components.train import train
from pipelines.configuration import defaults

NAME = "latentflow-training"

ACCELERATOR = "nvidia.com/gpu"
TRAIN_ACCELERATORS = 1

# An optional Secret of the run's namespace; a key that it lacks leaves its variable unset. Only the names below
# are in the package, never a value.
SECRET = "latentflow"
SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "HF_TOKEN",
    "LATENTFLOW_CHECKPOINTS",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_S3_ENDPOINT_URL",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
)

# Inputs that are no parameter of params.yaml.
EXTRA_FIELDS = ("encode_parts", "force_rerun", "overrides")


def _equip(task: dsl.PipelineTask) -> None:
    """Secrets from the namespace, and for the lineage of the model which pipeline run it came from."""
    kubernetes.use_secret_as_env(task, SECRET, {name: name for name in SECRET_VARIABLES}, optional=True)
    kubernetes.use_field_path_as_env(task, "KFP_RUN_ID", "metadata.labels['pipeline/runid']")


# A pipeline of its own, because a loop over another task's output runs nowhere but inside one.
@dsl.pipeline(name="encode-in-parts")  # type: ignore[untyped-decorator]
def encode_in_parts(
    params: dict[str, Any],
    records: dsl.Input[dsl.Dataset],
    autoencoder: dsl.Input[dsl.Model],
    parts: list[str],
    force_rerun: str,
) -> list[dsl.Dataset]:
    """Encodes every part in a pod of its own."""
    with dsl.ParallelFor(parts) as part:
        encoded = encode(params=params, records=records, autoencoder=autoencoder, part=part, force_rerun=force_rerun)
        _equip(encoded)
    return dsl.Collected(encoded.outputs["shards"])  # type: ignore[no-any-return]


@dsl.pipeline(name=NAME)  # type: ignore[untyped-decorator]
def training(
    ingest_source: str = "emoji",
    ingest_limit: int = 0,
    autoencoder_pretrained: str = "",
    autoencoder_resolution: int = 32,
    autoencoder_steps: int = 1000,
    encode_text_encoder: str = "minilm",
    encode_max_tokens: int = 12,
    encode_flip: bool = False,
    encode_parts: int = 1,
    diffusion_definition: str = "flow",
    model_denoiser: str = "pixart",
    train_steps: int = 1300,
    train_batch_size: int = 64,
    train_learning_rate: float = 0.003,
    train_caption_dropout: float = 0.1,
    train_ema_decay: float = 0.998,
    train_sigma_mean: float = 1.2,
    train_precision: str = "auto",
    train_validate_every: int = 400,
    train_sample_every: int = 400,
    train_checkpoint_every: int = 200,
    train_seed: int = 0,
    evaluate_guidance: float = 3.0,
    evaluate_sampler: str = "euler",
    evaluate_steps: int = 24,
    evaluate_captions: int = 256,
    evaluate_seeds: int = 2,
    register_name: str = "latentflow-emoji",
    overrides: dict[str, Any] = {},  # noqa: B006  (the compiler writes it into the package as the form's default)
    force_rerun: str = "",
) -> None:
    """Trains a text-conditional latent diffusion model by flow matching, judges it and registers it in MLflow."""
    checked = prerequisites(
        defaults=defaults(),
        overrides=overrides,
        ingest_source=ingest_source,
        ingest_limit=ingest_limit,
        autoencoder_pretrained=autoencoder_pretrained,
        autoencoder_resolution=autoencoder_resolution,
        autoencoder_steps=autoencoder_steps,
        encode_text_encoder=encode_text_encoder,
        encode_max_tokens=encode_max_tokens,
        encode_flip=encode_flip,
        diffusion_definition=diffusion_definition,
        model_denoiser=model_denoiser,
        train_steps=train_steps,
        train_batch_size=train_batch_size,
        train_learning_rate=train_learning_rate,
        train_caption_dropout=train_caption_dropout,
        train_ema_decay=train_ema_decay,
        train_sigma_mean=train_sigma_mean,
        train_precision=train_precision,
        train_validate_every=train_validate_every,
        train_sample_every=train_sample_every,
        train_checkpoint_every=train_checkpoint_every,
        train_seed=train_seed,
        evaluate_guidance=evaluate_guidance,
        evaluate_sampler=evaluate_sampler,
        evaluate_steps=evaluate_steps,
        evaluate_captions=evaluate_captions,
        evaluate_seeds=evaluate_seeds,
        register_name=register_name,
        encode_parts=encode_parts,
    )
    # Emits parameters only, so running it each time busts nobody's cache.
    checked.set_caching_options(False)

    ingested = ingest(params=checked.outputs["ingest"], force_rerun=force_rerun)
    records = ingested.outputs["records"]
    compressed = autoencoder(params=checked.outputs["autoencoder"], records=records, force_rerun=force_rerun)
    vae = compressed.outputs["autoencoder"]
    shards = encode_in_parts(
        params=checked.outputs["encode"],
        records=records,
        autoencoder=vae,
        parts=checked.outputs["parts"],
        force_rerun=force_rerun,
    ).output
    merged = merge(
        params=checked.outputs["encode"], records=records, autoencoder=vae, shards=shards, force_rerun=force_rerun
    )
    encoded = merged.outputs["encoded"]
    trained = train(
        params=checked.outputs["train"], encoded=encoded, shards=shards, autoencoder=vae, force_rerun=force_rerun
    )
    trained.set_accelerator_type(ACCELERATOR).set_accelerator_limit(TRAIN_ACCELERATORS)
    model = trained.outputs["model"]
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
        force_rerun=force_rerun,
    )
    # Its effect is outside the pipeline: a cached success would register nothing.
    registered.set_caching_options(False)

    for task in (ingested, compressed, merged, trained, judged, registered):
        _equip(task)


def form_fields() -> list[str]:
    """The fields of the run form that stand for a parameter of params.yaml."""
    return [name for name in training.component_spec.inputs or {} if name not in EXTRA_FIELDS]
