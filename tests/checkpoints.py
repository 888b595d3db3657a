"""Tiny random checkpoints in the real layout of each pretrained family: real classes, small sizes, small tokenizers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts import (
    flux_2_loss,
    flux_loss,
    ltx_led_loss,
    ltx_loss,
    qwen_image_loss,
    sd3_loss,
    unet_loss,
    wan_led_loss,
    wan_loss,
    z_image_loss,
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor, nn
    from transformers import CLIPTextModel, CLIPTokenizer, Qwen2Tokenizer, T5EncoderModel, T5Tokenizer

WORDS = ("a", "red", "green", "blue", "heart", "star", "dog", "cat", "of", "sun")
SIDE, LATENT = 32, 8
"""Pixels, and latents of a VAE of factor 4."""


@dataclass(frozen=True)
class Tiny:
    """A family's checkpoint: ``build`` makes its pipeline, ``call`` is how it is then called for a comparison,
    and ``script`` computes a training step's loss as diffusers' training script does.

    ``tokens``: encode.max_tokens. ``packed``: the pipeline's latents are sequences of patches, of that side.
    ``whitened``: it gives them as the VAE does, and shifts its schedule by the number of steps too. ``led``: it goes on
    from a first frame. ``side``, ``frames``: pixels of a picture, and how many of them are a clip (0: it is a picture).
    ``step``: by how many pixels another may be wider. ``latents``: their shape. ``scale``: the argument by which
    adapters are scaled. ``reads``: what of a condition changes the denoiser's answer.
    """

    build: Callable[[], "DiffusionPipeline"]
    script: Callable[..., "Tensor"]
    call: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    packed: int = 0
    whitened: bool = False
    led: bool = False
    side: int = SIDE
    step: int = 8
    frames: int = 0
    latents: tuple[int, ...] = (4, LATENT, LATENT)
    scale: str = "joint_attention_kwargs"
    reads: frozenset[str] = frozenset({"text"})

    def write(self, folder: Path) -> Path:
        """Writes it, with weights that do something: freshly built transformers answer zero."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(0)
            pipeline = self.build()
            for parameter in (getattr(pipeline, "unet", None) or pipeline.transformer).parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
        pipeline.save_pretrained(folder)
        return folder


def _stable_diffusion(prediction_type: str = "epsilon") -> "DiffusionPipeline":
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_vae(4, scaling_factor=0.18215),
        text_encoder=_clip(16),
        tokenizer=_clip_tokenizer(),
        unet=_unet(cross_attention_dim=16),
        scheduler=PNDMScheduler(**STABLE_DIFFUSION, skip_prk_steps=True, prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl() -> "DiffusionPipeline":
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=_vae(4, scaling_factor=0.13025),
        text_encoder=_clip(16),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(24, projected=True),
        tokenizer_2=_clip_tokenizer(pad="!"),
        unet=_unet(
            cross_attention_dim=40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
        scheduler=EulerDiscreteScheduler(**STABLE_DIFFUSION, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _stable_diffusion_3() -> "DiffusionPipeline":
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    return StableDiffusion3Pipeline(
        vae=_vae(16, scaling_factor=1.5305, shift_factor=0.0609, quantized=False),
        text_encoder=_clip(16, projected=True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(24, projected=True),
        tokenizer_2=_clip_tokenizer(pad="!"),
        text_encoder_3=_t5(48),
        tokenizer_3=_t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=LATENT,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=48,
            caption_projection_dim=32,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=12,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(guided: bool) -> "DiffusionPipeline":
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    return FluxPipeline(
        vae=_vae(4, scaling_factor=0.3611, shift_factor=0.1159, quantized=False),
        text_encoder=_clip(16),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(32),
        tokenizer_2=_t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guided,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if guided
        else FlowMatchEulerDiscreteScheduler(shift=1.0),
    )


def _flux_2() -> "DiffusionPipeline":
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    vae = AutoencoderKLFlux2(**IMAGE_VAE, latent_channels=4)
    vae.bn.running_mean.copy_(0.1 * torch.arange(16))
    vae.bn.running_var.copy_(1 + 0.2 * torch.arange(16))
    deep = _language_model() | {"num_hidden_layers": 28, "hidden_size": 16, "head_dim": 4}
    return Flux2KleinPipeline(
        vae=vae,
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**deep)).eval(),
        tokenizer=_chatting(_qwen_tokenizer()),
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        is_distilled=False,
    )


def _qwen_image() -> "DiffusionPipeline":
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    return QwenImagePipeline(
        vae=AutoencoderKLQwenImage(**VIDEO_VAE, temperal_downsample=[False, True]),
        text_encoder=_qwen_vl(),
        tokenizer=_qwen_tokenizer(),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192),
    )


def _z_image() -> "DiffusionPipeline":
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    return ZImagePipeline(
        vae=_vae(4, scaling_factor=0.3611, shift_factor=0.1159, quantized=False),
        text_encoder=Qwen3Model(Qwen3Config(**_language_model(), head_dim=8)).eval(),
        tokenizer=_chatting(_qwen_tokenizer()),
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=32,
            axes_dims=[4, 4, 8],
            axes_lens=[256, 32, 32],
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _wan(led: bool = False) -> "DiffusionPipeline":
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanPipeline,
        WanTransformer3DModel,
    )

    factors = {"temperal_downsample": [False, True], "scale_factor_spatial": 4, "scale_factor_temporal": 2}
    return (WanImageToVideoPipeline if led else WanPipeline)(
        vae=AutoencoderKLWan(**VIDEO_VAE, **factors),
        text_encoder=_t5(32, several_languages=True),
        tokenizer=_t5_tokenizer(),
        transformer=WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=16,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        expand_timesteps=led,
    )


def _ltx(led: bool = False) -> "DiffusionPipeline":
    import torch
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXImageToVideoPipeline,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )

    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
    )
    vae.latents_mean, vae.latents_std = 0.1 * torch.arange(8), 1 + 0.1 * torch.arange(8)
    return (LTXImageToVideoPipeline if led else LTXPipeline)(
        vae=vae,
        text_encoder=_t5(32),
        tokenizer=_t5_tokenizer(),
        transformer=LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024
        ),
    )


IMAGE_VAE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
    "sample_size": SIDE,
}
VIDEO_VAE: dict[str, Any] = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.5, -1.0, 0.0, 2.0],
    "latents_std": [2.0, 1.0, 0.5, 3.0],
}
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
SHORT, LONGER = {"max_sequence_length": 12}, {"max_sequence_length": 48}

_LED = frozenset({"text", "mask", "frame"})
_UNET = "cross_attention_kwargs"
_WAN: dict[str, Any] = {"call": SHORT, "tokens": 12, "step": 16, "frames": 5, "latents": (4, 3, LATENT, LATENT)}
_LTX: dict[str, Any] = {"call": SHORT, "tokens": 12, "step": 32, "frames": 17, "latents": (8, 3, 2, 2)}
_LTX |= {"packed": 1, "side": 64}
_POOLED, _MASKED = frozenset({"text", "pooled"}), frozenset({"text", "mask"})

CHECKPOINTS: dict[str, Tiny] = {
    "stable-diffusion-1.5": Tiny(_stable_diffusion, unet_loss, scale=_UNET),
    "stable-diffusion-2.1": Tiny(lambda: _stable_diffusion("v_prediction"), unet_loss, scale=_UNET),
    "stable-diffusion-xl": Tiny(_stable_diffusion_xl, unet_loss, scale=_UNET, reads=_POOLED | {"sizes"}),
    "stable-diffusion-3": Tiny(
        _stable_diffusion_3, sd3_loss, SHORT, tokens=12, latents=(16, LATENT, LATENT), reads=_POOLED
    ),
    "flux.1-dev": Tiny(lambda: _flux(guided=True), flux_loss, SHORT, tokens=12, packed=2, reads=_POOLED | {"guidance"}),
    "flux.1-schnell": Tiny(lambda: _flux(guided=False), flux_loss, SHORT, tokens=12, packed=2, reads=_POOLED),
    "flux.2-klein": Tiny(
        _flux_2, flux_2_loss, LONGER, tokens=48, latents=(16, 4, 4), whitened=True, scale="attention_kwargs"
    ),
    "qwen-image": Tiny(
        _qwen_image, qwen_image_loss, LONGER, tokens=48, packed=2, scale="attention_kwargs", reads=_MASKED
    ),
    "z-image": Tiny(_z_image, z_image_loss, LONGER, tokens=48, reads=_MASKED),
    "wan": Tiny(_wan, wan_loss, scale="attention_kwargs", **_WAN),
    "ltx-video": Tiny(_ltx, ltx_loss, scale="attention_kwargs", reads=_MASKED, **_LTX),
    "wan-from-frame": Tiny(
        lambda: _wan(led=True), wan_led_loss, scale="attention_kwargs", led=True, reads=_LED - {"mask"}, **_WAN
    ),
    "ltx-from-frame": Tiny(
        lambda: _ltx(led=True), ltx_led_loss, scale="attention_kwargs", led=True, reads=_LED, **_LTX
    ),
}


def _unet(**conditions: Any) -> "nn.Module":
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
        **conditions,
    )


def _vae(
    channels: int, scaling_factor: float, shift_factor: float | None = None, quantized: bool = True
) -> "nn.Module":
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **IMAGE_VAE,
        latent_channels=channels,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=quantized,
        use_post_quant_conv=quantized,
    )


def _clip(width: int, projected: bool = False) -> "CLIPTextModel":
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=32,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _clip_tokenizer(pad: str = "<|endoftext|>") -> "CLIPTokenizer":
    """The letters and a few merges, as CLIP's own begins."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz!"]
    merges = [("r", "e"), ("re", "d</w>"), ("h", "e"), ("he", "a"), ("c", "a"), ("ca", "t</w>")]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def _t5(width: int, several_languages: bool = False) -> "T5EncoderModel":
    from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel

    config = (UMT5Config if several_languages else T5Config)(
        vocab_size=len(_t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        dense_act_fn="gelu_new",
    )
    return (UMT5EncoderModel if several_languages else T5EncoderModel)(config).eval()


def _t5_tokenizer() -> "T5Tokenizer":
    """Pieces with their scores: whole words before letters."""
    from transformers import T5Tokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz", "▁"]
    words = [(f"▁{word}", -1.0) for word in WORDS if len(word) > 1]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(
        vocab=[*special, *words, *((letter, -5.0) for letter in letters)], extra_ids=0, model_max_length=512
    )


def _language_model() -> dict[str, Any]:
    return {
        "vocab_size": len(_qwen_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }


def _qwen_vl() -> "nn.Module":
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    seen = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    places = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(text_config=_language_model() | {"rope_scaling": places}, vision_config=seen)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def _chatting(tokenizer: "Qwen2Tokenizer") -> "Qwen2Tokenizer":
    """With a template like that of Qwen3, which answers at once unless it is to think."""
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        "{% if not enable_thinking %}no\n{% endif %}"
    )
    return tokenizer


def _qwen_tokenizer() -> "Qwen2Tokenizer":
    """Bytes, and merges that make one token of each word before a Qwen-Image caption, as in the real vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AddedToken, Qwen2Tokenizer

    words = "system Describe the image by detailing color shape size texture quantity text spatial relationships of "
    words += "objects and background user assistant"
    merges, pieces = [], sorted(ByteLevel.alphabet())
    for word in words.split():
        begun = word[0] if word in ("system", "Describe", "user", "assistant") else "Ġ"
        for letter in word[1:] if begun != "Ġ" else word:
            merges.append((begun, letter))
            begun += letter
            pieces.append(begun)
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    special = [AddedToken(f"<|{name}|>", special=True) for name in ("im_start", "im_end")]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=1024)
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer
