"""`latentflow generate`: orders to files, one after the other, under a bar."""

from dataclasses import dataclass
from pathlib import Path

from latentflow.errors import LatentflowError
from latentflow.generation import album
from latentflow.generation.asked import Request
from latentflow.generation.drawing import Model
from latentflow.generation.orders import Dials, Order
from latentflow.progress import track
from latentflow.registry.pulling import pull_pinned


@dataclass(frozen=True)
class Means:
    """With what to draw; ``trust_code`` as in `drawing.Model`."""

    device: str = "auto"
    dtype: str = "float32"
    trust_code: bool = False


@dataclass(frozen=True)
class Result:
    """Where the pictures are; of those asked for, ``drawn`` are new and the others were there already."""

    out: Path
    drawn: int
    asked: int


def run(request: Request, out: str, means: Means) -> Result:
    """Draws what is asked for into ``out``, a PNG file or, by a slash at its end, a folder."""
    place = Path(out)
    folder = album.is_folder(place, out)
    if folder and place.exists() and not place.is_dir():
        raise LatentflowError(f"{out} is a file: --out takes a .png file or a folder.")
    if not folder:
        album.check_sheet(place, request.orders)
    model = Model(pull_pinned(request.model), means.device, means.dtype, means.trust_code)
    return (to_folder if folder else to_sheet)(model, request.orders, request.dials, place)


def to_folder(model: Model, orders: list[Order], dials: Dials, folder: Path) -> Result:
    """One file per picture. What an interrupted run has drawn into the folder is not drawn again."""
    origin = _origin(model, orders, dials)
    wanted = album.missing(folder, origin)
    for file, order in track(wanted, "drawing", unit="pictures"):
        album.write_picture(model.draw(order, origin.dials), file, origin.of(order))
    return Result(folder, len(wanted), len(orders))


def to_sheet(model: Model, orders: list[Order], dials: Dials, file: Path) -> Result:
    """One picture, or all in one sheet."""
    origin = _origin(model, orders, dials)
    images = [model.draw(order, origin.dials) for order in track(orders, "drawing", unit="pictures")]
    album.write_picture(album.sheet(images, orders), file, origin)
    return Result(file, len(orders), len(orders))


def _origin(model: Model, orders: list[Order], dials: Dials) -> album.Origin:
    """Checks the dials and the sampler before anything is drawn, and fills in the model's own."""
    settings = model.settings(dials)
    return album.origin_of(model.pulled.address, model.pulled.digest, settings, orders)
