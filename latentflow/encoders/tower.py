"""One text model with its tokenizer: the half of a pipeline's text encoding that is the same everywhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from latentflow.encoders.checkpoint import Checkpoint, require_whole
from latentflow.errors import LatentflowError

SETTING = "encode.text_encoder"


@dataclass(frozen=True)
class Wording:
    """How a caption is put to a text model: ``put`` makes the text of it, as a message of a chat, or cleaned.

    ``dropped``: how many tokens that begin every such text are left out of what is read.
    """

    put: Callable[[PreTrainedTokenizerBase, str], str]
    dropped: int = 0


AS_IT_IS = Wording(lambda _, caption: caption)


@dataclass(frozen=True)
class Reading:
    """What a model made of n captions: ``hidden`` (n, length, width), ``mask`` (n, length), ``pooled`` (n, width).

    The last is the projected one where the model projects it, and None where it pools nothing.
    """

    hidden: Tensor
    mask: Tensor
    pooled: Tensor | None


@dataclass(frozen=True)
class Tower:
    """``name`` is the model's part of the pipeline; captions are padded or cut to ``length`` tokens."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    length: int

    @classmethod
    def load(cls, checkpoint: Checkpoint, name: str, tokenizer: PreTrainedTokenizerBase, length: int) -> "Tower":
        """The frozen parts of a pipeline, in fp32; those that are stored in bf16, the large ones, stay in it.

        Raises LatentflowError where they cannot be loaded or are not whole.
        """
        model = _opened(checkpoint, name)
        if model.dtype != torch.bfloat16:
            model.float()
        return cls(name, tokenizer, model.eval().requires_grad_(False), length)

    @classmethod
    def check(cls, checkpoint: Checkpoint, name: str) -> None:
        """Raises LatentflowError unless the stored weights are those of the model's config; none are read."""
        _opened(checkpoint, name, device="meta")

    def read(self, captions: list[str], layer: int | None = None, masked: bool = False) -> "Reading":
        """The hidden states after ``layer``, or after the last one and its norm.

        ``masked``: padding is hidden from the model.
        """
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        mask = tokens.attention_mask if masked else None
        answer = self.model(tokens.input_ids, attention_mask=mask, output_hidden_states=layer is not None)
        hidden = answer.last_hidden_state if layer is None else answer.hidden_states[layer]
        pooled = answer.get("text_embeds", answer.get("pooler_output"))
        return Reading(hidden.float(), tokens.attention_mask.bool(), None if pooled is None else pooled.float())

    def worded(self, captions: list[str], wording: Wording, layer: int) -> "Reading":
        """The hidden states after ``layer`` of the captions as ``wording`` puts them; padding follows, as zeros.

        Padding is hidden from the model, on whichever side its tokenizer has it.
        """
        layers, read = self._layers(captions, wording)
        hidden = layers[layer].new_zeros(len(captions), self.length, layers[layer].shape[-1])
        mask = torch.zeros_like(hidden[..., 0], dtype=torch.bool)
        for row, (states, there) in enumerate(zip(layers[layer], read, strict=True)):
            kept = states[there][wording.dropped :]
            hidden[row, : len(kept)], mask[row, : len(kept)] = kept, True
        return Reading(hidden.float(), mask, None)

    def stacked(self, captions: list[str], wording: Wording, layers: tuple[int, ...]) -> "Reading":
        """The hidden states after several layers side by side, at every place; padding is hidden from the model."""
        found, mask = self._layers(captions, wording)
        return Reading(torch.cat([found[layer] for layer in layers], -1).float(), mask, None)

    def _layers(self, captions: list[str], wording: Wording) -> tuple[Sequence[Tensor], Tensor]:
        """The hidden states of all layers, and where there is no padding."""
        tokens = self.tokenizer(
            [wording.put(self.tokenizer, caption) for caption in captions],
            padding="max_length",
            max_length=self.length + wording.dropped,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        # A language model's head would give a value for every word of its vocabulary at every place.
        answer = self.model.base_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        )
        return answer.hidden_states, tokens.attention_mask.bool()


def _opened(checkpoint: Checkpoint, name: str, device: str | None = None) -> PreTrainedModel:
    folder = checkpoint.folder / name
    library, kind = checkpoint.index[name]
    found = getattr(transformers, kind, None) if library == "transformers" else None
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise LatentflowError(f"{SETTING}: {folder} is a {library}.{kind}, which is no model of transformers.")
    try:
        model, report = found.from_pretrained(  # type: ignore[attr-defined]
            folder,
            use_safetensors=True,
            dtype="auto",
            device_map=device,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise LatentflowError(f"{SETTING}: {folder} cannot be loaded: {error}") from error
    require_whole({**report, "unexpected_keys": _foreign(report["unexpected_keys"])}, f"{SETTING}: {folder}")
    return model  # type: ignore[no-any-return]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a pipeline. Raises LatentflowError where it cannot be loaded."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)  # type: ignore[no-any-return]
    except (OSError, ValueError, RuntimeError) as error:
        raise LatentflowError(f"{SETTING}: the tokenizer in {folder} cannot be loaded: {error}") from error


def _foreign(names: list[str]) -> list[str]:
    """Without the tables of positions, which older files hold and newer classes make themselves."""
    return [name for name in names if not name.endswith("position_ids")]
