"""Captions that `evaluate` does not ask, and how well a model's pictures of them find the right real ones."""

from pathlib import Path

import torch
from torch import Tensor

from latentflow import params as parameters
from latentflow.data.records import RecordSet, spread
from latentflow.evaluation import retrieval
from latentflow.evaluation.drawing import Artist, Request, Settings
from latentflow.evaluation.kernels import kernel_distance
from latentflow.evaluation.metrics import pixels8
from latentflow.evaluation.plan import sampled_captions
from latentflow.evaluation.retrieval import Retrieval

PARAMS = parameters.load(Path(__file__).resolve().parents[1] / "params.yaml").evaluate
SEED = 1000


class Judge:
    """``count`` training captions other than the judged ones, and every real picture to compare with."""

    def __init__(self, model: Path, records: Path, count: int) -> None:
        self.pipeline = model / "pipeline"
        record_set = RecordSet.open(records)
        judged = sampled_captions(record_set.table, "train", PARAMS.captions)
        asked = spread([record for record in record_set.split("train") if record.caption not in judged], count)
        self.requests = [Request(record.caption, SEED) for record in asked]
        self.right = retrieval.right_ones(asked, record_set.table)
        chunks = list(retrieval.picture_chunks(record_set, self.settings().height))
        self.real = torch.cat([retrieval.features(chunk) for chunk in chunks])
        self.real_pixels8 = torch.cat([pixels8(chunk) for chunk in chunks])

    def settings(
        self, sampler: str = PARAMS.sampler, steps: int = PARAMS.steps, guidance: float = PARAMS.guidance
    ) -> Settings:
        return Settings.read(self.pipeline, sampler, steps, guidance)

    def drawn(self, settings: Settings) -> tuple[Tensor, float]:
        """Pictures (captions, 3, h, w) uint8 and the seconds that one took."""
        drawn = Artist(self.pipeline, settings).draw(self.requests, PARAMS.batch_size)
        return drawn.pictures, drawn.seconds

    def ranks(self, pictures: Tensor) -> Retrieval:
        return retrieval.retrieve(retrieval.features(pictures)[:, None], self.real, self.right)

    def distance(self, pictures: Tensor) -> float:
        """Median distance to the right picture, in the features of retrieval."""
        right = self.real[self.right.int().argmax(dim=1)]
        return (retrieval.features(pictures) - right).norm(dim=1).median().item()

    def kernel(self, pictures: Tensor) -> float:
        """Kernel distance to all real pictures, in ``pixels8``."""
        return kernel_distance(self.real_pixels8, pixels8(pictures)[:, None]).value
