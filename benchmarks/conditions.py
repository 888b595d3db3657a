"""Do learned conditions show? A ControlNet on edges and an IP-Adapter on image embeddings, on the emoji, at demo size.

    python benchmarks/conditions.py --work /tmp/conditions-demo     (goes on where it was)

A UNet is trained from scratch on the training split, then both are trained beside it, through the pipeline's own steps.
Held-out pictures are drawn by plain diffusers with their own control and with another picture's, from the same noise:
what is measured is how much nearer to the target the right one is.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from latentflow.data.encoded import EncodedSet
from latentflow.data.records import RecordSet
from latentflow.encoders import images, text
from latentflow.evaluation.metrics import Z95
from latentflow.files import atomic_folder, write_json
from latentflow.params import Params, for_step, load
from latentflow.pictures import grid, to_image
from latentflow.progress import track
from latentflow.steps import autoencoder, encode, ingest, train

ROOT = Path(__file__).parents[1]
SIDE, WIDTH, SEED, BATCH = 32, 128, 0, 32
COMMON = {
    "autoencoder.resolution": SIDE,
    "model.denoiser": "unet",
    "train.sigma_mean": 0.5,
    "train.batch_size": 32,
    "train.caption_dropout": 0.1,
    "train.validate_every": 500,
    "train.sample_every": 500,
}
LED = {"train.ema_decay": 0.99}
KINDS = {
    "controlnet": LED | {"train.steps": 600, "train.learning_rate": 0.001},
    "ip_adapter": LED | {"train.steps": 1000, "train.learning_rate": 0.001},
}


@dataclass(frozen=True)
class Figures:
    """Mean squared error to the target, pixels in [0, 1], over held-out pictures, with 95 % intervals' half widths.

    ``margin`` is the mean of another control's error minus the right one's, picture by picture; ``won`` is the share of
    pictures to which the right one is nearer. ``without`` is the error of the model that is not led.
    """

    records: int
    right: float
    right_half_width: float
    shuffled: float
    shuffled_half_width: float
    without: float
    margin: float
    margin_half_width: float
    won: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--autoencoder", type=Path, help="an autoencoder step's output for 32 px; else one is trained")
    parser.add_argument("--base-steps", type=int, default=1500, help="steps of the UNet that is led")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("LATENTFLOW_STORE", str(work / "store"))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{work}/mlflow.db")

    records = _once(work / "records", lambda out: ingest.run(for_step(_params({}), "ingest"), out))
    given = arguments.autoencoder and arguments.autoencoder.resolve()
    vae = given or _once(
        work / "autoencoder", lambda out: autoencoder.run(for_step(_params({}), "autoencoder"), records, out)
    )
    tower = work / "tower"
    if not tower.is_dir():
        with atomic_folder(tower) as folder:
            train_tower(RecordSet.open(records)).save_pretrained(folder)
    led_by = {
        "encode.control_image": "edges",
        "encode.reference_image": "picture",
        "encode.image_encoder": str(tower),
    }
    encoded = _once(work / "encoded", lambda out: encode.run(for_step(_params(led_by), "encode"), records, vae, out))
    base_steps = {"train.steps": arguments.base_steps, "train.learning_rate": 0.002}
    base = _trained(work / "base", led_by | base_steps, encoded, vae)
    figures = {}
    for kind, changes in KINDS.items():
        chosen = led_by | changes | {"train.adapter.kind": kind, "model.pretrained": str(base / "pipeline")}
        model = _trained(work / kind, chosen, encoded, vae)
        figures[kind] = measure(kind, model, base, records, encoded, work)
        print(kind, json.dumps(asdict(figures[kind]), indent=2))
    write_json(work / "figures.json", {kind: asdict(one) for kind, one in figures.items()})


def _params(changes: dict[str, object]) -> Params:
    return load(ROOT / "params.yaml", [f"{name}={json.dumps(value)}" for name, value in (COMMON | changes).items()])


def _once(out: Path, make: Callable[[Path], object]) -> Path:
    if not out.is_dir():
        make(out)
    return out


def _trained(out: Path, changes: dict[str, object], encoded: Path, vae: Path) -> Path:
    started = time.monotonic()
    found = _once(
        out, lambda folder: train.run(for_step(_params(changes), "train"), train.Sources(encoded, vae), folder)
    )
    print(f"{out.name}: {time.monotonic() - started:.0f} s")
    return found


def train_tower(records: RecordSet, steps: int = 500) -> CLIPVisionModelWithProjection:
    """A small CLIP vision tower, of training pictures alone.

    It learns to find, among the others, the embedding of the same picture changed in another way, and of its caption.
    """
    torch.manual_seed(SEED)
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
        projection_dim=WIDTH,
    )
    model = CLIPVisionModelWithProjection(config)
    chosen = list(records.split("train"))
    encoder = images.ImageEncoder(model, images.CLIPImageProcessorPil(size=SIDE, crop_size=SIDE))
    pixels = torch.stack([encoder.prepare(records.image(record, 72, 72)) for record in chosen])
    reader = text.load("minilm", 12)
    told = [reader.encode([record.caption]) for record in chosen]
    captions = torch.cat([(one.text * one.mask[..., None]).sum(1) / one.mask.sum(1, keepdim=True) for one in told])
    beside = torch.nn.Linear(captions.shape[1], WIDTH)
    learnt = [*model.parameters(), *beside.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in track(range(steps), "image tower", steps, unit="steps"):
        rows = torch.randperm(len(pixels))[:128]
        one, other = (F.normalize(model(_changed(pixels[rows])).image_embeds, dim=-1) for _ in range(2))
        loss = _found(one, other) + _found(one, F.normalize(beside(captions[rows]), dim=-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _found(one: Tensor, other: Tensor) -> Tensor:
    """The contrastive loss of CLIP, both ways, at a temperature of 0.1."""
    places, likeness = torch.arange(len(one)), one @ other.T / 0.1
    return (F.cross_entropy(likeness, places) + F.cross_entropy(likeness.T, places)) / 2


def _changed(pixels: Tensor) -> Tensor:
    """Each picture enlarged by up to a quarter, moved, and with a little noise."""
    count = len(pixels)
    scale, move = 0.8 + 0.4 * torch.rand(count, 1), 0.2 * (2 * torch.rand(count, 2) - 1)
    zero = torch.zeros(count, 1)
    placed = torch.cat([scale, zero, move[:, :1], zero, scale, move[:, 1:]], 1).reshape(count, 2, 3)
    at = F.affine_grid(placed, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, at, padding_mode="border", align_corners=False) + 0.05 * torch.randn_like(pixels)


def measure(kind: str, model: Path, base: Path, records: Path, encoded: Path, work: Path) -> Figures:
    """Draws the test and validation split three times, and a sheet of the first ones."""
    targets, captions, conditions = [], [], []
    record_set, encoded_set = RecordSet.open(records), EncodedSet.open(encoded)
    by_id = {record.id: record for record in record_set.table}
    for name in ("test", "validation"):
        split = encoded_set.split(name)
        for bucket, one in enumerate(split.buckets):
            rows = torch.arange(one.count)
            told = split.samples(bucket, rows).condition
            conditions += list(told.control if kind == "controlnet" else told.image)  # type: ignore[arg-type]
            found = [by_id[name] for name in split.ids(bucket, rows)]
            targets += list(record_set.pixels(found, SIDE) / 2 + 0.5)
            captions += [record.caption for record in found]
    truth, own = torch.stack(targets), torch.stack(conditions)
    # Everybody gets the next one's, so nobody keeps their own.
    order = torch.randperm(len(own), generator=torch.Generator().manual_seed(SEED))
    other = torch.empty_like(own)
    other[order] = own[order.roll(1)]
    pipeline = DiffusionPipeline.from_pretrained(model / "pipeline", local_files_only=True)
    if kind == "ip_adapter":
        pipeline.load_ip_adapter(str(model), subfolder="ip_adapter", weight_name="ip_adapter.safetensors")
    right, shuffled = (_drawn(pipeline, kind, captions, one) for one in (own, other))
    plain = _drawn(DiffusionPipeline.from_pretrained(base / "pipeline", local_files_only=True), "", captions, own)
    errors = {name: (one - truth).square().flatten(1).mean(1) for name, one in
              {"right": right, "shuffled": shuffled, "without": plain}.items()}  # fmt: skip
    _sheet(kind, truth, own, other, right, shuffled, plain).save(work / f"{kind}.png")
    margin = errors["shuffled"] - errors["right"]
    return Figures(
        records=len(truth),
        right=errors["right"].mean().item(),
        right_half_width=_half_width(errors["right"]),
        shuffled=errors["shuffled"].mean().item(),
        shuffled_half_width=_half_width(errors["shuffled"]),
        without=errors["without"].mean().item(),
        margin=margin.mean().item(),
        margin_half_width=_half_width(margin),
        won=(margin > 0).float().mean().item(),
    )


def _half_width(values: Tensor) -> float:
    return Z95 * values.std().item() / math.sqrt(len(values))


@torch.no_grad()
def _drawn(pipeline: DiffusionPipeline, kind: str, captions: list[str], told: Tensor) -> Tensor:
    """Pictures (n, 3, h, w) in [0, 1]; the noise is the same whatever they are told."""
    pipeline.set_progress_bar_config(disable=True)
    drawn = []
    for start in track(range(0, len(captions), BATCH), f"draw {kind or 'without'}", unit="batches"):
        part = told[start : start + BATCH]
        call: dict[str, object] = {}
        if kind == "controlnet":
            call["image"] = part.float() / 255
        if kind == "ip_adapter":
            call["ip_adapter_image_embeds"] = [torch.cat([torch.zeros_like(part), part])[:, None]]
        seeds = [torch.Generator().manual_seed(start + row) for row in range(len(part))]
        drawn.append(
            pipeline(
                prompt=captions[start : start + BATCH],
                num_inference_steps=16,
                guidance_scale=2.0,
                height=SIDE,
                width=SIDE,
                generator=seeds,
                output_type="pt",
                **call,
            ).images
        )
    return torch.cat(drawn)


def _sheet(
    kind: str, truth: Tensor, own: Tensor, other: Tensor, right: Tensor, shuffled: Tensor, plain: Tensor
) -> Image.Image:
    """Columns: target, without, (control,) drawn with the right one, (other control,) drawn with the other."""
    rows = range(0, len(truth), len(truth) // 8)[:8]
    pictures = []
    for row in rows:
        pictures += [_image(truth[row]), _image(plain[row])]
        pictures += [to_image(own[row])] if kind == "controlnet" else []
        pictures += [_image(right[row])]
        pictures += [to_image(other[row])] if kind == "controlnet" else []
        pictures += [_image(shuffled[row])]
    return grid(pictures, columns=len(pictures) // len(rows), scale=3)


def _image(pixels: Tensor) -> Image.Image:
    return to_image((pixels * 255).round().clamp(0, 255).byte())


if __name__ == "__main__":
    main()
