"""The parameters: one pydantic model per section of params.yaml, and per step the sections that it reads.

The models hold types, bounds and a line of description; the defaults live in params.yaml alone.
"""

import importlib.util
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from latentflow.errors import ParamsError

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**53)]
Precision = Literal["auto", "fp32", "bf16"]
# No part of a file's or a metric's name.
IdeaName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$|^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]

# A parameter of a constructor.
OwnName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]

DENOISERS = ("unet", "pixart", "auraflow")
DEFINITIONS = ("flow", "ddpm_epsilon", "ddpm_v_prediction", "ddpm_sample", "trigonometric", "edm")


class Section(BaseModel):
    """A section of params.yaml: unknown keys are refused.

    ``any_machine`` names the fields that say how work is done and not what, or whose meaning is in a fingerprint by
    other means: they are in none themselves.
    """

    any_machine: ClassVar[tuple[str, ...]] = ()
    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The values on which the results depend, as JSON: without ``any_machine``, in sections within this one too."""
        values = self.model_dump(mode="json", exclude=set(self.any_machine))
        for name, field in type(self).model_fields.items():
            if isinstance(inner := getattr(self, name), Section):
                values[field.alias or name] = inner.identity()
        return values


# Fields that only some sources read, by the prefix of `source`.
_OF_SOURCES = {"revision": ("hf", "dvc"), "path": ("dvc",), "subset": ("hf",)}
# What is computed of the picture, or a column of the records.
ImageSource = Annotated[str, Field(max_length=107)]
# A column's name is part of a file's name in the records.
Column = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]{1,100}$")]


def column_of(image: str) -> str:
    """``pose`` of column:pose, and nothing of what is computed."""
    kind, _, name = image.partition(":")
    return name if kind == "column" else ""


def source_kind(source: str) -> str:
    """``hf`` of hf:owner/name, ``dvc`` of dvc:repository, and nothing of paths and URLs."""
    kind, _, rest = source.partition(":")
    return kind if kind in ("hf", "dvc") and rest and not rest.startswith("//") else ""


class IngestParams(Section):
    # What a revision names, such as a branch's tip, is among the inputs' digests.
    any_machine = ("workers", "revision")

    source: str = Field(
        min_length=1, description="`emoji` (the embedded default), a folder, tars, `hf:owner/name` or `dvc:repository`"
    )
    revision: str = Field(description="hf:, dvc: branch, tag or SHA; empty is the default branch's tip")
    path: str = Field(description="dvc: the folder or tar inside the repository")
    subset: str = Field(description="hf: configuration of the dataset; empty is its default")
    hub_split: str = Field(min_length=1, description="hf: and saved datasets with splits: the split that is read")
    media_column: str = Field(description="column of the picture or clip; empty looks for file_name, image, video")
    caption_column: str = Field(description="column of the caption; empty looks for text, prompt, caption")
    condition_columns: list[Column] = Field(
        max_length=16, description="further columns to keep, such as control pictures: paths, media or text"
    )
    limit: int = Field(ge=0, description="keep only this many records, chosen by a hash of the id; 0 keeps all")
    validation_fraction: Share = Field(description="share of the records held out for the loss during training")
    test_fraction: Share = Field(description="share of the records that only evaluation sees")
    max_bad_fraction: Fraction = Field(description="stop when more than this share of the records is refused")
    min_side: Count = Field(description="refuse pictures and clips with a side shorter than this, in pixels")
    max_side: Count = Field(description="refuse pictures and clips with a side longer than this, in pixels")
    duplicates: Literal["keep", "drop_exact", "drop_near"] = Field(
        description="`keep` only reports duplicates; the others leave out all but the first (drop_near drops exact too)"
    )
    near_duplicate_distance: int = Field(
        ge=0, le=8, description="bits of 64 in which the perceptual hashes of near duplicates may differ"
    )
    workers: int = Field(ge=0, description="processes that read and check; 0 is one per core; no result depends on it")

    @model_validator(mode="after")
    def _fits_the_source(self) -> Self:
        kind = source_kind(self.source)
        for field, kinds in _OF_SOURCES.items():
            if getattr(self, field) and kind not in kinds:
                raise ValueError(f"{field} is for {' and '.join(f'{k}:' for k in kinds)} sources; leave it empty here")
        if kind == "dvc" and not self.path:
            raise ValueError("a dvc: source needs path, the folder or tar inside the repository")
        return self

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        named = [name for name in (self.media_column, self.caption_column, *self.condition_columns) if name]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"the column {twice[0]} is named twice among media, caption and conditions")
        if named and self.source == "emoji":
            raise ValueError("the emoji have no columns to choose; leave media, caption and condition columns empty")
        return self

    @model_validator(mode="after")
    def _leaves_training_records(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        return self


class AutoencoderParams(Section):
    pretrained: str = Field(
        description="folder or hub id of a VAE, or of a pipeline with one; empty trains one on the records"
    )
    resolution: int = Field(ge=8, le=4096, description="side of the square pictures that are encoded, in pixels")
    channels: list[Count] = Field(min_length=1, max_length=6, description="width per level; n levels shrink by 2^(n-1)")
    latent_channels: Count = Field(description="channels of the latents")
    layers_per_block: Count = Field(description="residual layers per level")
    steps: Count = Field(description="optimizer steps")
    batch_size: Count = Field(description="pictures per step")
    learning_rate: Positive = Field(description="peak learning rate of the one-cycle schedule")
    kl_weight: float = Field(ge=0, description="weight of the KL term, per pixel value")
    seed: Seed = Field(description="seed of weights, order and posterior noise")
    precision: Precision = Field(description="autocast type; `auto` is bf16 on a GPU and fp32 on a CPU")

    @model_validator(mode="after")
    def _resolution_fits(self) -> Self:
        factor = 2 ** (len(self.channels) - 1)
        if not self.pretrained and self.resolution % factor:
            raise ValueError(
                f"resolution {self.resolution} is not a multiple of {factor}, the factor of {len(self.channels)} levels"
            )
        return self


class EncodeParams(Section):
    any_machine = ("workers",)

    text_encoder: str = Field(
        min_length=1, description="`minilm` (the embedded default), or a text model's or a pipeline's folder or hub id"
    )
    max_tokens: int = Field(
        ge=0, le=1024, description="caption length in tokens, the special ones included; 0: the pipeline's own"
    )
    flip: bool = Field(description="also store the latents of the mirrored pictures")
    bucket_step: int = Field(ge=0, description="sides of aspect-ratio buckets are multiples of this; 0: squares")
    bucket_min_ratio: Positive = Field(description="narrowest bucket, as width / height")
    bucket_max_ratio: Positive = Field(description="widest bucket, as width / height")
    clip_frames: int = Field(ge=0, description="frames taken of a clip; 0 where there are only pictures")
    clip_stride: Count = Field(description="every how many frames of a clip one is taken")
    clip_fps: float = Field(ge=0, description="frames per second that a clip is brought to first; 0 keeps its own")
    posterior: Literal["mean", "distribution"] = Field(
        description="store the mean of the latents, or mean and log-variance, from which training draws"
    )
    batch_size: Count = Field(description="pictures or captions per encoder call; the last one is padded")
    shard_size: Count = Field(description="records per shard")
    control_image: ImageSource = Field(
        description="what a ControlNet is led by: `edges` of each picture, or `column:NAME`, a condition column of "
        "pictures; empty: none"
    )
    reference_image: ImageSource = Field(
        description="what an IP-Adapter is shown: `picture`, the record's own, or `column:NAME`; empty: none"
    )
    image_encoder: str = Field(description="folder or hub id of the CLIP or SigLIP that embeds reference images")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(description="type in which tensors are stored")
    precision: Literal["fp32", "bf16"] = Field(description="arithmetic of the VAE; bf16 is faster on a GPU and coarser")
    workers: int = Field(
        ge=0, description="processes that decode pictures: 1 is this one, 0 one less than there are cores"
    )
    sample_prompts: list[str] = Field(max_length=64, description="captions of the sample grid that training draws")

    @field_validator("max_tokens")
    @classmethod
    def _holds_a_word(cls, max_tokens: int) -> int:
        if max_tokens in (1, 2):
            raise ValueError("two tokens begin and end a caption; give at least 3, or 0 for a pipeline's own length")
        return max_tokens

    @model_validator(mode="after")
    def _images_can_be_had(self) -> Self:
        for field, computed in (("control_image", "edges"), ("reference_image", "picture")):
            value = getattr(self, field)
            if value not in ("", computed) and not column_of(value):
                raise ValueError(f"{field} is `{computed}`, `column:NAME` or empty, found {value!r}")
        if bool(self.reference_image) != bool(self.image_encoder):
            raise ValueError("reference_image and image_encoder need each other: give both or neither")
        if self.clip_frames and (self.control_image or self.reference_image):
            raise ValueError("control_image and reference_image belong to pictures; set clip_frames to 0")
        return self

    @model_validator(mode="after")
    def _ratios_hold_the_square(self) -> Self:
        if not self.bucket_min_ratio <= 1 <= self.bucket_max_ratio:
            raise ValueError("bucket_min_ratio may not be above 1, nor bucket_max_ratio below: the square is a bucket")
        return self


class DiffusionParams(Section):
    definition: str = Field(
        pattern=rf"^(auto|{'|'.join(DEFINITIONS)}|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$",
        description="data and model definition: auto (that of model.pretrained, else flow), one of "
        f"{', '.join(DEFINITIONS)}, or your own as module:name",
    )
    schedule: Literal["auto", "linear", "shift", "dynamic_shift", "cosine", "karras", "discrete", "given"] = Field(
        description="along which σ pictures are drawn, from noise to data; auto: that of model.pretrained, else linear"
    )
    shift: Positive = Field(description="shift: factor towards noise; 1 leaves the schedule linear")
    base_shift: float = Field(description="dynamic_shift: ln of the factor for a picture of 256 tokens")
    max_shift: float = Field(description="dynamic_shift: ln of the factor for a picture of 4096 tokens")
    sigma_min: Positive = Field(description="karras: the last σ before 0")
    rho: Positive = Field(description="karras: how far the steps crowd near data")
    sigmas: list[float] = Field(description="given: all σ, from the largest to 0")

    @field_validator("definition")
    @classmethod
    def _module_is_there(cls, definition: str) -> str:
        module, colon, _ = definition.partition(":")
        if colon:
            require_module(module)
        return definition

    @model_validator(mode="after")
    def _given_sigmas(self) -> Self:
        if (self.schedule == "given") != bool(self.sigmas):
            raise ValueError("sigmas and schedule `given` need each other: give both or neither")
        return self


def require_module(module: str) -> None:
    """Raises ValueError for a module that cannot be imported; it is not, because reading parameters runs no code."""
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ValueError(f"there is no module {module}; add its folder to PYTHONPATH, or the file to the image")


class UNetParams(Section):
    channels: list[Count] = Field(min_length=1, max_length=6, description="width per level, multiples of 32")
    attention: list[bool] = Field(min_length=1, max_length=6, description="per level: cross-attention to the text")
    layers_per_block: Count = Field(description="residual layers per level")
    head_dim: Count = Field(description="attention head width")
    pooled_text: bool = Field(description="also add the attention-pooled caption to the time embedding")

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        if len(self.channels) != len(self.attention):
            raise ValueError(f"channels has {len(self.channels)} levels, attention has {len(self.attention)}")
        if bad := [c for c in self.channels if c % 32]:
            raise ValueError(f"channels must be multiples of 32 (group normalisation), found {bad}")
        return self


class TransformerParams(Section):
    layers: Count = Field(description="transformer blocks")
    heads: Count = Field(description="attention heads")
    head_dim: Count = Field(description="attention head width; width = heads x head_dim")
    patch_size: Count = Field(description="side of the latent patch that becomes a token")


class AuraFlowParams(TransformerParams):
    single_layers: int = Field(ge=0, description="single-stream blocks after the joint ones")


class ModelParams(Section):
    denoiser: str = Field(
        description="what is made new: `unet` (UNet2DConditionModel), `pixart` (a DiT), `auraflow` (an MMDiT), or a "
        "class of your own as module:Class",
    )
    own: dict[OwnName, JsonValue] = Field(description="what the constructor of a class of your own is given, by name")
    pretrained: str = Field(
        description="pipeline's folder, hub id or models:/NAME@ALIAS whose denoiser training begins with, whatever "
        "denoiser says; empty: random weights of the sizes below"
    )
    guidance: float = Field(
        ge=0, description="scale that a guidance-distilled model (FLUX.1 [dev]) is told in training"
    )
    unet: UNetParams = Field(description="sizes of the UNet")
    pixart: TransformerParams = Field(description="sizes of the DiT")
    auraflow: AuraFlowParams = Field(description="sizes of the MMDiT")

    @field_validator("denoiser")
    @classmethod
    def _module_is_there(cls, denoiser: str) -> str:
        if denoiser in DENOISERS:
            return denoiser
        module, _, name = denoiser.partition(":")
        if not (name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
            raise ValueError(f"it must be one of {', '.join(DENOISERS)}, or a class of your own as module:Class")
        require_module(module)
        return denoiser

    @field_validator("own")
    @classmethod
    def _travels_unchanged(cls, own: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return {name: _as_in_yaml(name, value) for name, value in own.items()}

    @model_validator(mode="after")
    def _own_needs_a_class(self) -> Self:
        if self.own and ":" not in self.denoiser:
            raise ValueError("own is for a class of your own: name it in denoiser as module:Class, or leave own empty")
        return self


def _as_in_yaml(name: str, value: JsonValue) -> JsonValue:
    """Whole floats as integers, which Kubeflow makes floats of. Raises ValueError for null, which it cannot carry."""
    if value is None:
        raise ValueError(f"{name} is null; leave it out, and give it a default in the class")
    if isinstance(value, list):
        return [_as_in_yaml(name, one) for one in value]
    if isinstance(value, dict):
        return {key: _as_in_yaml(f"{name}.{key}", one) for key, one in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


class AdapterParams(Section):
    kind: Literal["none", "lora", "dora", "controlnet", "ip_adapter"] = Field(
        description="`lora` or `dora` trains low-rank changes of model.pretrained, `controlnet` or `ip_adapter` what "
        "leads it by images, beside it; `none` the weights themselves"
    )
    rank: Count = Field(description="rank of the changes")
    alpha: Positive = Field(description="the changes are scaled by alpha / rank")
    targets: list[str] = Field(
        max_length=64, description="endings of the names of adapted layers; empty takes the class's own choice"
    )
    image_dropout: Fraction = Field(description="ip_adapter: share of samples trained without their image")

    @property
    def by_images(self) -> bool:
        """Whether a part beside the denoiser learns to lead it by images."""
        return self.kind in ("controlnet", "ip_adapter")


class TrainParams(Section):
    any_machine = (
        "per_device_batch_size",
        "gradient_checkpointing",
        "offload",
        "compile",
        "attention",
        "deterministic",
        "sharding",
        "checkpoint_every",
        "checkpoint_minutes",
        "keep_last",
        "keep_every",
        "spike_factor",
    )

    steps: Count = Field(description="optimizer steps")
    batch_size: Count = Field(description="global batch: samples per optimizer step over all processes")
    per_device_batch_size: int = Field(
        ge=0, description="samples that a device computes at a time, more are accumulated; 0: its whole share at once"
    )
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "muon"] = Field(
        description="`adamw` (fused), `adamw_8bit` (bitsandbytes), `adafactor`, or `muon` for the blocks' matrices"
    )
    learning_rate: Positive = Field(description="peak learning rate")
    schedule: Literal["cosine", "one_cycle", "constant"] = Field(
        description="shape of the learning rate over the steps"
    )
    warmup_fraction: Fraction = Field(description="share of the steps in which the learning rate rises")
    weight_decay: float = Field(ge=0, description="decoupled weight decay")
    beta2: Annotated[float, Field(gt=0, lt=1)] = Field(description="AdamW's second-moment decay")
    clip_norm: Positive = Field(description="gradients are scaled down to this norm")
    caption_dropout: Fraction = Field(description="share of samples trained with the empty caption, for guidance")
    trainable: list[str] = Field(
        max_length=64, description="patterns of parameter names to train, such as `*attn2*`; empty trains all"
    )
    adapter: AdapterParams = Field(description="low-rank fine-tuning")
    ideas: dict[IdeaName, float] = Field(
        description="training ideas and their one number: contrastive (weight), tread (share of tokens), module:Class"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(description="decay of the averaged weights, after a warm-up")
    ema_lengths: list[Annotated[float, Field(gt=0, le=0.25)]] = Field(
        max_length=2,
        description="two relative lengths, such as [0.05, 0.1], of power-function averages from which "
        "`latentflow average` makes any other; empty keeps none",
    )
    ema_snapshots: Count = Field(description="how many times over the run those averages are kept")
    sigma_sampling: Literal["logit_normal", "uniform", "log_normal", "mode", "cosmap", "beta", "shifted"] = Field(
        description="distribution of the training σ"
    )
    sigma_stratified: bool = Field(description="draw one σ per equal part of the distribution in every batch")
    sigma_mean: float = Field(description="logit_normal: mean of logit time; log_normal: of ln(b/a); larger is noisier")
    sigma_std: Positive = Field(description="logit_normal, log_normal: standard deviation of the same")
    sigma_mode_scale: float = Field(ge=-1, le=1.75, description="mode: weight of the middle; 0 is uniform")
    sigma_alpha: Annotated[float, Field(ge=0.5)] = Field(description="beta: first parameter; larger is noisier")
    sigma_beta: Annotated[float, Field(ge=0.5)] = Field(description="beta: second parameter; larger is cleaner")
    sigma_shift: Positive = Field(description="shifted: factor towards noise; 1 is uniform")
    loss_weighting: Literal["none", "min_snr_gamma", "sigma_sqrt", "cosmap", "bsmntw"] = Field(
        description="what each sample's error weighs, by its σ"
    )
    min_snr_gamma: Positive = Field(description="min_snr_gamma: cap of the signal-to-noise ratio")
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = Field(
        description="autocast type over fp32 weights; `auto` is bf16 on a GPU, fp32 on a CPU; fp64 is for comparisons"
    )
    sharding: Literal["replicate", "fsdp2"] = Field(
        description="`replicate` the model on every device, or shard it over all, for models that do not fit one"
    )
    gradient_checkpointing: bool = Field(description="compute activations again in the backward pass: less memory")
    offload: list[Literal["activations", "optimizer"]] = Field(
        max_length=2, description="what is kept in the CPU's memory: activations; weights and optimizer (fsdp2 only)"
    )
    compile: bool = Field(description="compile the blocks by torch.compile; a minute's start for faster steps")
    attention: Literal["auto", "math", "efficient", "flash", "cudnn"] = Field(
        description="which of PyTorch's attention kernels; one that cannot do the work is an error"
    )
    deterministic: bool = Field(description="only deterministic GPU kernels: a resumed run is equal to the bit")
    sample_guidance: float = Field(ge=1, description="guidance scale of the sample grids")
    shuffle_window: int = Field(
        ge=0, description="shards among which rows are shuffled, fewer to fetch at a time; 0 shuffles the whole split"
    )
    log_every: Count = Field(description="steps between logged losses")
    validate_every: Count = Field(description="steps between held-out losses")
    sample_every: Count = Field(description="steps between sample grids")
    checkpoint_every: Count = Field(description="steps between checkpoints")
    checkpoint_minutes: float = Field(ge=0, description="also a checkpoint when the last is this old; 0: by steps only")
    keep_last: Count = Field(description="newest checkpoints that are kept")
    keep_every: int = Field(ge=0, description="also keep those whose step is a multiple of this; 0 keeps no others")
    spike_factor: float = Field(
        ge=0, description="stop when a loss is this many times the mean before it; 0 stops only at NaN"
    )
    seed: Seed = Field(description="seed of weights, data order, σ, noise and caption dropout")

    @field_validator("ideas")
    @classmethod
    def _ideas_are_there(cls, ideas: dict[str, float]) -> dict[str, float]:
        from latentflow.training.ideas import check

        check(ideas)
        return ideas

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.per_device_batch_size and self.batch_size % self.per_device_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of per_device_batch_size {self.per_device_batch_size}"
            )
        return self

    @model_validator(mode="after")
    def _choices_agree(self) -> Self:
        if self.ema_lengths and (len(self.ema_lengths) != 2 or self.ema_lengths[0] == self.ema_lengths[1]):
            raise ValueError(f"ema_lengths needs two different lengths or none, found {self.ema_lengths}")
        if self.adapter.kind != "none" and (self.trainable or self.ema_lengths):
            raise ValueError("an adapter is trained by itself: leave trainable and ema_lengths empty")
        if self.adapter.by_images and self.sharding != "replicate":
            raise ValueError(f"adapter {self.adapter.kind} is trained with sharding replicate, not {self.sharding}")
        if "optimizer" in self.offload and self.sharding != "fsdp2":
            raise ValueError("offload of the optimizer needs sharding fsdp2")
        if self.sharding == "fsdp2" and self.optimizer != "adamw":
            raise ValueError(f"sharding fsdp2 works with optimizer adamw, not {self.optimizer}")
        return self


class WeightsParams(Section):
    # Their content is an input of the step, wherever it lies.
    any_machine = ("inception", "dinov2", "clip", "lpips")

    inception: str = Field(description="FID, KID: folder with FID's Inception in model.safetensors; empty: no FID")
    dinov2: str = Field(description="FD-DINOv2: folder or hub id of a DINOv2, such as facebook/dinov2-large")
    clip: str = Field(description="CMMD, CLIP score: folder or hub id, such as openai/clip-vit-large-patch14-336")
    lpips: str = Field(description="LPIPS of the VAE: folder with LPIPS on AlexNet in model.safetensors")


class GridParams(Section):
    prompts: int = Field(ge=0, le=16, description="prompts drawn over a grid of guidance and steps; 0 leaves it out")
    guidance: list[Annotated[float, Field(ge=1)]] = Field(max_length=8, description="scales beside evaluate.guidance")
    steps: list[Count] = Field(max_length=8, description="numbers of steps beside evaluate.steps, also timed")


class EvaluateParams(Section):
    guidance: float = Field(ge=1, description="classifier-free guidance scale; 1 is none")
    sampler: Literal["euler", "heun", "dpm_solver_2m", "unipc", "ancestral"] = Field(
        description="how the model walks from noise to data; `heun` asks it twice per step"
    )
    steps: Count = Field(description="sampler steps")
    captions: Count = Field(
        description="records per split whose captions are drawn; few captions that repeat are drawn as often"
    )
    seeds: Count = Field(description="pictures per caption at least, each with a seed of its own")
    seed: Seed = Field(description="first seed")
    batch_size: Count = Field(description="pictures drawn per call")
    reconstructions: int = Field(ge=0, description="held-out pictures sent through the VAE and back; 0 leaves it out")
    weights: WeightsParams = Field(description="networks that more metrics need; empty ones are not measured")
    grid: GridParams = Field(description="the same prompts over guidance and steps, to look at")
    gallery_prompts: list[str] = Field(max_length=64, description="free captions in the gallery, in the data or not")


# A figure of metrics.json.
MetricName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]
# In the metric's own unit, or as a share of the champion's value.
Tolerance = Annotated[float, Field(ge=0)] | Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?%$")]


def _absent(value: float | None) -> bool:
    return value is None


class Threshold(Section):
    # What is not given is in no dump either: Kubeflow carries no nulls.
    min: float | None = Field(None, exclude_if=_absent, description="the figure must not be below this")
    max: float | None = Field(None, exclude_if=_absent, description="the figure must not be above this")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a threshold needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing could pass")
        return self


class GateParams(Section):
    thresholds: dict[MetricName, Threshold] = Field(
        description="figures and what they must reach whatever the champion does, such as heldout_loss: {max: 0.9}"
    )
    comparisons: dict[MetricName, Tolerance] = Field(
        description="figures in which a model must not be worse than the champion, and by how much it may be: in the "
        "figure's unit, or `2%` of the champion's value"
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        description="of the interval of the difference: what it excludes is taken to be so"
    )


class RegisterParams(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\- ]*$", description="name of the registered model")
    champion_alias: str = Field(
        pattern=r"^[a-z][a-z0-9_-]*$", description="alias of the model in use; given to the first that passes the gate"
    )
    challenger_alias: str = Field(
        pattern=r"^[a-z][a-z0-9_-]*$", description="alias of the newest model that the gate does not refuse"
    )
    previous_alias: str = Field(
        pattern=r"^[a-z][a-z0-9_-]*$", description="alias of the champion before this one, for `latentflow rollback`"
    )
    promote: Literal["by_hand", "when_passed"] = Field(
        description="who makes a passed challenger the champion: `latentflow promote`, or register itself"
    )
    refused: Literal["keep", "fail"] = Field(
        description="a refused model is registered without an alias; `fail` also ends the step with an error"
    )
    gate: GateParams = Field(description="what a model must reach")

    @model_validator(mode="after")
    def _aliases_differ(self) -> Self:
        if len({self.champion_alias, self.challenger_alias, self.previous_alias}) < 3:
            raise ValueError("champion_alias, challenger_alias and previous_alias must be three names")
        return self


class Params(Section):
    """The whole params.yaml."""

    ingest: IngestParams
    autoencoder: AutoencoderParams
    encode: EncodeParams
    diffusion: DiffusionParams
    model: ModelParams
    train: TrainParams
    evaluate: EvaluateParams
    register_: RegisterParams = Field(alias="register")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.train.adapter.kind != "none" and not self.model.pretrained:
            raise ValueError("train.adapter changes a trained denoiser: name one in model.pretrained")
        for field in ("control_image", "reference_image"):
            column = column_of(getattr(self.encode, field))
            if column and column not in self.ingest.condition_columns:
                raise ValueError(f"encode.{field} names the column {column}: add it to ingest.condition_columns")
        if self.train.warmup_fraction == 1 and self.train.schedule != "constant":
            raise ValueError("train.warmup_fraction 1 leaves no step for the schedule; give less than 1")
        if self.encode.bucket_step and self.autoencoder.resolution % self.encode.bucket_step:
            raise ValueError(
                f"autoencoder.resolution {self.autoencoder.resolution} is not a multiple of encode.bucket_step "
                f"{self.encode.bucket_step}"
            )
        if self.model.denoiser in ("pixart", "auraflow") and not (self.model.pretrained or self.autoencoder.pretrained):
            patch = getattr(self.model, self.model.denoiser).patch_size
            side = self.autoencoder.resolution // 2 ** (len(self.autoencoder.channels) - 1)
            if side % patch:
                raise ValueError(
                    f"model.{self.model.denoiser}.patch_size {patch} does not divide latents of {side}x{side}"
                )
        return self


class IngestInputs(Section):
    ingest: IngestParams


class AutoencoderInputs(Section):
    autoencoder: AutoencoderParams


class EncodeInputs(Section):
    encode: EncodeParams


class TrainInputs(Section):
    train: TrainParams
    model: ModelParams
    diffusion: DiffusionParams


class EvaluateInputs(Section):
    evaluate: EvaluateParams


class RegisterInputs(Section):
    register_: RegisterParams = Field(alias="register")
    # How the champion is judged, where the registry holds no evaluation of it that compares.
    evaluate: EvaluateParams


# What each step reads; the DVC stages, the KFP components and the fingerprints all follow from it.
STEP_INPUTS: dict[str, type[Section]] = {
    "ingest": IngestInputs,
    "autoencoder": AutoencoderInputs,
    "encode": EncodeInputs,
    "train": TrainInputs,
    "evaluate": EvaluateInputs,
    "register": RegisterInputs,
}

S = TypeVar("S", bound=BaseModel)


def parse(model: type[S], values: Any, source: str) -> S:
    """Validates ``values``; every fault becomes a line with the field, what was found and what was expected."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_sentence(fault) for fault in error.errors()]
        raise ParamsError("\n".join([f"{source}: {len(lines)} parameter(s) cannot be used", *lines])) from None


def _sentence(fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "(whole file)"
    if fault["type"] == "extra_forbidden":
        return f"  {field}: unknown parameter; check the spelling"
    if fault["type"] == "missing":
        return f"  {field}: missing; add it"
    found = fault["input"]
    shown = "" if isinstance(found, dict | BaseModel) else f", found {found!r}"
    return f"  {field}: {fault['msg'].removeprefix('Value error, ')}{shown}"


def load(path: Path, overrides: list[str] | None = None) -> Params:
    """Reads params.yaml; ``overrides`` are ``section.field=value`` with the value in YAML."""
    if not path.is_file():
        raise ParamsError(f"{path} does not exist: run in the project's folder or give --params.")
    values = _mapping(path.read_text(encoding="utf-8"), str(path), "sections (ingest, autoencoder, ...)")
    for override in overrides or []:
        _set(values, override)
    return parse(Params, values, str(path))


def parse_text(model: type[S], text: str, source: str) -> S:
    """The same from YAML or JSON; ``source`` names the text in errors."""
    return parse(model, _mapping(text, source, f"the fields {', '.join(model.model_fields)}"), source)


def _mapping(text: str, source: str, expected: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParamsError(f"{source} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ParamsError(f"{source}: expected {expected}, found {type(values).__name__}.")
    return values


def _set(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or "." not in name:
        raise ParamsError(f"--set {override}: expected section.field=value.")
    *parents, field = name.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            raise ParamsError(f"--set {override}: there is no section {parent}.")
        values = values[parent]
    try:
        values[field] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ParamsError(f"--set {override}: the value is not YAML.") from None


def for_step(params: Params, step: str) -> Section:
    """The sections that ``step`` reads, as its own validated model."""
    model = STEP_INPUTS[step]
    return model.model_validate(
        {field.alias or name: getattr(params, name) for name, field in model.model_fields.items()}
    )
