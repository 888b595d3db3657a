"""The models that the page draws with: opened when they are first asked for, a few kept open."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from latentflow.generation import album
from latentflow.generation.drawing import Model
from latentflow.generation.orders import Dials, Order
from latentflow.registry.pulling import pull_pinned

KEPT = 3


@dataclass(frozen=True)
class Drawn:
    """A picture as PNG, which says in itself how it was drawn; ``seconds`` without loading the model."""

    png: bytes
    width: int
    height: int
    dials: Dials
    seconds: float


class Easel:
    """Draws one picture at a time, whoever asks. ``device`` and ``dtype`` as in `drawing.Model`."""

    def __init__(self, device: str = "auto", dtype: str = "float32") -> None:
        self._device, self._dtype = device, dtype
        self._open: OrderedDict[str, Model] = OrderedDict()
        self._lock = threading.Lock()

    def draw(self, uri: str, order: Order, dials: Dials) -> Drawn:
        """One picture by a version. Raises LatentflowError that says what cannot be drawn."""
        with self._lock:
            model = self._model(uri)
            settings = model.settings(dials, order.seed)
            model.load()
            began = time.perf_counter()
            image = model.draw(order, dials)
            seconds = time.perf_counter() - began
        origin = album.origin_of(model.pulled.address, model.pulled.digest, settings, [order])
        with TemporaryDirectory() as folder:
            file = Path(folder) / "picture.png"
            album.write_picture(image, file, origin)
            return Drawn(file.read_bytes(), image.width, image.height, origin.dials, seconds)

    def samplers(self, uri: str) -> list[str]:
        """What `sampler` may be for a version; pulls it."""
        with self._lock:
            return self._model(uri).samplers()

    def _model(self, uri: str) -> Model:
        if uri not in self._open:
            self._open[uri] = Model(pull_pinned(uri), self._device, self._dtype)
        self._open.move_to_end(uri)
        while len(self._open) > KEPT:
            self._open.popitem(last=False)
        return self._open[uri]
