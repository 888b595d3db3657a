"""What is to be drawn: prompts from the command line or a file, seeds and sweeps of seeds, sizes."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from latentflow.errors import LatentflowError

MOST_SEEDS = 100_000


@dataclass(frozen=True)
class Order:
    """One picture; it depends on these, the model and the dials alone.

    ``image`` is the file of the picture that leads a model which needs one.
    """

    prompt: str
    seed: int
    negative_prompt: str = ""
    image: str = ""


class Dials(BaseModel):
    """How to draw; what is None is the model's own default, the one that was judged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    sampler: str | None = None

    def over(self, base: "Dials") -> "Dials":
        """These where they are given, else ``base``'s."""
        return base.model_copy(update=self.model_dump(exclude_none=True))


class _Line(BaseModel):
    """One line of a .jsonl file of prompts."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    seed: int | None = Field(default=None, ge=0)
    negative_prompt: str | None = None
    image: str | None = None


def sweep(prompts: Sequence[str], seeds: Sequence[int], negative_prompt: str = "", image: str = "") -> list[Order]:
    """Every prompt with every seed, prompt by prompt."""
    return [Order(prompt, seed, negative_prompt, image) for prompt in prompts for seed in seeds]


def read_orders(
    file: Path, seeds: Sequence[int] | None = None, negative_prompt: str = "", image: str = ""
) -> list[Order]:
    """The prompts of a file: one per line, or in a .jsonl file objects with prompt, seed, negative_prompt and image.

    What a line does not say is ``seeds`` (0 if None: not asked for), ``negative_prompt`` and ``image``. Raises
    LatentflowError naming the line.
    """
    orders: list[Order] = []
    for number, text in _lines(file):
        line = _parse(f"{file}, line {number}", text) if file.suffix == ".jsonl" else _Line(prompt=text)
        if line.seed is not None and seeds is not None:
            raise LatentflowError(f"{file}, line {number} names its seed, and seeds were asked for: leave one out.")
        wanted = [line.seed] if line.seed is not None else seeds or [0]
        unwanted = negative_prompt if line.negative_prompt is None else line.negative_prompt
        orders += sweep([line.prompt], wanted, unwanted, image if line.image is None else line.image)
    if not orders:
        raise LatentflowError(f"{file} holds no prompts: write one per line.")
    return orders


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LatentflowError(f"The prompts in {file} cannot be read ({error}): give a text file in UTF-8.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line.strip()


def _parse(place: str, text: str) -> _Line:
    try:
        return _Line.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LatentflowError(
            f"{place}: {where + ': ' if where else ''}{first['msg']}; a line is "
            '{"prompt": ..., "seed": ..., "negative_prompt": ..., "image": ...}, of which only prompt is needed.'
        ) from error
    except ValueError as error:
        raise LatentflowError(f"{place} is not JSON ({error}).") from error


def parse_seeds(text: str) -> list[int]:
    """`7`, `0-7` or `0,3,8-11` as numbers, in that order. Raises LatentflowError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part)
        if not found or (found[2] and int(found[2]) < int(found[1])):
            raise LatentflowError(f"seeds are {text!r}: give numbers and ranges, such as 0-7 or 0,3,8-11.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last - first + len(seeds) >= MOST_SEEDS:
            raise LatentflowError(f"seeds are {text!r}: that is more than {MOST_SEEDS} pictures of every prompt.")
        seeds += range(first, last + 1)
    return seeds


def parse_size(text: str) -> Dials:
    """`64` or `96x64` (width x height) in pixels."""
    if found := re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text):
        return Dials(width=int(found[1]), height=int(found[2] or found[1]))
    raise LatentflowError(f"size is {text!r}: give pixels, such as 64, or width x height, such as 96x64.")
