"""A UNet led by an IP-Adapter (Ye et al. 2023, arXiv 2308.06721): its cross-attention also looks at a reference image.

The adapter makes four tokens of the image's embedding, and keys and values for them in every cross-attention.
It is saved as ``load_ip_adapter`` of diffusers reads it.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.led import Images, LedFamily
from latentflow.denoisers.stable_diffusion_xl import StableDiffusionXL
from latentflow.denoisers.unet import UNet
from latentflow.devices import seeded_weights

FOLDER, FILE = "ip_adapter", "ip_adapter.safetensors"
# load_ip_adapter takes a single projection for one of as many tokens.
TOKENS = 4
_PROJECTION = {"image_embeds.weight": "proj.weight", "image_embeds.bias": "proj.bias"}


class WithIPAdapter(LedFamily):
    """The side that is the same for all UNets."""

    led_by = "ip_adapter"

    def join(self, unet: nn.Module, images: Images, seed: int) -> nn.Module:
        assert isinstance(unet, UNet2DConditionModel)
        with seeded_weights(seed):
            _attach(unet, images.width)
        return unet  # type: ignore[no-any-return]

    def load(self, folder: Path) -> nn.Module:
        unet = super().load(folder)
        assert isinstance(unet, UNet2DConditionModel)
        saved = load_file(folder / FOLDER / FILE)
        _attach(unet, saved["image_proj.proj.weight"].shape[1])
        with torch.no_grad():
            for name, tensor in _tensors(unet).items():
                tensor.copy_(saved[name])
        return unet  # type: ignore[no-any-return]

    def learners(self, model: nn.Module) -> list[nn.Module]:
        assert isinstance(model, UNet2DConditionModel)
        return [model.encoder_hid_proj, *_processors(model)]

    def save_beside(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, UNet2DConditionModel)
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model).items()}
        save_file(tensors, folder / FOLDER / FILE, {"format": "pt"})

    def parts(self, model: nn.Module) -> dict[str, ModelMixin]:
        """The UNet without its adapter, which no saved UNet can hold."""
        assert isinstance(model, UNet2DConditionModel)
        model.encoder_hid_proj = None
        model.config.encoder_hid_dim_type = None
        model.set_attn_processor(AttnProcessor2_0())
        return super().parts(model)

    def added(self, condition: Condition, like: Tensor) -> dict[str, Any]:
        assert condition.image is not None
        # One adapter, one image.
        return super().added(condition, like) | {"image_embeds": [condition.image[:, None].to(like.dtype)]}


class PromptedUNet(WithIPAdapter, UNet):
    """Of Stable Diffusion 1.5 and 2.1, and of models made here."""


class PromptedXL(WithIPAdapter, StableDiffusionXL):
    """Of SDXL."""


def _attach(unet: UNet2DConditionModel, width: int) -> None:
    """A new adapter for embeddings of that width; its keys and values begin as those of the caption's tokens."""
    text_width = unet.config["cross_attention_dim"]
    made: dict[str, nn.Module] = {}
    for name in unet.attn_processors:
        if name.endswith("attn1.processor"):  # Self-attention, to load_ip_adapter.
            made[name] = AttnProcessor2_0()
            continue
        attention: Any = unet.get_submodule(name.removesuffix(".processor"))
        made[name] = IPAdapterAttnProcessor2_0(attention.to_k.out_features, text_width, num_tokens=(TOKENS,))
        made[name].to_k_ip[0].load_state_dict(attention.to_k.state_dict())  # type: ignore[index,union-attr]
        made[name].to_v_ip[0].load_state_dict(attention.to_v.state_dict())  # type: ignore[index,union-attr]
    unet.set_attn_processor(made)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(width, text_width, TOKENS)])
    unet.config.encoder_hid_dim_type = "ip_image_proj"


def _processors(unet: UNet2DConditionModel) -> list[nn.Module]:
    """Those of the cross-attentions, in the order in which files number them."""
    return [one for one in unet.attn_processors.values() if isinstance(one, IPAdapterAttnProcessor2_0)]


def _tensors(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The adapter's weights by their names in a file, where cross-attentions have the odd numbers."""
    projection = unet.encoder_hid_proj.image_projection_layers[0].state_dict(keep_vars=True)
    found = {f"image_proj.{_PROJECTION.get(name, name)}": tensor for name, tensor in projection.items()}
    for number, processor in enumerate(_processors(unet)):
        for kind in ("to_k_ip", "to_v_ip"):
            found[f"ip_adapter.{2 * number + 1}.{kind}.weight"] = getattr(processor, kind)[0].weight
    return found
