"""Pictures from a saved diffusers folder, many at a time: what is judged is what ships."""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentflow.errors import LatentflowError
from latentflow.progress import track

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from latentflow.evaluation.leads import Leads

GENERATION = "generation.json"


@dataclass(frozen=True)
class Request:
    """One picture to draw; it depends on these and the settings alone.

    ``record`` is the id of the record by whose own images a model is drawn that is led by images.
    """

    prompt: str
    seed: int
    record: str = ""


@dataclass(frozen=True)
class Settings:
    """How to call the pipeline: the sampler and its two dials, the size, and what the pipeline needs besides."""

    sampler: str
    steps: int
    guidance: float
    height: int
    width: int
    call: dict[str, Any]

    @classmethod
    def read(cls, pipeline: Path, sampler: str, steps: int, guidance: float) -> "Settings":
        """Takes size and call arguments from the folder's generation.json. Raises LatentflowError without one."""
        path = pipeline / GENERATION
        if not path.is_file() or not (pipeline / "model_index.json").is_file():
            raise LatentflowError(
                f"{pipeline} is not what `latentflow train` writes (model_index.json or {GENERATION} is missing): "
                "run train again."
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"height", "width", "call"} - saved.keys():
            raise LatentflowError(f"{path} lacks {', '.join(sorted(missing))}: run `latentflow train` again.")
        return cls(sampler, steps, guidance, saved["height"], saved["width"], saved["call"])


@dataclass(frozen=True)
class Drawn:
    """``pictures`` (n, 3, h, w) uint8 in the order of the requests; ``seconds`` per picture, the median batch's."""

    pictures: Tensor
    seconds: float


class Artist:
    """A pipeline loaded once by the packaged model's own code, on the GPU if there is one."""

    def __init__(self, folder: Path, settings: Settings, leads: "Leads | None" = None) -> None:
        """``leads`` gives a model that is led by images those of the requests' records."""
        from latentflow.denoisers.schedulers import scheduler_of
        from latentflow.registry.pyfunc_model import open_pipeline

        self.settings = settings
        self._leads = leads
        try:
            self._pipeline = open_pipeline(folder)
        except ValueError as error:
            raise LatentflowError(f"{folder} cannot be opened: {error}.") from error
        # The very scheduler that register will put into the package.
        self._pipeline.register_modules(scheduler=scheduler_of(folder, settings.sampler))
        self.device = self._pipeline.device.type
        self.pipeline_class = type(self._pipeline).__name__
        self.vae: AutoencoderKL | None = getattr(self._pipeline, "vae", None)

    @property
    def weights(self) -> int:
        """Bytes of all the pipeline's weights."""
        networks = [part for part in self._pipeline.components.values() if isinstance(part, torch.nn.Module)]
        return sum(tensor.nbytes for network in networks for tensor in network.state_dict().values())

    def draw(
        self,
        requests: Sequence[Request],
        batch_size: int,
        description: str = "drawing",
        settings: Settings | None = None,
    ) -> Drawn:
        """Draws every request with its own generator; ``settings`` take the place of the artist's own.

        The last batch is padded to the full size: a batch of another size may differ in the last bit. There is no
        progress bar without a ``description``.
        """
        settings = settings or self.settings
        pictures: list[np.ndarray] = []
        seconds: list[float] = []
        starts = range(0, len(requests), batch_size)
        for start in track(starts, description, unit="batches") if description else starts:
            batch = list(requests[start : start + batch_size])
            padding = [batch[-1]] * (batch_size - len(batch))
            began = time.perf_counter()
            images = self._call(batch + padding, settings)
            seconds.append((time.perf_counter() - began) / batch_size)
            pictures += [np.asarray(image.convert("RGB")) for image in images[: len(batch)]]
        stacked = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        return Drawn(stacked, statistics.median(seconds))

    def _call(self, batch: list[Request], settings: Settings) -> list[Any]:
        from latentflow.registry.pyfunc_model import FRAME_RATE, guided, images_of

        result = self._pipeline(
            prompt=[request.prompt for request in batch],
            num_inference_steps=settings.steps,
            height=settings.height,
            width=settings.width,
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in batch],
            output_type="pil",
            **settings.call,
            **guided(self.pipeline_class, settings.guidance, len(batch)),
            **(self._leads.arguments([request.record for request in batch], settings.guidance) if self._leads else {}),
        )
        return images_of(result, FRAME_RATE)
