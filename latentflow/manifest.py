"""What every step's output folder says about itself, and the fingerprint under which its work is kept."""

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from latentflow.errors import LatentflowError
from latentflow.files import digest_json, write_json
from latentflow.params import Section

FILE = "manifest.json"


class Manifest(BaseModel):
    """The head of every ``manifest.json``.

    ``digest`` covers what the step computed and nothing about when, where or under which id.
    ``fingerprint`` covers what it was computed from: the validated parameters and the inputs' digests.
    """

    model_config = ConfigDict(extra="forbid")

    step: str
    digest: str
    fingerprint: str
    inputs: dict[str, str]

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads a folder's manifest; a missing or foreign one is an error that names the command to run."""
        step = cls.model_fields["step"].default
        path = folder / FILE
        if not path.is_file():
            raise LatentflowError(
                f"{folder} holds no {FILE}: run `latentflow {step}` first, or give its output folder."
            )
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, text: bytes, origin: str) -> Self:
        """The manifest that ``text`` is; ``origin`` names it in the error when it is another step's."""
        try:
            return cls.model_validate(json.loads(text))
        except (ValidationError, ValueError) as error:
            step = cls.model_fields["step"].default
            raise LatentflowError(f"{origin} is not what `latentflow {step}` writes: {error}") from error


def fingerprint(step: str, version: int, params: Section, inputs: dict[str, str], force_rerun: str = "") -> str:
    """Content address of a step's work: format version, parameters that decide results, input digests, rerun token."""
    return digest_json(
        {
            "step": step,
            "version": version,
            "params": params.identity(),
            "inputs": inputs,
            "force_rerun": force_rerun,
        }
    )


class DuplicateCounts(BaseModel):
    """How many records repeat an earlier one, byte for byte or nearly, and how many of them were left out."""

    model_config = ConfigDict(extra="forbid")

    exact: int
    near: int
    dropped: int


class RecordsManifest(Manifest):
    """``ingest``: records.parquet, ``media/``, quarantine.jsonl, duplicates.jsonl, report.html, metrics.json."""

    step: str = "ingest"
    source: str
    revision: str
    license: str
    credit: str
    counts: dict[str, int]
    quarantined: int
    duplicates: DuplicateCounts


class AutoencoderManifest(Manifest):
    """``autoencoder``: ``vae/`` (a diffusers AutoencoderKL folder, of digest ``weights``), reconstructions.png."""

    step: str = "autoencoder"
    weights: str
    resolution: int
    trained: bool


Kind = Literal["latents", "images", "text"]


class Shard(BaseModel):
    """One safetensors file of the encoded set: a run of records of one split and one shape, or of captions.

    ``moments`` are, for latents, each channel's sum and sum of squares over the shard.
    """

    model_config = ConfigDict(extra="forbid")

    file: str
    kind: Kind
    split: str
    count: int
    sha256: str
    keys: dict[str, tuple[list[int], str]]
    moments: tuple[list[float], list[float]] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one row's latents or text."""
        return tuple(self.keys[self.kind][0][1:])


class TextFacts(BaseModel):
    """What the set's manifest says of its text encoder, by digests; ``captions_cut`` are longer than the encoder's.

    ``pipeline`` is the class of the pipeline whose way captions were read, "" for a model by itself, and
    ``pooled_width`` that of the pooled text, 0 where there is none.
    """

    width: int
    cased: bool
    text_encoder: str
    tokenizer: str
    prompts: str
    captions_cut: int
    pipeline: str = ""
    pooled_width: int = 0


class ImageFacts(BaseModel):
    """What the set's manifest says of its images: what ``control`` is (encode.control_image), "" for none.

    ``width`` is that of the embeddings of reference images, 0 for none, and ``encoder`` the digest of what made them.
    """

    control: str = ""
    width: int = 0
    encoder: str = ""


class EncodedPart(BaseModel):
    """What ``encode --part`` leaves beside its shards; the first part also holds the text and image encoders."""

    model_config = ConfigDict(extra="forbid")

    fingerprint: str
    number: int
    of: int
    shards: list[Shard]
    text: TextFacts | None
    images: ImageFacts | None = None

    @staticmethod
    def file(number: int, of: int) -> str:
        """The name of the file that describes a part."""
        return f"part-{number:05d}-of-{of:05d}.json"

    def write(self, folder: Path) -> None:
        write_json(folder / self.file(self.number, self.of), self.model_dump(mode="json"))

    @classmethod
    def read_all(cls, folder: Path) -> list[Self]:
        """The parts in ``folder``, by number."""
        paths = sorted(folder.glob("part-*-of-*.json"))
        return [cls.model_validate_json(path.read_text(encoding="utf-8")) for path in paths]


class EncodedManifest(Manifest):
    """``encode``: latents/, images/, text/, index.parquet, prompts.safetensors, and the encoders in their folders.

    ``text_encoder/`` and ``tokenizer/`` are there unless ``text_pipeline`` says that the captions were read by a
    pipeline of that class, images/ where there are ``images``, and ``image_encoder/`` where these have a width.
    ``shards`` are in the order of the rows: latents by split, shape and number, images likewise, then text. The files
    may lie in several folders, one per part that encoded them; their names are the same as if one had.
    """

    step: str = "encode"
    shards: list[Shard]
    counts: dict[str, int]
    index_sha256: str
    prompts_sha256: str
    latent_shape: list[int]
    latent_mean: list[float]
    latent_std: list[float]
    text_width: int
    text_pipeline: str = ""
    pooled_width: int = 0
    max_tokens: int
    cased: bool
    resolution: int
    sample_prompts: list[str]
    origin: dict[str, str]
    images: ImageFacts = ImageFacts()


class ModelManifest(Manifest):
    """``train``: ``pipeline/`` (a diffusers folder), metrics.json, plots/*.csv, samples/*.png, perhaps ``averages/``.

    ``mlflow_run_id`` is the run in which the model was trained; ``lineage`` is what that run was told
    (digests, revision, environment) and from which it can be rebuilt in another MLflow store.
    """

    step: str = "train"
    pipeline_class: str
    resolution: int
    mlflow_run_id: str
    lineage: dict[str, str]


class EvaluationManifest(Manifest):
    """``evaluate``: metrics.json, gallery.png, report.html."""

    step: str = "evaluate"
    mlflow_run_id: str
    metrics: dict[str, float]


class RegistrationManifest(Manifest):
    """``register``: which version of the registered model holds this model with this evaluation.

    Beside it lie verdict.md, verdict.json and, where there was a champion, comparison.html. ``alias`` is "" for a model
    that the gate refused, ``status`` is the gate's, ``champion`` the version with which it was compared.
    """

    step: str = "register"
    name: str
    version: str
    alias: str
    mlflow_run_id: str
    status: str = ""
    champion: str = ""
