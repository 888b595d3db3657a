"""How each pipeline of diffusers reads captions: which of its text models, to how many tokens, what is made of it.

A denoiser is used to its own pipeline's way, so this follows the pipelines' ``encode_prompt`` step by step; the tests
compare pictures' latents with theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from latentflow.data.condition import Condition
from latentflow.encoders.tower import AS_IT_IS, Reading, Tower, Wording

Flags = Mapping[str, Any]
Read = Callable[[Sequence[Tower], list[str], Flags], Condition]


@dataclass(frozen=True)
class Way:
    """A pipeline's way: its ``towers`` as (text model, tokenizer) parts, and ``read``, which makes conditions.

    ``widths`` gives those of the text and of the pooled text (0: none) from the text models' configs.
    ``length`` is the pipeline's own number of tokens for the towers in ``chosen``, which may be chosen; the others
    have that of their tokenizer. ``wording`` is how captions are put to the towers.
    """

    towers: tuple[tuple[str, str], ...]
    read: Read
    widths: Callable[[Sequence[Flags]], tuple[int, int]]
    chosen: tuple[str, ...] = ()
    length: int = 0
    wording: Wording = AS_IT_IS

    @property
    def parts(self) -> list[str]:
        """The subfolders of the pipeline that are read."""
        return [part for pair in self.towers for part in pair]


ONE = (("text_encoder", "tokenizer"),)
TWO = (*ONE, ("text_encoder_2", "tokenizer_2"))
FLUX_2_LAYERS = (9, 18, 27)
THREE = (*TWO, ("text_encoder_3", "tokenizer_3"))


def _stable_diffusion(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """The last hidden states; padding is hidden from the text model only where its config says so."""
    (clip,) = towers
    found = clip.read(captions, masked=getattr(clip.model.config, "use_attention_mask", False))
    return Condition(found.hidden, found.mask)


def _stable_diffusion_xl(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """Both CLIPs' last but one layer side by side, and the second's pooled text; zeros for the empty caption."""
    first, second = (tower.read(captions, layer=-2) for tower in towers)
    text, pooled = torch.cat([first.hidden, second.hidden], -1), _pooled(second)
    if flags.get("force_zeros_for_empty_prompt"):
        filled = torch.tensor([float(bool(caption)) for caption in captions], device=text.device)
        text, pooled = text * filled[:, None, None], pooled * filled[:, None]
    return Condition(text, second.mask, pooled)


def _stable_diffusion_3(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """Both CLIPs side by side, padded to T5's width, then T5; both CLIPs' pooled text."""
    first, second = (tower.read(captions, layer=-2) for tower in towers[:2])
    t5 = towers[2].read(captions)
    clip = torch.cat([first.hidden, second.hidden], -1)
    clip = F.pad(clip, (0, t5.hidden.shape[-1] - clip.shape[-1]))
    pooled = torch.cat([_pooled(first), _pooled(second)], -1)
    return Condition(torch.cat([clip, t5.hidden], 1), torch.cat([first.mask, t5.mask], 1), pooled)


def _flux(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """T5's last hidden states, padding included, and CLIP's pooled text."""
    clip, t5 = (tower.read(captions) for tower in towers)
    return Condition(t5.hidden, t5.mask, _pooled(clip))


def _qwen_message(_: PreTrainedTokenizerBase, caption: str) -> str:
    """Qwen-Image's own, whatever the tokenizer's template for chats is."""
    return (
        "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
        f"relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{caption}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def _message(tokenizer: PreTrainedTokenizerBase, caption: str, thinking: bool) -> str:
    """The tokenizer's own template around the caption, ready for an answer, with thoughts or without."""
    message = [{"role": "user", "content": caption}]
    put = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    return str(put)


def _cleaned(_: PreTrainedTokenizerBase, caption: str) -> str:
    """By the pipeline's own function, which also mends broken letters where ftfy is installed."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    return str(prompt_clean(caption))


QWEN = Wording(_qwen_message, 34)
Z = Wording(partial(_message, thinking=True))
FLUX_2 = Wording(partial(_message, thinking=False))
WAN = Wording(_cleaned)


def _qwen_image(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """Qwen2.5-VL's last layer, without the tokens before the caption."""
    found = towers[0].worded(captions, QWEN, layer=-1)
    return Condition(found.hidden, found.mask)


def _z_image(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """Qwen3's last but one layer, the words of the chat included."""
    found = towers[0].worded(captions, Z, layer=-2)
    return Condition(found.hidden, found.mask)


def _flux_2(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """Three of Qwen3's layers side by side, padding included."""
    found = towers[0].stacked(captions, FLUX_2, FLUX_2_LAYERS)
    return Condition(found.hidden, found.mask)


def _wan(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """UMT5's last hidden states; padding is hidden from it, and zeros afterwards."""
    found = towers[0].worded(captions, WAN, layer=-1)
    return Condition(found.hidden, found.mask)


def _ltx(towers: Sequence[Tower], captions: list[str], flags: Flags) -> Condition:
    """T5's last hidden states, padding included; it is the denoiser from which that is hidden."""
    found = towers[0].read(captions)
    return Condition(found.hidden, found.mask)


def _pooled(reading: Reading) -> Tensor:
    assert reading.pooled is not None
    return reading.pooled


def _width(config: Flags) -> int:
    """Of a text model, or of the one within a model that sees too."""
    text = config.get("text_config", config)
    return int(text.get("hidden_size") or text["d_model"])


def _one_width(configs: Sequence[Flags]) -> tuple[int, int]:
    return _width(configs[0]), 0


def _projected(config: Flags) -> int:
    return int(config["projection_dim"])


_WAN = Way(ONE, _wan, _one_width, ("text_encoder",), 512, WAN)
_LTX = Way(ONE, _ltx, _one_width, ("text_encoder",), 128)
WAYS: dict[str, Way] = {
    "StableDiffusionPipeline": Way(ONE, _stable_diffusion, _one_width),
    "StableDiffusionXLPipeline": Way(
        TWO, _stable_diffusion_xl, lambda configs: (_width(configs[0]) + _width(configs[1]), _projected(configs[1]))
    ),
    "StableDiffusion3Pipeline": Way(
        THREE,
        _stable_diffusion_3,
        lambda configs: (_width(configs[2]), _projected(configs[0]) + _projected(configs[1])),
        ("text_encoder_3",),
        256,
    ),
    "FluxPipeline": Way(TWO, _flux, lambda configs: (_width(configs[1]), _width(configs[0])), ("text_encoder_2",), 512),
    "QwenImagePipeline": Way(ONE, _qwen_image, _one_width, ("text_encoder",), 512, QWEN),
    "Flux2KleinPipeline": Way(
        ONE,
        _flux_2,
        lambda configs: (len(FLUX_2_LAYERS) * _width(configs[0]), 0),
        ("text_encoder",),
        512,
        FLUX_2,
    ),
    "WanPipeline": _WAN,
    "WanImageToVideoPipeline": _WAN,
    "LTXPipeline": _LTX,
    "LTXImageToVideoPipeline": _LTX,
    "ZImagePipeline": Way(ONE, _z_image, _one_width, ("text_encoder",), 512, Z),
}
"""By the pipeline's class."""
