"""A model, opened once, that draws what is ordered, with errors in a sentence."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow.errors import LatentflowError
from latentflow.generation.orders import Dials, Order
from latentflow.registry.pulling import Pulled

if TYPE_CHECKING:
    from PIL.Image import Image

    from latentflow.registry.pyfunc_model import Painter

_DIFFUSION = "diffusion.json"


class Model:
    """A diffusers folder of latentflow with its weights loaded by the first picture.

    ``trust_code`` lets a model with a definition or a denoiser of its owner's import it from the code it brings along.
    """

    def __init__(self, pulled: Pulled, device: str = "auto", dtype: str = "float32", trust_code: bool = False) -> None:
        self.pulled = pulled
        self._device, self._dtype, self._trust_code = device, dtype, trust_code
        self._painter: Painter | None = None

    def settings(self, dials: Dials, seed: int = 0) -> dict[str, Any]:
        """Every dial's value, the model's own where none is given; what it cannot draw with is refused here."""
        from latentflow.registry import pyfunc_model

        with self._sentences():
            if dials.sampler and dials.sampler not in (known := self.samplers()):
                raise ValueError(f"sampler is {dials.sampler!r}: it must be one of {', '.join(known) or 'none'}")
            asked = {**dials.model_dump(), "seed": seed}
            return pyfunc_model.settings_of(self.pulled.folder, asked)

    def samplers(self) -> list[str]:
        """The names of samplers that it can be drawn with, its own first."""
        from latentflow.denoisers.families import family_of
        from latentflow.registry import pyfunc_model

        folder = self.pulled.folder
        # A model that was not registered yet has no samplers beside it, but its definition gives all that fit.
        implied = family_of(folder).samplers if (folder / _DIFFUSION).is_file() else ()
        return list(dict.fromkeys([*pyfunc_model.samplers(folder), *implied]))

    def draw(self, order: Order, dials: Dials) -> "Image":
        """One picture."""
        from latentflow.registry.pyfunc_model import Wish

        settings, painter = self.settings(dials, order.seed), self.load()
        with self._sentences():
            self._learn(painter, settings["sampler"])
            return painter.paint(Wish(order.prompt, order.negative_prompt, _opened(order.image)), settings)

    def load(self) -> "Painter":
        """Loads the weights, once."""
        from latentflow.registry.pyfunc_model import Painter

        if self._painter is None:
            with self._sentences():
                self._painter = Painter(self.pulled.folder, self._device, self._dtype, self._trust_code)
        return self._painter

    def _learn(self, painter: "Painter", sampler: str) -> None:
        from latentflow.denoisers.schedulers import scheduler_of
        from latentflow.registry import pyfunc_model

        known = {*painter.schedulers, *pyfunc_model.samplers(self.pulled.folder)}
        if sampler not in known:
            painter.schedulers[sampler] = scheduler_of(self.pulled.folder, sampler)

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        folder = self.pulled.folder
        try:
            yield
        except FileNotFoundError as error:
            raise LatentflowError(
                f"{folder} is not a model folder of latentflow: {error.filename or error} is missing."
            ) from error
        except ValueError as error:
            hint = ""
            if (folder / "code").is_dir() and not self._trust_code:
                hint = f" It brings code of its own in {folder / 'code'}: read it, then give --trust-code."
            raise LatentflowError(f"{self.pulled.address} cannot draw: {error}.{hint}") from error


def _opened(file: str) -> "Image | None":
    """The picture that leads, RGB and upright. Raises LatentflowError where it cannot be read."""
    if not file:
        return None
    from latentflow.data.media import decode_picture
    from latentflow.data.refusal import RefusedError

    try:
        return decode_picture(Path(file).read_bytes())
    except (OSError, RefusedError) as error:
        raise LatentflowError(f"--image {file}: it cannot be read as a picture ({error}).") from error


def draw(
    folder: Path, prompts: Sequence[str], seed: int = 0, dials: Dials | None = None, trust_code: bool = False
) -> list["Image"]:
    """One picture per prompt, drawn one by one, by the model in a folder."""
    model = Model(Pulled(str(folder), folder), trust_code=trust_code)
    return [model.draw(Order(prompt, seed), dials or Dials()) for prompt in prompts]
