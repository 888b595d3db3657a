"""Pictures as PNG files that say in themselves how they were drawn, so that they can be drawn again."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from latentflow import __version__
from latentflow.errors import LatentflowError
from latentflow.files import atomic_file
from latentflow.generation.orders import Dials, Order

if TYPE_CHECKING:
    from PIL.Image import Image

KEY = "latentflow"
MOST_IN_A_SHEET, MOST_COLUMNS = 400, 16


class Origin(BaseModel):
    """What a file's pictures were drawn with; orders are in the order of the sheet, row by row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    model_digest: str
    dials: Dials
    orders: tuple[Order, ...]

    def of(self, order: Order) -> "Origin":
        """The same for one of its pictures."""
        return self.model_copy(update={"orders": (order,)})


def read_origin(file: Path) -> Origin:
    """What a PNG says of itself. LatentflowError for a file that `latentflow generate` did not write."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            return Origin.model_validate(json.loads(picture.info[KEY]))
    except KeyError as error:
        raise LatentflowError(f"{file} does not say how it was drawn: latentflow did not write it.") from error
    except (OSError, ValueError, ValidationError) as error:
        raise LatentflowError(f"{file} cannot be read as a picture of latentflow ({error}).") from error


def write_picture(image: "Image", file: Path, origin: Origin) -> None:
    """A PNG whose text chunks hold the origin, for a program, and the prompt, for a person."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(KEY, origin.model_dump_json())
    info.add_itxt("Description", "\n".join(dict.fromkeys(order.prompt for order in origin.orders)))
    info.add_text("Software", f"latentflow {__version__}")
    with atomic_file(file) as temporary:
        image.save(temporary, format="PNG", pnginfo=info, save_all=getattr(image, "is_animated", False))


def is_folder(out: Path, given: str) -> bool:
    """Whether ``given``, the text of --out, means a folder: it ends with a slash, is one, or is no PNG file."""
    return given.endswith("/") or out.is_dir() or out.suffix.lower() != ".png"


def check_sheet(out: Path, orders: Sequence[Order]) -> None:
    """Refuses more pictures than one sheet can show."""
    if len(orders) > MOST_IN_A_SHEET:
        raise LatentflowError(
            f"{len(orders)} pictures are too many for the one sheet {out} (at most {MOST_IN_A_SHEET}): give a folder, "
            f"--out {out.with_suffix('')}/, for one file per picture."
        )


def file_names(orders: Sequence[Order]) -> list[str]:
    """A name for each: its number, the beginning of its prompt, and its seed."""
    width = max(4, len(str(len(orders))))
    return [
        f"{number:0{width}d}-{_slug(order.prompt)}-seed{order.seed}.png" for number, order in enumerate(orders, start=1)
    ]


def missing(folder: Path, origin: Origin) -> list[tuple[Path, Order]]:
    """The files that are still to be drawn: those that hold this very picture already are left out.

    Raises LatentflowError for a file of that name which holds another one.
    """
    wanted = []
    for name, order in zip(file_names(origin.orders), origin.orders, strict=True):
        file = folder / name
        if not file.exists():
            wanted.append((file, order))
        elif read_origin(file) != origin.of(order):
            raise LatentflowError(f"{file} exists and was drawn otherwise: give another folder.")
    return wanted


def sheet(images: "Sequence[Image]", orders: Sequence[Order]) -> "Image":
    """One picture as it is; several row by row, and in a sweep of seeds a row per prompt."""
    from latentflow.pictures import grid

    return images[0] if len(images) == 1 else grid(images, columns=_columns([order.prompt for order in orders]))


def _columns(prompts: Sequence[str]) -> int:
    seeds = next((place for place, prompt in enumerate(prompts) if prompt != prompts[0]), len(prompts))
    rows = [prompts[start : start + seeds] for start in range(0, len(prompts), seeds)]
    if 1 < seeds <= MOST_COLUMNS and all(len({*row}) == 1 and len(row) == seeds for row in rows):
        return seeds
    return min(4, len(prompts)) if len(prompts) <= 16 else math.isqrt(len(prompts) - 1) + 1


def _slug(prompt: str) -> str:
    return re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:40].rstrip("-_") or "picture"


def origin_of(model: str, digest: str, settings: dict[str, Any], orders: Sequence[Order]) -> Origin:
    """The origin of pictures that are drawn with every dial at the value that ``settings`` has."""
    dials = Dials(**{name: settings[name] for name in Dials.model_fields})
    return Origin(model=model, model_digest=digest, dials=dials, orders=tuple(orders))
