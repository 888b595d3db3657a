"""A text-to-video toy on the CPU: emoji that move as their caption says, through every step that clips take.

    python benchmarks/moving_emoji.py [--work FOLDER] [--clips 960] [--vae-steps 1500] [--steps 800]

Makes the clips, trains a small AutoencoderKLWan on them, puts it with a random WanTransformer3DModel into a
WanPipeline, and trains that pipeline by ingest, autoencoder, encode and train. Then plain diffusers draws every caption
with what was delivered. Prints the held-out loss before and after and how many of the drawn clips move as they should;
writes moving_emoji.png. What is finished in the work folder is not made again.
"""

import argparse
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from latentflow import denoisers
from latentflow import params as parameters
from latentflow.data.emoji import EmojiSource
from latentflow.data.encoded import EncodedSet
from latentflow.data.media import decode_picture
from latentflow.devices import seeded_weights
from latentflow.encoders import text as text_room
from latentflow.evaluation.heldout import heldout_groups, heldout_loss, heldout_sigmas
from latentflow.evaluation.metrics import psnr
from latentflow.files import atomic_file, atomic_folder
from latentflow.pictures import from_bytes, grid, to_strip
from latentflow.progress import track
from latentflow.steps import autoencoder, encode, ingest, train

ROOT = Path(__file__).resolve().parents[1]
SIDE, FRAMES, EMOJI = 32, 9, 20
TRAVEL = 12
"""Pixels by which an emoji is elsewhere in the last frame than in the first."""

CHANNELS, WHITE = 8, torch.tensor(1.0)
ALONE, PARTS, WARM_UP = 0.4, 5, 50
"""Of the VAE's steps the share with single frames, then how many frames a part of a clip has; steps of warming up."""

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
NAMES = (
    *("red heart", "green heart", "blue heart", "yellow heart", "pizza", "rocket", "snowman", "red apple"),
    *("green apple", "sun with face", "full moon", "soccer ball", "basketball", "dog face", "cat face", "frog"),
    *("panda", "pig face", "tiger face", "crab", "grinning face", "crying face", "alien", "ghost"),
)
GUIDANCE, DRAW_STEPS, SEEDS = 4.0, 20, 2
Z95 = 1.96


@dataclass(frozen=True)
class Clip:
    """``pixels`` (frames, side, side, 3) uint8."""

    pixels: NDArray[np.uint8]
    caption: str


def clips(count: int) -> Iterator[Clip]:
    """Every emoji in every direction in turn, each time on another line: no two are the same."""
    pictures = {one.captions: decode_picture(one.media.read()) for one in EmojiSource().candidates()}
    kinds = [(name, direction) for direction in DIRECTIONS for name in NAMES]
    lines = np.random.default_rng(0).permuted(np.tile(np.arange(SIDE - EMOJI + 1), (len(kinds), 1)), axis=1)
    for number in range(min(count, lines.size)):
        time, kind = divmod(number, len(kinds))
        name, direction = kinds[kind]
        picture = pictures[name].resize((EMOJI, EMOJI), Image.Resampling.LANCZOS)
        yield Clip(_moving(picture, direction, int(lines[kind, time])), f"{name} moving {direction}")


def _moving(picture: Image.Image, direction: str, across: int) -> NDArray[np.uint8]:
    down, right = DIRECTIONS[direction]
    frames = []
    for number in range(FRAMES):
        along = round(TRAVEL * number / (FRAMES - 1))
        place = along if down + right > 0 else TRAVEL - along
        frame = Image.new("RGB", (SIDE, SIDE), "white")
        frame.paste(picture, (place, across) if right else (across, place))
        frames.append(np.asarray(frame))
    return np.stack(frames)


def write_clips(folder: Path, count: int) -> None:
    """Lossless enough mp4 files, with metadata.jsonl."""
    import av

    with atomic_folder(folder) as temporary:
        rows = []
        for number, clip in enumerate(track(clips(count), "clips", count)):
            buffer, file = io.BytesIO(), f"{number:05d}.mp4"
            with av.open(buffer, "w", format="mp4") as container:
                stream = container.add_stream("mpeg4", rate=8, options={"qscale": "2"})
                stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
                for pixels in clip.pixels:
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
                container.mux(stream.encode())
            (temporary / file).write_bytes(buffer.getvalue())
            rows.append(json.dumps({"file_name": file, "text": clip.caption}) + "\n")
        (temporary / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def trained_vae(pixels: torch.Tensor, steps: int) -> AutoencoderKLWan:
    """A VAE of factor 4 in space and time, its latents' statistics in its config; ``pixels`` (n, 3, f, h, w)."""
    sizes: dict[str, Any] = {"base_dim": 16, "z_dim": CHANNELS, "dim_mult": [1, 2, 2], "num_res_blocks": 1}
    factors = {"temperal_downsample": [True, True], "scale_factor_spatial": 4, "scale_factor_temporal": 4}
    with seeded_weights(0):
        vae = AutoencoderKLWan(**sizes, **factors, latents_mean=[0.0] * CHANNELS, latents_std=[1.0] * CHANNELS)
    optimizer = torch.optim.AdamW(vae.parameters())
    generator = torch.Generator().manual_seed(0)
    alone = round(ALONE * steps)
    for step in track(range(steps), "VAE", steps):
        # Single frames first, which cost little: then the halves of space are learnt when those of time come to it.
        frames, count, peak = (1, 16, 2e-3) if step < alone else (PARTS, 6, 1e-3)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / WARM_UP)
        chosen = torch.randint(len(pixels), (count,), generator=generator)
        first = int(torch.randint(0, FRAMES - frames + 1, (1,), generator=generator))
        batch = pixels[chosen, :, first : first + frames]
        # Without the posterior's noise, in which so small a set on white would drown before anything is learnt.
        loss = F.mse_loss(vae.decode(vae.encode(batch).latent_dist.mode()).sample, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mode() for part in pixels[:256].split(16)])
        decoded = vae.decode(latents[:16]).sample.clamp(-1, 1)
    given, white = (psnr(one, pixels[:16], peak=2.0) for one in (decoded, WHITE))
    print(f"the VAE gives clips back at {given:.1f} dB; white ones would be at {white:.1f} dB")
    mean, std = latents.mean((0, 2, 3, 4)).tolist(), latents.std((0, 2, 3, 4)).tolist()
    vae.register_to_config(latents_mean=mean, latents_std=std)
    return vae.eval()


def write_pipeline(folder: Path, vae: AutoencoderKLWan) -> None:
    """A WanPipeline with a random denoiser and the embedded text encoder."""
    text = text_room.load("minilm", max_tokens=16)
    with seeded_weights(0):
        transformer = WanTransformer3DModel(
            num_attention_heads=3,
            attention_head_dim=48,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=384,
            ffn_dim=432,
            num_layers=4,
            rope_max_seq_len=32,
        )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    with atomic_folder(folder) as temporary:
        WanPipeline(
            vae=vae,
            text_encoder=text.model,
            tokenizer=text.tokenizer,
            transformer=transformer,
            scheduler=scheduler,
        ).save_pretrained(temporary)


def settings(work: Path, steps: int) -> list[str]:
    pipeline = work / "pipeline"
    values = {
        "ingest.source": work / "clips",
        "ingest.min_side": 16,
        "autoencoder.pretrained": pipeline,
        "autoencoder.resolution": SIDE,
        "encode.text_encoder": pipeline,
        "encode.max_tokens": 16,
        "encode.clip_frames": FRAMES,
        "encode.sample_prompts": json.dumps([f"pizza moving {direction}" for direction in DIRECTIONS]),
        "model.pretrained": pipeline,
        "train.steps": steps,
        "train.batch_size": 32,
        "train.learning_rate": 0.001,
        "train.sigma_mean": 0.5,
        "train.validate_every": max(1, steps // 5),
        "train.sample_every": steps,
    }
    return [f"{name}={value}" for name, value in values.items()]


def train_pipeline(work: Path, steps: int) -> None:
    params = parameters.load(ROOT / "params.yaml", settings(work, steps))
    records, vae, encoded = (work / name for name in ("records", "autoencoder", "encoded"))
    ingest.run(parameters.for_step(params, "ingest"), records)
    autoencoder.run(parameters.for_step(params, "autoencoder"), records, vae)
    encode.run(parameters.for_step(params, "encode"), records, vae, encoded)
    train.run(parameters.for_step(params, "train"), train.Sources(encoded, vae), work / "model")


def losses(work: Path) -> tuple[float, float]:
    """The test split's loss with the random denoiser and with the trained one."""
    groups = heldout_groups(EncodedSet.open(work / "encoded").split("test"), torch.device("cpu"))
    after = denoisers.load(work / "model" / "pipeline")
    random = WanTransformer3DModel.from_pretrained(work / "pipeline" / "transformer").eval().requires_grad_(False)
    sigmas = heldout_sigmas(after.definition)
    before, last = (
        heldout_loss(one.predict, groups, one.definition, sigmas, 0, 64).mean
        for one in (replace(after, model=random), after)
    )
    return before, last


def draw(work: Path) -> dict[str, list[NDArray[np.uint8]]]:
    """Clips (frames, side, side, 3) by caption, drawn by diffusers alone."""
    pipeline = DiffusionPipeline.from_pretrained(work / "model" / "pipeline", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    drawn: dict[str, list[NDArray[np.uint8]]] = {}
    captions = [f"{name} moving {direction}" for name in NAMES for direction in DIRECTIONS]
    for start in track(range(0, len(captions), 8), "drawing"):
        some = captions[start : start + 8]
        for seed in range(SEEDS):
            frames = pipeline(
                prompt=some,
                height=SIDE,
                width=SIDE,
                num_frames=FRAMES,
                num_inference_steps=DRAW_STEPS,
                guidance_scale=GUIDANCE,
                max_sequence_length=16,
                generator=[torch.Generator().manual_seed(1000 * seed + start + place) for place in range(len(some))],
                output_type="np",
            ).frames
            for caption, clip in zip(some, frames, strict=True):
                drawn.setdefault(caption, []).append((clip * 255).round().astype(np.uint8))
    return drawn


def moved(clip: NDArray[np.uint8]) -> str:
    """The direction in which what is not white is moved from the first frame to the last."""
    dark = 255.0 - clip[[0, -1]].astype(np.float64).min(-1)
    dark[dark < 40] = 0
    rows, columns = np.mgrid[:SIDE, :SIDE]
    weight = np.maximum(dark.sum((1, 2)), 1e-9)
    down, right = (float(np.diff((dark * places).sum((1, 2)) / weight)[0]) for places in (rows, columns))
    if abs(down) > abs(right):
        return "down" if down > 0 else "up"
    return "right" if right > 0 else "left"


def report(work: Path, steps: int) -> None:
    before, after = losses(work)
    drawn = draw(work)
    right = [float(moved(clip) == caption.split()[-1]) for caption, several in drawn.items() for clip in several]
    share, half = float(np.mean(right)), Z95 * float(np.std(right)) / len(right) ** 0.5
    print(f"held-out loss {before:.3f} before, {after:.3f} after {steps} steps")
    print(f"{100 * share:.1f} ± {100 * half:.1f} % of {len(right)} clips move as their caption says (chance is 25 %)")
    shown = [
        to_strip(torch.from_numpy(drawn[f"{name} moving {direction}"][0]).permute(3, 0, 1, 2), FRAMES)
        for name in ("pizza", "rocket", "red heart", "dog face")
        for direction in DIRECTIONS
    ]
    with atomic_file(work / "moving_emoji.png") as temporary:
        grid(shown, columns=2, scale=2).save(temporary, format="PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / ".latentflow" / "benchmarks" / "moving_emoji")
    parser.add_argument("--clips", type=int, default=960)
    parser.add_argument("--vae-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=800)
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    os.environ.setdefault("LATENTFLOW_STORE", str(work / "store"))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{work}/mlflow.db")
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "clips").is_dir():
        write_clips(work / "clips", arguments.clips)
    if not (work / "pipeline").is_dir():
        some = np.stack([clip.pixels for clip in clips(min(arguments.clips, 960))])
        pixels = from_bytes(torch.from_numpy(some)).transpose(1, 2).contiguous()
        write_pipeline(work / "pipeline", trained_vae(pixels, arguments.vae_steps))
    train_pipeline(work, arguments.steps)
    report(work, arguments.steps)


if __name__ == "__main__":
    main()
