"""The packaged model's own code: it travels with the model, so it imports nothing of latentflow.

MLflow runs this file when it loads the model; `latentflow generate` imports the same functions. The model is
the diffusers folder under artifacts/pipeline; what this file adds is the defaults of generation.json, a seed
per picture, the samplers that the model can be drawn with, refusals in a sentence, and PNG bytes as text.

    model = mlflow.pyfunc.load_model("models:/latentflow-emoji@champion")
    answer = model.predict({"prompt": ["red heart"]}, params={"seed": 7, "guidance": 4.0})
    png = base64.b64decode(answer["image"][0])
"""

import base64
import importlib
import inspect
import io
import json
import math
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import PIL.Image
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_EXHAUSTED
from PIL.Image import Image
from PIL.Image import open as read_image
from transformers.utils import logging as transformers_logging

COLUMNS = ("prompt", "negative_prompt", "image")
PARAMS = ("seed", "steps", "guidance", "height", "width", "sampler")
SAMPLERS, IP_ADAPTER = "samplers", "ip_adapter"
DTYPES = ("float32", "float16", "bfloat16")
# What a request may ask for at most, so that one of a thousand users cannot stop the server for the others.
MOST_STEPS, MOST_TIMES_LARGER, LARGEST_SEED = 1000, 4, 2**63 - 1
# At which clips are shown whose pipeline is told no rate; Wan's are of so many frames per second.
FRAME_RATE = 16
# What diffusers has no class for.
_SCHEDULERS, _OWN = "latentflow.scheduler", "OwnDenoiserPipeline"
# Of one step this pipeline believes that its model was distilled to draw in one, and asks the scheduler for what only
# those models' schedulers have.
_FEWEST_STEPS = {"PixArtAlphaPipeline": 2}


def guided(pipeline: str, scale: float, prompts: int) -> dict[str, Any]:
    """What the call of a pipeline of that class is given so that it is guided by ``scale``, of which 1 is none."""
    if pipeline == "QwenImagePipeline":  # It contrasts only with captions that are given, one for each prompt.
        return {"true_cfg_scale": scale, "negative_prompt": [""] * prompts}
    if pipeline == "ZImagePipeline":  # It adds the contrast to the conditional answer.
        return {"guidance_scale": scale - 1}
    return {"guidance_scale": scale}


def images_of(result: Any, frame_rate: float) -> list[Image]:
    """What a pipeline drew, as PIL has it: a clip is one picture of several frames, of which the first is seen."""
    if hasattr(result, "images"):
        return list(result.images)
    return [_animated(frames, 1000 / frame_rate) for frames in result.frames]


def _animated(frames: list[Image], milliseconds: float) -> Image:
    buffer = io.BytesIO()
    frames[0].save(buffer, format="PNG", save_all=True, append_images=frames[1:], duration=milliseconds)
    return PIL.Image.open(buffer)


class Wish(NamedTuple):
    """What one picture is to show, what it is not to show, and the picture that leads a model which needs one."""

    prompt: str
    negative_prompt: str = ""
    image: Image | None = None


def generation_defaults(folder: Path) -> dict[str, Any]:
    """generation.json beside model_index.json: sampler, steps, guidance, height, width, and `call`, fixed arguments."""
    defaults: dict[str, Any] = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
    return defaults


def open_pipeline(
    folder: Path, device: str = "auto", dtype: str = "float32", trust_code: bool = False
) -> DiffusionPipeline:
    """The diffusers pipeline of a folder; device "auto" is a GPU where there is one.

    ``trust_code`` lets a folder that brings code along (a definition or denoiser that diffusers lacks) import it.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: it must be one of {', '.join(DTYPES)}")
    if trust_code and (folder / "code").is_dir() and str(folder / "code") not in sys.path:
        sys.path.append(str(folder / "code"))
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    library, name = index["scheduler"]
    if library == _SCHEDULERS:
        _ours(_SCHEDULERS, f"its {name}")
    kind = DiffusionPipeline
    if index["_class_name"] == _OWN:
        kind = getattr(_ours("latentflow.own_pipeline", f"its {_OWN}"), _OWN)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _quiet():
        pipeline = kind.from_pretrained(str(folder), local_files_only=True, dtype=getattr(torch, dtype))
        if (folder / IP_ADAPTER).is_dir():
            _load_ip_adapter(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _load_ip_adapter(pipeline: DiffusionPipeline, folder: Path) -> None:
    """The adapter that a folder brings along, with its image encoder where diffusers can use it."""
    encoder = folder / IP_ADAPTER / "image_encoder"
    kind = json.loads((encoder / "config.json").read_text(encoding="utf-8"))["model_type"]
    pipeline.load_ip_adapter(
        str(folder),
        subfolder=IP_ADAPTER,
        weight_name=f"{IP_ADAPTER}.safetensors",
        image_encoder_folder=encoder.name if kind.startswith("clip") else None,
    )


def _ours(module: str, what: str) -> Any:
    """diffusers takes a part of another library only where that is imported already; ours is no other's code."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{what} needs latentflow installed, or the code that it brings along ({error})") from error


def fewest_steps(folder: Path) -> int:
    """How few steps the pipeline of a folder can draw in."""
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    return _FEWEST_STEPS.get(index["_class_name"], 1)


def samplers(folder: Path) -> list[str]:
    """The names that `sampler` may have: the model's own first, then those under samplers/."""
    own = generation_defaults(folder).get("sampler")
    others = sorted(path.parent.name for path in (folder / SAMPLERS).glob("*/scheduler_config.json"))
    return [*([own] if own else []), *others]


def _scheduler(folder: Path) -> Any:
    """The scheduler that a folder with a scheduler_config.json describes, of diffusers or of latentflow."""
    name = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))["_class_name"]
    library = diffusers if hasattr(diffusers, name) else _ours(_SCHEDULERS, f"sampler {folder.name}")
    return getattr(library, name).from_pretrained(str(folder))


class Painter:
    """A pipeline that is loaded once and draws one picture at a time, whoever asks and from however many threads.

    Diffusers' pipelines keep the state of a run in their scheduler, so two runs at once would spoil each other.
    """

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "float32", trust_code: bool = False) -> None:
        self.folder = folder
        self.defaults = generation_defaults(folder)
        self.pipeline = open_pipeline(folder, device, dtype, trust_code)
        called_with = inspect.signature(self.pipeline.__call__).parameters
        # Where guidance is a number that the model is told, a second scale, which stays at 1, is for negative prompts.
        told = "true_cfg_scale" in called_with and "true_cfg_scale" not in guided(type(self.pipeline).__name__, 1.0, 1)
        self._takes_negative = "negative_prompt" in called_with and not told
        self.schedulers = {self.defaults.get("sampler", ""): self.pipeline.scheduler}
        self._lock = threading.Lock()

    def settings(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The model's defaults under what was asked for. ValueError says what cannot be drawn."""
        settings = settings_of(self.folder, params)
        known = samplers(self.folder)
        if settings["sampler"] not in [*self.schedulers, *known]:
            raise ValueError(f"sampler is {settings['sampler']!r}: it must be one of {', '.join(known) or 'none'}")
        return settings

    def paint(self, wish: Wish, settings: Mapping[str, Any]) -> Image:
        """One picture. The noise is drawn on the CPU, so a GPU starts from the same."""
        self._check_size(settings)
        guidance = guided(type(self.pipeline).__name__, settings["guidance"], prompts=1)
        call = {**settings["call"], **guidance, **self._led(wish)}
        if wish.negative_prompt:
            call["negative_prompt"] = self._negative(wish, settings)
        with self._lock:
            self.pipeline.register_modules(scheduler=self._scheduler(settings["sampler"]))
            try:
                result = self.pipeline(
                    prompt=wish.prompt,
                    num_inference_steps=settings["steps"],
                    height=settings["height"],
                    width=settings["width"],
                    generator=torch.Generator("cpu").manual_seed(settings["seed"]),
                    output_type="pil",
                    **call,
                )
                return images_of(result, call.get("frame_rate", FRAME_RATE))[0]
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if all(settings[side] == self.defaults.get(side) for side in ("height", "width")):
                    raise
                size = f"{settings['width']}x{settings['height']}"
                reason = str(error).splitlines()[0]
                raise ValueError(f"this model cannot draw {size} (width x height): {reason}") from error

    def _check_size(self, settings: Mapping[str, Any]) -> None:
        """Some pipelines would draw a smaller picture than was asked for."""
        processor = getattr(self.pipeline, "image_processor", None)
        step = processor.config.vae_scale_factor if processor is not None else 1
        if any(settings[side] % step for side in ("height", "width")):
            size = f"{settings['width']}x{settings['height']}"
            raise ValueError(f"this model cannot draw {size} (width x height): both must be multiples of {step}")

    def _led(self, wish: Wish) -> dict[str, Any]:
        """The argument by which the pipeline is given the picture that leads it."""
        led_by = self.defaults.get("led_by", "")
        if not led_by:
            if wish.image is not None:
                raise ValueError("this model draws by its prompt alone: leave the image out")
            return {}
        if wish.image is None:
            what = "a control picture" if led_by == "controlnet" else "a reference picture"
            raise ValueError(f"this model is led by {what}: give one as image")
        if led_by == "controlnet":
            return {"image": wish.image}
        if getattr(self.pipeline, "image_encoder", None) is None:
            raise ValueError("this model's image encoder is a SigLIP, which its pipeline of diffusers cannot ask")
        return {"ip_adapter_image": wish.image}

    def _negative(self, wish: Wish, settings: Mapping[str, Any]) -> str:
        if not self._takes_negative:
            raise ValueError(f"a {type(self.pipeline).__name__} takes no negative prompt: leave it out")
        if settings["guidance"] <= 1:
            raise ValueError(f"a negative prompt acts through guidance above 1, and guidance is {settings['guidance']}")
        return wish.negative_prompt

    def _scheduler(self, name: str) -> Any:
        if name not in self.schedulers:
            self.schedulers[name] = _scheduler(self.folder / SAMPLERS / name)
        return self.schedulers[name]


def settings_of(folder: Path, params: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's own defaults under those that were asked for; ValueError says what its pipeline cannot use."""
    settings = settings_from(generation_defaults(folder), params)
    if settings["steps"] < (least := fewest_steps(folder)):
        raise ValueError(f"steps is {settings['steps']}: this model's pipeline draws in at least {least}")
    return settings


def settings_from(defaults: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """generation.json's values under those that were asked for; ValueError says what cannot be used."""
    _refuse_unknown("parameter", params, PARAMS)
    given = {key: value for key, value in params.items() if value is not None}
    settings = {"seed": 0, "sampler": "", "call": {}, **defaults, **given}
    if missing := [key for key in PARAMS if key not in settings]:
        raise ValueError(f"generation.json has no default for {', '.join(missing)}: give a value")
    for key in ("seed", "steps", "height", "width"):
        settings[key] = _whole(key, settings[key])
    settings["guidance"], settings["sampler"] = float(settings["guidance"]), str(settings["sampler"])
    if not math.isfinite(settings["guidance"]):
        raise ValueError(f"guidance is {settings['guidance']}: it must be a number")
    bounds = {"seed": (0, LARGEST_SEED), "steps": (1, MOST_STEPS), "guidance": (0, 1000)}
    bounds |= {side: (1, MOST_TIMES_LARGER * defaults.get(side, settings[side])) for side in ("height", "width")}
    for key, (least, most) in bounds.items():
        if not least <= settings[key] <= most:
            raise ValueError(f"{key} is {settings[key]}: it must be at least {least} and at most {most}")
    return settings


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or int(value) != value:
        raise ValueError(f"{key} is {value!r}: it must be a whole number")
    return int(value)


def _refuse_unknown(what: str, asked: Mapping[str, Any] | Sequence[Any], known: Sequence[str]) -> None:
    if unknown := sorted(str(name) for name in set(asked) - set(known)):
        raise ValueError(f"unknown {what} {', '.join(unknown)}: this model takes {', '.join(known)}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading draws bars and remarks on a text encoder that is not CLIP, which is intended here."""
    libraries = (diffusers_logging, transformers_logging)
    before = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in zip(libraries, before, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


def to_png(image: Image) -> bytes:
    """A picture as PNG bytes, a clip as those of an animated one."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", save_all=getattr(image, "is_animated", False))
    return buffer.getvalue()


def wishes_of(model_input: Any) -> list[Wish]:
    """The rows' columns, see COLUMNS; ValueError names a row that is no text, or no picture."""
    table = pd.DataFrame(model_input)
    # MLflow hands {"prompt": ["a", "b"]} over as one row that holds a list.
    lists = [name for name in table.columns if table[name].map(lambda cell: isinstance(cell, (list, np.ndarray))).any()]
    table = table.explode(lists, ignore_index=True) if lists else table
    negative = table["negative_prompt"] if "negative_prompt" in table else [None] * len(table)
    images = table["image"] if "image" in table else [None] * len(table)
    wishes = []
    for row, (prompt, unwanted, image) in enumerate(zip(table["prompt"], negative, images, strict=True)):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {row} is {prompt!r}: it must be text")
        if not isinstance(unwanted, str) and not pd.isna(unwanted):
            raise ValueError(f"negative_prompt {row} is {unwanted!r}: it must be text, or left out")
        wishes.append(Wish(prompt, unwanted if isinstance(unwanted, str) else "", _picture(row, image)))
    return wishes


def _picture(row: int, text: Any) -> Image | None:
    """A picture from base64 text; None where there is none."""
    if not isinstance(text, str) and pd.isna(text):
        return None
    try:
        return read_image(io.BytesIO(base64.b64decode(text, validate=True))).convert("RGB")
    except (TypeError, ValueError, OSError) as error:
        raise ValueError(f"image {row} is no PNG or JPEG in base64 ({error})") from error


_MLFLOW_PREDICT = inspect.unwrap(mlflow.pyfunc.PyFuncModel.predict).__code__


def refuse_what_mlflow_drops() -> None:
    """ValueError for a parameter or column that is not this model's.

    MLflow leaves those out, with a line in a log, before `predict` is called, and has no setting to refuse them. What
    was asked for stands in the frame of its own predict; where there is no such frame, nothing was left out.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not _MLFLOW_PREDICT:
        frame = frame.f_back
    if frame is None:
        return
    _refuse_unknown("parameter", frame.f_locals.get("params") or {}, PARAMS)
    data = frame.f_locals.get("data")
    if isinstance(data, (pd.DataFrame, dict)):
        _refuse_unknown("column", list(data), COLUMNS)
    elif isinstance(data, list):
        _refuse_unknown("column", [name for row in data if isinstance(row, dict) for name in row], COLUMNS)


@contextmanager
def _answers() -> Iterator[None]:
    """Errors as MLflow's server answers them: 400 and the sentence for a wrong request, else 429 or 500.

    Without this MLflow calls every exception the request's fault and keeps its text to itself.
    """
    try:
        yield
    except ValueError as error:
        raise MlflowException.invalid_parameter_value(f"{error}.") from error
    except torch.OutOfMemoryError as error:
        text = "The picture did not fit into the device's memory: ask for a smaller one, or use a larger device."
        raise MlflowException(text, error_code=RESOURCE_EXHAUSTED) from error
    except Exception as error:
        raise MlflowException(f"The model failed to draw: {error!r}.", error_code=INTERNAL_ERROR) from error


# MLflow warns, whatever the filters say, that predict has no type hints. With them it would discard the signature,
# and the seed with it.
with warnings.catch_warnings(record=True):

    class TextToImage(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        """Rows with `prompt` and perhaps more of COLUMNS in, rows with `image` (PNG, base64 text) out."""

        def load_context(self, context):  # type: ignore[no-untyped-def]
            config = context.model_config or {}
            device, dtype = config.get("device", "auto"), config.get("dtype", "float32")
            self.painter = Painter(Path(context.artifacts["pipeline"]), device, dtype, trust_code=True)

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
            with _answers():
                refuse_what_mlflow_drops()
                settings, wishes = self.painter.settings(params or {}), wishes_of(model_input)
                pictures = [to_png(self.painter.paint(wish, settings)) for wish in wishes]
            return pd.DataFrame({"image": [base64.b64encode(picture).decode() for picture in pictures]})


mlflow.models.set_model(TextToImage())
