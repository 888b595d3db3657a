"""Which pictures are drawn for a verdict: a pure function of the records and the parameters, known before any model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from latentflow.data.records import Record, spread
from latentflow.evaluation.drawing import Request
from latentflow.files import digest_json
from latentflow.params import EvaluateParams


@dataclass(frozen=True)
class Captions:
    """The distinct captions that are asked of one split, each drawn with ``seeds`` of its own.

    ``records``: one per caption. ``counts``: how many records of the split have it, and ``chances``: how probable it
    was to be sampled, so that distances weigh captions as the data do. ``first``: the seed of the first picture; the
    next picture has the next seed.
    """

    split: str
    records: list[Record]
    counts: list[int]
    chances: list[float]
    seeds: int
    first: int

    @property
    def requests(self) -> list[Request]:
        """Caption after caption. No two pictures share a seed: with shared noise they would not be independent."""
        return [
            Request(record.caption, self.seed(row, number), record.id)
            for row, record in enumerate(self.records)
            for number in range(self.seeds)
        ]

    def seed(self, row: int, number: int) -> int:
        """The seed of a caption's picture ``number``."""
        return self.first + row * self.seeds + number


def sampled_captions(records: Sequence[Record], split: str, count: int) -> dict[str, list[Record]]:
    """Up to ``count`` records of a split, spread by a hash of their ids, by their caption.

    The sample has captions as often as the split does: many of a caption that is frequent there.
    """
    by_caption: dict[str, list[Record]] = {}
    for record in spread([record for record in records if record.split == split], count):
        by_caption.setdefault(record.caption, []).append(record)
    return by_caption


@dataclass(frozen=True)
class Plan:
    """Captions of the training and of the test split, and free prompts, drawn with the first seed."""

    train: Captions
    test: Captions
    free_prompts: list[str]
    seed: int
    train_records: int

    @classmethod
    def make(cls, records: Sequence[Record], params: EvaluateParams) -> "Plan":
        """``params.captions`` records per split, where there are so many.

        Every caption gets ``params.seeds`` pictures; where few captions repeat, as many more as make up
        ``params.captions`` pictures in all.
        """

        def captions(split: str, first: int) -> Captions:
            by_caption = sampled_captions(records, split, params.captions)
            chosen = [min(same, key=lambda record: record.id) for same in by_caption.values()]
            sampled = sum(map(len, by_caption.values()))
            every = Counter(record.caption for record in records if record.split == split)
            counts = [every[caption] for caption in by_caption]
            missed = 1 - sampled / max(every.total(), 1)
            seeds = max(params.seeds, -(-sampled // max(len(chosen), 1)))
            return Captions(split, chosen, counts, [1 - missed**count for count in counts], seeds, first)

        train = captions("train", params.seed)
        test = captions("test", params.seed + len(train.records) * train.seeds)
        total = sum(record.split == "train" for record in records)
        return cls(train, test, list(params.gallery_prompts), params.seed, total)

    @property
    def asked(self) -> list[Request]:
        """The pictures that numbers are taken of, training captions first."""
        return self.train.requests + self.test.requests

    @property
    def requests(self) -> list[Request]:
        return self.asked + [Request(prompt, self.seed) for prompt in self.free_prompts]

    @property
    def digest(self) -> str:
        """Of captions and seeds that numbers rest on; free prompts are only looked at."""
        return digest_json([[request.prompt, request.seed] for request in self.asked])
