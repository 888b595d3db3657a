"""One protocol for every model: which pictures are drawn, what they are compared with, which numbers follow."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from latentflow.data.records import Record, RecordSet
from latentflow.evaluation import retrieval as lookup
from latentflow.evaluation.drawing import Artist, Request
from latentflow.evaluation.heldout import HeldoutLoss
from latentflow.evaluation.metrics import frechet_distance, kernel_distance, pixels8
from latentflow.evaluation.retrieval import Retrieval
from latentflow.files import digest_json
from latentflow.params import EvaluateParams

TIMINGS = frozenset({"seconds_per_picture"})
"""Metrics that no digest covers."""

ENOUGH = 5000
"""Below this many pictures a Fréchet distance is mostly its own bias."""


@dataclass(frozen=True)
class Asked:
    """A group of captions of one split, and the pictures drawn for each with every seed.

    ``pictures`` (captions, seeds, 3, h, w) uint8; ``chance`` is the top-5 share that guessing would reach.
    """

    split: str
    records: list[Record]
    pictures: Tensor
    retrieval: Retrieval
    chance: float


@dataclass(frozen=True)
class Heldout:
    """The held-out loss, and the ids of the records behind its samples, in their order."""

    loss: HeldoutLoss
    ids: list[str]


# What a model ships with: two models may differ here and still be compared.
OWN = frozenset({"sampler", "guidance", "steps", "pipeline_class"})


@dataclass(frozen=True)
class Protocol:
    """How the numbers came about; two evaluations compare only where all but what is the model's own agrees."""

    version: int

    sampler: str
    guidance: float
    steps: int
    seeds: list[int]
    resolution: int
    train_captions: int
    test_captions: int
    real_pictures: int
    heldout_samples: int
    distance_drawn: int
    distance_real: int
    reference_digest: str
    prompts_digest: str
    pipeline_class: str
    device: str
    features: str = "pixels8: RGB averaged over an 8x8 grid, 192 values in [0, 1]"
    retrieval: str = "Euclidean distance between 16x16 average-pooled RGB pictures, to all real pictures of all splits"
    intervals: str = "95 %; captions are the independent unit, the seeds are shared by all captions"

    def to_json(self) -> dict[str, Any]:
        """All fields, and ``comparison``."""
        return asdict(self) | {"comparison": self.comparison}

    @property
    def comparison(self) -> str:
        """Digest of what must agree for two evaluations to be compared: all but ``OWN``."""
        return digest_json({name: value for name, value in asdict(self).items() if name not in OWN})

    @property
    def how(self) -> str:
        """The sampler and its dials, for people."""
        return f"{self.sampler}, {self.steps} steps, guidance {self.guidance:g}"


@dataclass(frozen=True)
class Findings:
    """Everything an evaluation found, before it becomes files."""

    protocol: Protocol
    heldout: Heldout
    train: Asked
    test: Asked
    free_prompts: list[str]
    free_pictures: Tensor
    frechet: float
    kernel: float
    seconds: float
    warnings: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Flat names that MLflow and DVC accept."""
        values: dict[str, float] = {}
        for asked in (self.train, self.test):
            for k in (1, 5):
                share = asked.retrieval.top(k)
                name = f"retrieval/{asked.split}/top{k}"
                values |= {name: share.mean, f"{name}_low": share.low, f"{name}_high": share.high}
            values[f"retrieval/{asked.split}/median_rank"] = asked.retrieval.rank.double().median().item()
            values[f"retrieval/{asked.split}/chance_top5"] = asked.chance
        values |= {"frechet_pixels8": self.frechet, "kernel_pixels8": self.kernel}
        loss = self.heldout.loss
        values |= {"heldout_loss": loss.mean, "heldout_loss_half_width": loss.half_width}
        values |= {f"heldout_loss_by_sigma/{row.sigma:.2f}": row.mean for row in loss.by_sigma}
        return values | {"seconds_per_picture": self.seconds}

    @property
    def units(self) -> dict[str, dict[str, float]]:
        """Values per unit of those metrics that are means over units: by caption's record, by held-out record."""
        units = {
            f"retrieval/{asked.split}/top{k}": dict(zip((r.id for r in asked.records), hits, strict=True))
            for asked in (self.train, self.test)
            for k in (1, 5)
            if (hits := (asked.retrieval.rank <= k).double().mean(1).tolist())
        }
        return units | {"heldout_loss": dict(zip(self.heldout.ids, self.heldout.loss.per_sample, strict=True))}

    @property
    def digest(self) -> str:
        """Content digest: the drawn pixels and every metric but the timings."""
        pixels = hashlib.sha256()
        for pictures in (self.train.pictures, self.test.pictures, self.free_pictures):
            pixels.update(pictures.contiguous().numpy().tobytes())
        metrics = {name: value for name, value in self.metrics.items() if name not in TIMINGS}
        return digest_json({"pictures": pixels.hexdigest(), "metrics": metrics})


@dataclass(frozen=True)
class Plan:
    """What is to be drawn, known before any model is loaded."""

    train: list[Record]
    test: list[Record]
    seeds: list[int]
    free_prompts: list[str]

    @classmethod
    def make(cls, records: Sequence[Record], params: EvaluateParams) -> "Plan":
        """Training captions spread over the split, as many held-out ones as there are, the free prompts."""
        train = lookup.choose_captions(records, "train", params.captions)
        test = lookup.choose_captions(records, "test", params.captions)
        seeds = [params.seed + k for k in range(params.seeds)]
        return cls(train, test, seeds, list(params.gallery_prompts))

    @property
    def asked(self) -> list[Request]:
        """The pictures that numbers are taken of: every caption with every seed, training captions first."""
        return [Request(record.caption, seed) for record in self.train + self.test for seed in self.seeds]

    @property
    def requests(self) -> list[Request]:
        return self.asked + [Request(prompt, self.seeds[0]) for prompt in self.free_prompts]

    @property
    def digest(self) -> str:
        """Of captions and seeds that numbers rest on; free prompts are only looked at."""
        return digest_json([[request.prompt, request.seed] for request in self.asked])


def judge(artist: Artist, plan: Plan, records: RecordSet, heldout: Heldout, batch_size: int, version: int) -> Findings:
    """Draws the plan's pictures and compares them with the real ones."""
    settings = artist.settings
    drawn = artist.draw(plan.requests, batch_size, "evaluate: drawing")
    real_features, real_pixels8 = _reference(records, settings.height)
    seeds = len(plan.seeds)
    first, second = len(plan.train) * seeds, (len(plan.train) + len(plan.test)) * seeds
    train = _compare("train", plan.train, drawn.pictures[:first], seeds, records.table, real_features)
    test = _compare("test", plan.test, drawn.pictures[first:second], seeds, records.table, real_features)
    in_training = torch.tensor([record.split == "train" for record in records.table])
    reference = real_pixels8[in_training]
    by_seed = pixels8(train.pictures.flatten(0, 1)).unflatten(0, train.pictures.shape[:2])
    protocol = Protocol(
        version=version,
        sampler=settings.sampler,
        guidance=settings.guidance,
        steps=settings.steps,
        seeds=plan.seeds,
        resolution=settings.height,
        train_captions=len(plan.train),
        test_captions=len(plan.test),
        real_pictures=len(records.table),
        heldout_samples=heldout.loss.samples,
        distance_drawn=first,
        distance_real=len(reference),
        reference_digest=records.manifest.digest,
        prompts_digest=plan.digest,
        pipeline_class=artist.pipeline_class,
        device=artist.device,
    )
    # One seed's pictures are of distinct captions; over several seeds the kernel's samples would not be independent.
    kernels = [kernel_distance(reference, by_seed[:, k]) for k in range(seeds)]
    return Findings(
        protocol=protocol,
        heldout=heldout,
        train=train,
        test=test,
        free_prompts=plan.free_prompts,
        free_pictures=drawn.pictures[second:],
        frechet=frechet_distance(reference, by_seed.flatten(0, 1)),
        kernel=math.fsum(kernels) / seeds,
        seconds=drawn.seconds,
        warnings=_warnings(protocol),
    )


def _reference(records: RecordSet, resolution: int) -> tuple[Tensor, Tensor]:
    """Retrieval features and ``pixels8`` of every real picture, in the table's order."""
    chunks = [(lookup.features(pictures), pixels8(pictures)) for pictures in lookup.picture_chunks(records, resolution)]
    return torch.cat([chunk[0] for chunk in chunks]), torch.cat([chunk[1] for chunk in chunks])


def _compare(
    split: str, asked: list[Record], pictures: Tensor, seeds: int, table: Sequence[Record], real: Tensor
) -> Asked:
    right = lookup.right_ones(asked, table)
    retrieval = lookup.retrieve(lookup.features(pictures).unflatten(0, (len(asked), seeds)), real, right)
    return Asked(split, asked, pictures.unflatten(0, (len(asked), seeds)), retrieval, lookup.chance(right, 5))


def _warnings(protocol: Protocol) -> list[str]:
    found = []
    smaller = min(protocol.distance_drawn, protocol.distance_real)
    if smaller < ENOUGH:
        found.append(
            f"The distances rest on {protocol.distance_drawn:,} drawn and {protocol.distance_real:,} real pictures. "
            f"With fewer than {ENOUGH:,} the Fréchet distance is biased upwards: compare it only between evaluations "
            "of equal size, and trust the kernel distance more."
        )
    if protocol.test_captions < 30:
        found.append(f"Only {protocol.test_captions} held-out captions were asked: their interval is wide.")
    return found
