"""Where captions become conditions, as ``encode.text_encoder`` names it: a model by itself, or a whole pipeline."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from latentflow.data.condition import Condition
from latentflow.encoders import checkpoint, text
from latentflow.encoders.checkpoint import Checkpoint
from latentflow.encoders.readings import WAYS, Way
from latentflow.encoders.tower import SETTING, Tower, load_tokenizer
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, copy_tree_or_file, digest_folder, digest_model
from latentflow.manifest import Shard, TextFacts
from latentflow.params import EncodeParams

log = logging.getLogger(__name__)


class CaptionEncoder(Protocol):
    """Loaded models."""

    def encode(self, captions: list[str]) -> Condition:
        """What a denoiser is told of n captions; the text in float32."""

    def to(self, device: torch.device) -> None:
        """Moves the models."""


class CaptionSource(Protocol):
    """What is known of the models before they are loaded, and what the encoded set says of them."""

    max_tokens: int

    @property
    def digest(self) -> str:
        """Of the models' content."""

    @property
    def made_from(self) -> dict[str, Any]:
        """What the rows' content follows from, besides the captions and the stored type."""

    def load(self) -> CaptionEncoder:
        """The models. Raises LatentflowError where they cannot be loaded."""

    def hand_over(self, save: Callable[[], Path], folder: Path, captions: Sequence[str], prompts: Shard) -> TextFacts:
        """What the manifest of a set of these captions says; the models go to ``folder`` if the set has to carry them.

        ``save`` gives a folder with ``text_encoder/`` and ``tokenizer/``, written once beside the rows.
        """


def find(params: EncodeParams, weights: bool = True) -> CaptionSource:
    """The source that the parameters name; without ``weights`` only what can be known before they are downloaded.

    Raises LatentflowError where it cannot be had, is not known here, or lacks weights that its config tells of.
    """
    name = params.text_encoder
    if name == "minilm" or (pipeline := checkpoint.find(name, SETTING, _every_part(), weights)) is None:
        return Alone(name, params.max_tokens)
    source = of_pipeline(name, pipeline, params.max_tokens)
    if weights or Path(name).is_dir():
        source.check()
    return source


def of_pipeline(name: str, pipeline: Checkpoint, max_tokens: int) -> "OfPipeline":
    """The text models of a pipeline that goes by ``name``. Raises LatentflowError for one that is not known here."""
    if pipeline.kind not in WAYS:
        raise LatentflowError(
            f"{SETTING}: {name} is a {pipeline.kind}, and how it reads captions is not known here; known are "
            f"{', '.join(WAYS)}. Or name a single model's folder or hub id."
        )
    return OfPipeline(name, pipeline, WAYS[pipeline.kind], max_tokens)


def _every_part() -> list[str]:
    return sorted({part for way in WAYS.values() for part in way.parts})


class Alone:
    """``minilm``, or any folder or hub id that AutoModel loads; the set carries it along."""

    def __init__(self, name: str, max_tokens: int) -> None:
        if not max_tokens:
            raise LatentflowError(
                f"encode.max_tokens 0 leaves the length to a pipeline, and {SETTING} {name} is none; give a length."
            )
        self.name = name
        self.digest = digest_model(name)
        self.max_tokens = max_tokens
        self.made_from = {"text_encoder": self.digest, "max_tokens": max_tokens}

    def load(self) -> CaptionEncoder:
        return text.load(self.name, self.max_tokens)

    def hand_over(self, save: Callable[[], Path], folder: Path, captions: Sequence[str], prompts: Shard) -> TextFacts:
        saved = save()
        for name in ("text_encoder", "tokenizer"):
            with atomic_folder(folder / name) as temporary:
                copy_tree_or_file(saved / name, temporary)
        model = text.SavedText(saved)
        return TextFacts(
            width=model.width,
            cased=model.cased,
            text_encoder=digest_folder(saved / "text_encoder"),
            tokenizer=digest_folder(saved / "tokenizer"),
            prompts=prompts.sha256,
            captions_cut=model.count_cut(list(captions), self.max_tokens),
        )


class OfPipeline:
    """The text models of a pipeline; train takes them from model.pretrained, which has to hold the very same."""

    def __init__(self, name: str, pipeline: Checkpoint, way: Way, max_tokens: int) -> None:
        if lacking := [part for part in way.parts if part not in pipeline.parts]:
            raise LatentflowError(f"{SETTING}: {name} is a {pipeline.kind} without {', '.join(lacking)}.")
        self.pipeline, self.way = pipeline, way
        self.lengths = {tower: self._length(name, tower, tokenizer, max_tokens) for tower, tokenizer in way.towers}
        self.max_tokens = max(self.lengths[tower] for tower in way.chosen or self.lengths)

    @cached_property
    def digest(self) -> str:
        """Of all that is read of the pipeline."""
        return self.pipeline.digest(self.way.parts)

    @cached_property
    def made_from(self) -> dict[str, Any]:
        return {"text_encoder": self.digest, "pipeline": self.pipeline.kind, "max_tokens": self.max_tokens}

    def _length(self, name: str, tower: str, tokenizer: str, max_tokens: int) -> int:
        if tower in self.way.chosen:
            return max_tokens or self.way.length
        own = int(self.tokenizers[tokenizer].model_max_length)
        if max_tokens not in (0, own) and not self.way.chosen:
            raise LatentflowError(
                f"encode.max_tokens {max_tokens}: the {self.pipeline.kind} {name} reads captions as {own} tokens; "
                "set it to 0."
            )
        return own

    def check(self) -> None:
        """Raises LatentflowError unless the weights are those of the text models; none are read."""
        for tower, _ in self.way.towers:
            Tower.check(self.pipeline, tower)

    @cached_property
    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """By their part."""
        names = [tokenizer for _, tokenizer in self.way.towers]
        return {name: load_tokenizer(self.pipeline.folder / name) for name in names}

    def load(self) -> CaptionEncoder:
        towers = [
            Tower.load(self.pipeline, tower, self.tokenizers[tokenizer], self.lengths[tower])
            for tower, tokenizer in self.way.towers
        ]
        return _Towers(towers, self.way, self.pipeline.index)

    def hand_over(
        self,
        save: Callable[[], Path],  # noqa: ARG002
        folder: Path,  # noqa: ARG002
        captions: Sequence[str],
        prompts: Shard,
    ) -> TextFacts:
        cut = self.cut(captions)
        for tower, count in cut.items():
            if count:
                log.warning("%s reads %d tokens, and %d captions are longer", tower, self.lengths[tower], count)
        first = self.tokenizers[self.way.towers[0][1]]
        return TextFacts(
            width=prompts.shape[-1],
            cased=bool(first("A B").input_ids != first("a b").input_ids),
            text_encoder=self.digest,
            tokenizer="",
            prompts=prompts.sha256,
            captions_cut=min(cut.values()),
            pipeline=self.pipeline.kind,
            pooled_width=prompts.keys["text_pooled"][0][-1] if "text_pooled" in prompts.keys else 0,
        )

    def cut(self, captions: Sequence[str]) -> dict[str, int]:
        """How many captions are longer than what each text model reads."""
        wording, counts = self.way.wording, {}
        for tower, name in self.way.towers:
            tokenizer, most = self.tokenizers[name], self.lengths[tower] + wording.dropped
            ids = tokenizer([wording.put(tokenizer, caption) for caption in captions]).input_ids
            counts[tower] = sum(len(one) > most for one in ids)
        return counts


@dataclass(frozen=True)
class _Towers:
    """A pipeline's loaded text models."""

    towers: list[Tower]
    way: Way
    flags: Mapping[str, Any]

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Condition:
        return self.way.read(self.towers, captions, self.flags)

    def to(self, device: torch.device) -> None:
        for tower in self.towers:
            tower.model.to(device)  # type: ignore[arg-type]
