"""A small world to encode: pictures of several shapes with captions, a tiny VAE and a tiny text encoder."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tiny import RESOLUTION, WORDS, build_bert, build_tokenizer, build_vae

from latentflow.files import digest_folder
from latentflow.manifest import AutoencoderManifest
from latentflow.params import EncodeInputs, IngestInputs, load
from latentflow.steps import ingest

PARAMS = Path(__file__).parents[1] / "params.yaml"
SHAPES = ((20, 20), (20, 40), (40, 20), (18, 25))


def inputs(text_encoder: Path, *overrides: str) -> EncodeInputs:
    small = (
        f"encode.text_encoder={text_encoder}",
        "encode.max_tokens=8",
        "encode.batch_size=4",
        "encode.shard_size=5",
        "encode.workers=0",
        "encode.sample_prompts=[red heart]",
        f"autoencoder.resolution={RESOLUTION}",
    )
    return EncodeInputs(encode=load(PARAMS, [*small, *overrides]).encode)


def write_pictures(folder: Path, count: int, captions: Sequence[str] = WORDS) -> Path:
    """``count`` pictures of noise; the first ones are the same for any count."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        shape = SHAPES[number % len(SHAPES)]
        pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        rows.append({"file_name": f"{number:03d}.png", "text": captions[number % len(captions)]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def make_records(pictures: Path, out: Path) -> Path:
    shares = ("ingest.validation_fraction=0.25", "ingest.test_fraction=0.25")
    params = load(PARAMS, [f"ingest.source={pictures}", *shares]).ingest
    ingest.run(IngestInputs(ingest=params), out)
    return out


def build_autoencoder(folder: Path, seed: int = 0) -> Path:
    """What the autoencoder step leaves: a VAE of factor 2 with untrained weights."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = build_vae()
    vae.save_pretrained(folder / "vae")
    weights = digest_folder(folder / "vae")
    AutoencoderManifest(
        digest=weights, fingerprint="", inputs={}, weights=weights, resolution=RESOLUTION, trained=False
    ).write(folder)
    return folder


def build_text_encoder(folder: Path) -> Path:
    """A transformers folder with a BERT of one layer and its tokenizer."""
    import torch

    tokenizer = build_tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_bert(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
