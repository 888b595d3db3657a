"""The native pipeline of each family, tiny, with a text encoder and weights that do something."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow.params import ModelParams, TrainParams, load

if TYPE_CHECKING:
    from torch import nn

    from latentflow.encoders.text import TextEncoder

TOKENS, WIDTH, SHAPE = 8, 16, [4, 8, 8]
SIDE = 32


def sizes(denoiser: str, patch: int = 2, pretrained: Path | str = "") -> ModelParams:
    return ModelParams.model_validate(
        {
            "denoiser": denoiser,
            "pretrained": str(pretrained),
            "guidance": 1.0,
            "own": {},
            "unet": {
                "channels": [32, 32],
                "attention": [True, False],
                "layers_per_block": 1,
                "head_dim": 8,
                "pooled_text": True,
            },
            "pixart": {"layers": 1, "heads": 2, "head_dim": 16, "patch_size": patch},
            "auraflow": {"layers": 1, "single_layers": 1, "heads": 2, "head_dim": 16, "patch_size": patch},
        }
    )


def train_params(**changes: object) -> TrainParams:
    """The project's own, with some fields changed; ``adapter`` changes some of its fields."""
    params = load(Path(__file__).parents[1] / "params.yaml").train
    values: dict[str, Any] = params.model_dump(mode="json")
    adapter = values["adapter"] | changes.pop("adapter", {})
    return TrainParams.model_validate(values | changes | {"adapter": adapter})


def text_encoder(folder: Path) -> "TextEncoder":
    import torch
    from tiny import build_tokenizer
    from transformers import BertConfig, BertModel

    from latentflow.encoders.text import TextEncoder

    tokenizer = build_tokenizer(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        use_attention_mask=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextEncoder(tokenizer, BertModel(config).eval(), TOKENS)


def write_pipeline(denoiser: str, folder: Path, text: "TextEncoder") -> Path:
    """A saved pipeline as `train` writes it. DiT classes start at zero output, so the weights are random ones."""
    from latentflow import denoisers
    from latentflow.denoisers import DIFFUSION, FAMILIES
    from latentflow.denoisers.schedulers import scheduler_for
    from latentflow.diffusion import Diffusion
    from latentflow.encoders import vae as vae_room
    from latentflow.files import write_json

    family, diffusion = FAMILIES[denoiser], Diffusion()
    model = denoisers.build(sizes(denoiser), SHAPE, WIDTH, seed=0)
    shake(model, seed=1)
    vae = vae_room.build(SIDE, [8, 8, 8], 4, 1, seed=0).eval()
    scheduler = scheduler_for(diffusion, "euler", 16, family.flow_pipeline)
    family.pipeline(model, vae, text, scheduler).save_pretrained(folder)
    write_json(folder / DIFFUSION, diffusion.to_json())
    return folder


def shake(model: "nn.Module", seed: int, std: float = 0.1) -> None:
    """Draws all weights that are trained anew."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
