"""How an evaluation's numbers came about, written beside them."""

from dataclasses import asdict, dataclass
from typing import Any

from latentflow.files import digest_json

# What a model ships with: two models may differ here and still be compared.
OWN = frozenset({"sampler", "guidance", "steps", "pipeline_class", "heldout_samples"})


@dataclass(frozen=True)
class Protocol:
    """How the numbers came about; two evaluations compare only where all but what is the model's own agrees."""

    version: int
    sampler: str
    guidance: float
    steps: int
    seed: int
    train_seeds: int
    test_seeds: int
    resolution: int
    train_captions: int
    test_captions: int
    real_pictures: int
    heldout_samples: int
    distance_drawn: int
    distance_real: int
    reconstructed: int
    reference_digest: str
    prompts_digest: str
    pipeline_class: str
    device: str
    features: list[str]
    likeness: str
    weights: dict[str, str]
    retrieval: str = "Euclidean distance between 16x16 average-pooled RGB pictures, to all real pictures of all splits"
    intervals: str = "95 %; captions are the independent unit, every picture has a seed of its own"

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

    @property
    def drawn(self) -> int:
        """Pictures that numbers are taken of."""
        return self.train_captions * self.train_seeds + self.test_captions * self.test_seeds
