"""CLIP's word on the pictures: how well each fits its caption, and how far all of them are from the real ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from latentflow.data.records import Record, RecordSet, spread
from latentflow.evaluation import kernels
from latentflow.evaluation.kernels import cmmd
from latentflow.evaluation.retrieval import picture_chunks
from latentflow.evaluation.vision import VisionModel, clip_scores


@dataclass(frozen=True)
class Likeness:
    """``scores``: the CLIP score of every asked caption, mean over its pictures; ``real``: the real pictures' own."""

    cmmd: float
    scores: dict[str, float]
    real: float
    reference: int

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "cmmd": self.cmmd,
            "clip_score": sum(self.scores.values()) / len(self.scores),
            "clip_score_real": self.real,
        }

    @property
    def units(self) -> dict[str, dict[str, float]]:
        return {"clip_score": self.scores}


def likeness(
    clip: VisionModel, records: RecordSet, side: int, asked: Sequence[tuple[Sequence[Record], Tensor]]
) -> Likeness:
    """``asked``: per split its records and their drawn pictures (captions, seeds, 3, h, w); training comes first."""
    reference = spread(records.split("train"), kernels.REFERENCE)
    real = _real(clip, records, reference, side)
    scores: dict[str, float] = {}
    true: list[Tensor] = []
    drawn: list[Tensor] = []
    for chosen, pictures in asked:
        captions = clip.text_features([record.caption for record in chosen])
        found = clip.features(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])
        drawn.append(found.flatten(0, 1))
        names = [record.id for record in chosen]
        scores |= dict(zip(names, clip_scores(found, captions).mean(1).tolist(), strict=True))
        true.append(clip_scores(_real(clip, records, chosen, side)[:, None], captions).flatten())
    return Likeness(
        cmmd(normalize(real, dim=1), normalize(drawn[0], dim=1)), scores, torch.cat(true).mean().item(), len(real)
    )


def _real(clip: VisionModel, records: RecordSet, chosen: Sequence[Record], side: int) -> Tensor:
    return torch.cat([clip.features(pictures) for pictures in picture_chunks(records, side, chosen)])
