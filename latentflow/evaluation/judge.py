"""One protocol for every model: pictures are drawn by plan, compared with the real ones, and become numbers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from latentflow.data.records import Record, RecordSet, spread
from latentflow.evaluation import memorisation as memory_of
from latentflow.evaluation import retrieval as lookup
from latentflow.evaluation.dials import Cost, Dials, cost_metrics, draw_grid, grid_steps, measure_costs
from latentflow.evaluation.distances import SetDistance, set_distance
from latentflow.evaluation.diversity import Diversity, between_seeds, real_diversity
from latentflow.evaluation.drawing import Artist, Request
from latentflow.evaluation.heldout import HeldoutLoss
from latentflow.evaluation.likeness import Likeness, likeness
from latentflow.evaluation.memorisation import Memorisation
from latentflow.evaluation.plan import Captions, Plan
from latentflow.evaluation.protocol import Protocol
from latentflow.evaluation.reconstruction import Reconstruction, reconstruct
from latentflow.evaluation.retrieval import Retrieval
from latentflow.evaluation.spaces import PIXELS16, Networks
from latentflow.evaluation.units import Units
from latentflow.files import digest_json
from latentflow.params import EvaluateParams
from latentflow.progress import track

TIMINGS = ("seconds_", "memory_")
"""How metrics begin that depend on the machine's mood; no digest covers them."""


@dataclass(frozen=True)
class Asked:
    """A group of captions of one split, and the pictures drawn for each with every seed.

    ``pictures`` (captions, seeds, 3, h, w) uint8; ``chance`` is the top-5 share that guessing would reach.
    """

    captions: Captions
    pictures: Tensor
    retrieval: Retrieval
    chance: float

    @property
    def split(self) -> str:
        return self.captions.split

    @property
    def records(self) -> list[Record]:
        return self.captions.records

    @property
    def metrics(self) -> dict[str, float]:
        values: dict[str, float] = {}
        for k in (1, 5):
            share, name = self.retrieval.top(k), f"retrieval/{self.split}/top{k}"
            values |= {name: share.mean, f"{name}_low": share.low, f"{name}_high": share.high}
        values[f"retrieval/{self.split}/median_rank"] = self.retrieval.rank.double().median().item()
        values[f"retrieval/{self.split}/chance_top5"] = self.chance
        return values

    @property
    def units(self) -> dict[str, dict[str, float]]:
        ids = [record.id for record in self.records]
        return {
            f"retrieval/{self.split}/top{k}": dict(
                zip(ids, (self.retrieval.rank <= k).double().mean(1).tolist(), strict=True)
            )
            for k in (1, 5)
        }


@dataclass(frozen=True)
class Heldout:
    """The held-out loss, and the ids of the records behind its samples, in their order."""

    loss: HeldoutLoss
    ids: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        values = {"heldout_loss": self.loss.mean, "heldout_loss_half_width": self.loss.half_width}
        return values | {f"heldout_loss_by_sigma/{row.sigma:.2f}": row.mean for row in self.loss.by_sigma}

    @property
    def units(self) -> dict[str, dict[str, float]]:
        return {"heldout_loss": dict(zip(self.ids, self.loss.per_sample, strict=True))}


@dataclass(frozen=True)
class Free:
    """Pictures (n, 3, h, w) uint8 of prompts that may be in no picture, all drawn with one seed."""

    prompts: list[str]
    pictures: Tensor
    seed: int


@dataclass(frozen=True)
class Findings:
    """Everything an evaluation found, before it becomes files. What was not measured is None or empty."""

    protocol: Protocol
    train: Asked
    test: Asked
    free: Free
    distances: list[SetDistance]
    diversity: Diversity
    memorisation: Memorisation
    heldout: Heldout | None
    reconstruction: Reconstruction | None
    likeness: Likeness | None
    dials: Dials | None
    costs: list[Cost]
    seconds: float
    warnings: list[str] = field(default_factory=list)

    @property
    def _parts(self) -> list[Any]:
        optional = (self.reconstruction, self.likeness, self.heldout)
        given = [part for part in optional if part is not None]
        return [self.train, self.test, *self.distances, self.diversity, *given]

    @property
    def metrics(self) -> dict[str, float]:
        """Flat names that MLflow and DVC accept."""
        parts = [part.metrics for part in self._parts]
        own = [self.memorisation.metrics, cost_metrics(self.costs), {"seconds_per_picture": self.seconds}]
        return dict(chain.from_iterable(values.items() for values in parts + own))

    @property
    def units(self) -> Units:
        """Values per unit of those metrics that are means over units."""
        ids = [record.id for record in self.test.records]
        parts: list[Mapping[str, Mapping[str, float]]] = [part.units for part in self._parts]
        return dict(chain.from_iterable(units.items() for units in [*parts, self.memorisation.units(ids)]))

    @property
    def digest(self) -> str:
        """Content digest: the drawn pixels and every metric but the timings."""
        pixels = hashlib.sha256()
        for pictures in (self.train.pictures, self.test.pictures, self.free.pictures):
            pixels.update(pictures.contiguous().numpy().tobytes())
        if self.dials is not None:
            pixels.update(self.dials.pictures.contiguous().numpy().tobytes())
        metrics = {name: value for name, value in self.metrics.items() if not name.startswith(TIMINGS)}
        return digest_json({"pictures": pixels.hexdigest(), "metrics": metrics})


@dataclass(frozen=True)
class Case:
    """What is to be judged and against what; ``weights`` are the digests of the networks that ``networks`` holds."""

    artist: Artist
    plan: Plan
    records: RecordSet
    heldout: Heldout | None
    networks: Networks
    weights: dict[str, str]
    params: EvaluateParams
    version: int

    @property
    def side(self) -> int:
        """Of the pictures that are compared, in pixels."""
        return self.artist.settings.height


def judge(case: Case) -> Findings:
    """Draws the plan's pictures and compares them with the real ones."""
    artist, plan, records, params = case.artist, case.plan, case.records, case.params
    reconstruction = _reconstruction(case)
    costs = measure_costs(artist, plan.requests[0], grid_steps(params))
    drawn = artist.draw(plan.requests, params.batch_size, "evaluate: drawing")
    dials = draw_grid(artist, _grid_requests(plan, params), params)
    first, second = len(plan.train.requests), len(plan.asked)
    free = Free(plan.free_prompts, drawn.pictures[second:], plan.seed)
    spaces = {space.name: space for space in (PIXELS16, case.networks.eyes, *case.networks.spaces)}
    real = _real_features(records, case.side, {name: space.features for name, space in spaces.items()})
    train = _compare(plan.train, drawn.pictures[:first], records.table, real[PIXELS16.name])
    test = _compare(plan.test, drawn.pictures[first:second], records.table, real[PIXELS16.name])
    distances = _distances(case, train, real)
    protocol = _protocol(case, 0 if reconstruction is None else len(reconstruction.records))
    eyes = case.networks.eyes
    likenesses = [(asked.records, asked.pictures) for asked in (train, test)]
    return Findings(
        protocol=protocol,
        train=train,
        test=test,
        free=free,
        distances=distances,
        diversity=_diversity(eyes.features, train, test, records.table, real[eyes.name]),
        memorisation=_memorisation(case, test, free, real[eyes.name]),
        heldout=case.heldout,
        reconstruction=reconstruction,
        likeness=likeness(case.networks.clip, records, case.side, likenesses) if case.networks.clip else None,
        dials=dials,
        costs=costs,
        seconds=drawn.seconds,
    )


def _grid_requests(plan: Plan, params: EvaluateParams) -> list[Request]:
    """Free prompts, and held-out captions where there are not enough of them; the same seed for all."""
    free = [Request(prompt, plan.seed) for prompt in plan.free_prompts]
    heldout = [Request(record.caption, plan.seed, record.id) for record in plan.test.records]
    return [*free, *heldout][: params.grid.prompts]


def _real_features(
    records: RecordSet, side: int, measures: Mapping[str, Callable[[Tensor], Tensor]]
) -> dict[str, Tensor]:
    """Of every real picture in the table's order, each picture read once."""
    found: dict[str, list[Tensor]] = {name: [] for name in measures}
    chunks = lookup.picture_chunks(records, side)
    total = -(-len(records.table) // lookup.CHUNK)
    for pictures in track(chunks, "evaluate: real pictures", total, unit="chunks"):
        for name, measure in measures.items():
            found[name].append(measure(pictures))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _compare(captions: Captions, pictures: Tensor, table: Sequence[Record], real: Tensor) -> Asked:
    shape = (len(captions.records), captions.seeds)
    right = lookup.right_ones(captions.records, table)
    retrieval = lookup.retrieve(lookup.features(pictures).unflatten(0, shape), real, right)
    return Asked(captions, pictures.unflatten(0, shape), retrieval, lookup.chance(right, 5))


def _rows(table: Sequence[Record], split: str) -> list[int]:
    return [row for row, record in enumerate(table) if record.split == split]


def _distances(case: Case, train: Asked, real: Mapping[str, Tensor]) -> list[SetDistance]:
    rows, records = _rows(case.records.table, "train"), list(case.records.split("train"))
    flat, shape = train.pictures.flatten(0, 1), train.pictures.shape[:2]
    return [
        set_distance(space, records, real[space.name][rows], train.captions, space.features(flat).unflatten(0, shape))
        for space in case.networks.spaces
    ]


def _diversity(
    features: Callable[[Tensor], Tensor], train: Asked, test: Asked, table: Sequence[Record], real: Tensor
) -> Diversity:
    by_caption = {
        asked.split: between_seeds(
            asked.records, features(asked.pictures.flatten(0, 1)).unflatten(0, asked.pictures.shape[:2])
        )
        for asked in (train, test)
    }
    spread_of_all, own = real_diversity(table, real)
    return Diversity(by_caption, spread_of_all, own)


def _memorisation(case: Case, test: Asked, free: Free, real: Tensor) -> Memorisation:
    eyes, table = case.networks.eyes, case.records.table
    kept = {record.id for record in spread(case.records.split("test"), memory_of.CALIBRATION)}
    heldout = real[[row for row in _rows(table, "test") if table[row].id in kept]]
    drawn = eyes.features(test.pictures.flatten(0, 1)).unflatten(0, test.pictures.shape[:2])
    prompts = eyes.features(free.pictures) if free.prompts else real[:0]
    return memory_of.memorisation(real[_rows(table, "train")], heldout, drawn, prompts, eyes.about)


def _reconstruction(case: Case) -> Reconstruction | None:
    chosen = spread(case.records.split("test"), case.params.reconstructions)
    if not chosen or case.artist.vae is None:
        return None
    return reconstruct(case.artist.vae, case.records, chosen, case.side, case.params.batch_size, case.networks.lpips)


def _protocol(case: Case, reconstructed: int) -> Protocol:
    settings, plan = case.artist.settings, case.plan
    return Protocol(
        version=case.version,
        sampler=settings.sampler,
        guidance=settings.guidance,
        steps=settings.steps,
        seed=plan.seed,
        train_seeds=plan.train.seeds,
        test_seeds=plan.test.seeds,
        resolution=case.side,
        train_captions=len(plan.train.records),
        test_captions=len(plan.test.records),
        real_pictures=len(case.records.table),
        heldout_samples=0 if case.heldout is None else case.heldout.loss.samples,
        distance_drawn=len(plan.train.requests),
        distance_real=case.records.manifest.counts["train"],
        reconstructed=reconstructed,
        reference_digest=case.records.manifest.digest,
        prompts_digest=plan.digest,
        pipeline_class=case.artist.pipeline_class,
        device=case.artist.device,
        features=[space.about for space in case.networks.spaces],
        likeness=case.networks.eyes.about,
        weights=case.weights,
    )
