"""What the options of `latentflow generate` ask for, read and checked before anything heavy is imported."""

from dataclasses import dataclass
from pathlib import Path

from latentflow.errors import LatentflowError
from latentflow.generation.orders import Dials, Order, parse_seeds, read_orders, sweep


@dataclass(frozen=True)
class Asked:
    """The options that say which pictures: prompts, a file of them, or a picture of an earlier run."""

    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    again: Path | None = None
    seed: int | None = None
    seeds: str = ""
    negative: str = ""
    image: str = ""


@dataclass(frozen=True)
class Request:
    """Pictures of one model."""

    model: str
    orders: list[Order]
    dials: Dials


def read(asked: Asked, dials: Dials, model: str | None, default_model: str) -> Request:
    """The pictures that are asked for. Raises LatentflowError for options that contradict each other."""
    ways = {"--prompt": asked.prompts, "--prompts-file": asked.prompts_file, "--again": asked.again}
    given = [name for name, value in ways.items() if value]
    if len(given) != 1:
        raise LatentflowError(f"{' and '.join(given) or 'Nothing'} given: give one of {', '.join(ways)}.")
    if asked.seeds and asked.seed is not None:
        raise LatentflowError("--seed and --seeds given: --seeds takes single numbers too.")
    if asked.again:
        return _again(asked, asked.again, dials, model)
    seeds = parse_seeds(asked.seeds) if asked.seeds else None if asked.seed is None else [asked.seed]
    if asked.prompts_file:
        orders = read_orders(asked.prompts_file, seeds, asked.negative, asked.image)
    else:
        orders = sweep(asked.prompts, seeds or [0], asked.negative, asked.image)
    return Request(model or default_model, orders, dials)


def _again(asked: Asked, file: Path, dials: Dials, model: str | None) -> Request:
    """The orders of a picture, by the model that drew it or by another."""
    if asked.seeds or asked.seed is not None or asked.negative or asked.image:
        raise LatentflowError(
            "--again takes seeds, negative prompts and images from the picture: leave out --seed, --seeds, --negative, "
            "--image."
        )
    from latentflow.generation.album import read_origin

    origin = read_origin(file)
    return Request(model or origin.model, list(origin.orders), dials.over(origin.dials))
