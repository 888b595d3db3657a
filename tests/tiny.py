"""A complete text-to-image pipeline that draws in milliseconds: every part real, every part tiny, always the same."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import BertModel, BertTokenizer

    from latentflow.data.records import Record

WORDS = ("red", "green", "blue", "heart", "star", "face", "dog", "cat", "sun", "moon", "a", "of")
RESOLUTION = 16
CALL = {"num_inference_steps": 3, "guidance_scale": 2.0, "height": RESOLUTION, "width": RESOLUTION}


def build_pipeline(folder: Path) -> Path:
    """Writes a StableDiffusionPipeline with untrained weights and its generation.json, as `train` writes them."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from latentflow.diffusion import Diffusion

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = build_tokenizer(folder.parent / f"{folder.name}-vocab")
        text_encoder = build_bert(tokenizer, use_attention_mask=True).eval()
        vae = build_vae().eval()
        unet = UNet2DConditionModel(
            sample_size=RESOLUTION // 2,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=2,
            norm_num_groups=4,
        ).eval()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=1, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    generation = {"height": RESOLUTION, "width": RESOLUTION, "call": {}}
    (folder / "generation.json").write_text(json.dumps(generation), encoding="utf-8")
    (folder / "diffusion.json").write_text(json.dumps(Diffusion().to_json()), encoding="utf-8")
    return folder


def build_bert(tokenizer: "BertTokenizer", use_attention_mask: bool = False) -> "BertModel":
    """A text encoder of one layer whose weights come of the global generator."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    if use_attention_mask:
        config.use_attention_mask = True
    return BertModel(config)


def build_vae() -> "AutoencoderKL":
    """An AutoencoderKL of factor 2 whose weights come of the global generator."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=1.0,
    )


def build_tokenizer(folder: Path) -> "BertTokenizer":
    """A WordPiece tokenizer that knows WORDS and single letters; ``folder`` takes its vocabulary."""
    from transformers import BertTokenizer

    letters = [letter for char in "abcdefghijklmnopqrstuvwxyz" for letter in (char, f"##{char}")]
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return BertTokenizer.from_pretrained(str(folder), model_max_length=8)


def make_record(record_id: str, caption: str, split: str) -> "Record":
    """A record whose media nobody reads."""
    from latentflow.data.records import Record

    return Record(record_id, (caption,), split, "picture", 8, 8, 1, 0.0, 0, 0, 0, b"", "", ())
