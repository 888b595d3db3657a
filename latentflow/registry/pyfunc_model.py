"""The packaged model's own code: it travels with the model, so it imports nothing of latentflow.

MLflow runs this file when it loads the model; `latentflow generate` imports the same functions. The model is
the diffusers folder under artifacts/pipeline; what this file adds is the defaults of generation.json, a seed
per picture, and PNG bytes as text.

    model = mlflow.pyfunc.load_model("models:/latentflow-emoji@champion")
    answer = model.predict({"prompt": ["red heart"]}, params={"seed": 7, "guidance": 4.0})
    png = base64.b64decode(answer["image"][0])
"""

import base64
import importlib
import io
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from PIL.Image import Image
from transformers.utils import logging as transformers_logging

PARAMS = ("seed", "steps", "guidance", "height", "width")


def generation_defaults(folder: Path) -> dict[str, Any]:
    """generation.json beside model_index.json: steps, guidance, height, width, and `call`, fixed arguments."""
    defaults: dict[str, Any] = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
    return defaults


def open_pipeline(
    folder: Path, device: str = "auto", dtype: str = "float32", trust_code: bool = False
) -> DiffusionPipeline:
    """The diffusers pipeline of a folder; device "auto" is a GPU where there is one.

    ``trust_code`` lets a folder that brings code along (a definition that diffusers does not know) import it.
    """
    if trust_code and (folder / "code").is_dir() and str(folder / "code") not in sys.path:
        sys.path.append(str(folder / "code"))
    _import_scheduler(folder)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with _quiet():
        pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _import_scheduler(folder: Path) -> None:
    """diffusers takes a scheduler of another library only where that is imported already; ours is no other's code."""
    library, name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["scheduler"]
    if library != "latentflow.scheduler":
        return
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise ValueError(
            f"its {name} needs latentflow installed, or the code that it brings along ({error})"
        ) from error


def draw(pipeline: DiffusionPipeline, prompts: list[str], settings: dict[str, Any]) -> list[Image]:
    """One picture per prompt, drawn one by one: a picture depends on its prompt and the seed, not on its neighbours.

    ``settings`` is generation_defaults and `seed`. The noise is drawn on the CPU, so a GPU starts from the same.
    """
    return [
        pipeline(
            prompt=prompt,
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance"],
            height=settings["height"],
            width=settings["width"],
            generator=torch.Generator("cpu").manual_seed(settings["seed"]),
            output_type="pil",
            **settings["call"],
        ).images[0]
        for prompt in prompts
    ]


def settings_from(defaults: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
    """generation.json's values under those that were asked for; ValueError says what cannot be used."""
    if unknown := sorted(set(params) - set(PARAMS)):
        raise ValueError(f"unknown parameter {', '.join(unknown)}: this model takes {', '.join(PARAMS)}")
    settings = {"seed": 0, "call": {}, **defaults, **{key: value for key, value in params.items() if value is not None}}
    if missing := [key for key in PARAMS if key not in settings]:
        raise ValueError(f"generation.json has no default for {', '.join(missing)}: give a value")
    for key in ("seed", "steps", "height", "width"):
        settings[key] = int(settings[key])
    settings["guidance"] = float(settings["guidance"])
    for key, least in (("seed", 0), ("steps", 1), ("guidance", 0), ("height", 1), ("width", 1)):
        if settings[key] < least:
            raise ValueError(f"{key} is {settings[key]}: it must be at least {least}")
    return settings


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
    """A picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def prompts_of(model_input: Any) -> list[str]:
    """The column `prompt`; ValueError names a row that is no text."""
    prompts: list[Any] = []
    for cell in pd.DataFrame(model_input)["prompt"]:
        # MLflow hands {"prompt": ["a", "b"]} over as one row that holds a list.
        prompts += list(cell) if isinstance(cell, (list, tuple, np.ndarray)) else [cell]
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {row} is {prompt!r}: it must be text")
    return prompts


# MLflow warns, whatever the filters say, that predict has no type hints. With them it would discard the signature,
# and the seed with it.
with warnings.catch_warnings(record=True):

    class TextToImage(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        """Rows with a column `prompt` in, rows with a column `image` (PNG, base64 text) out."""

        def load_context(self, context):  # type: ignore[no-untyped-def]
            self.folder = Path(context.artifacts["pipeline"])
            config = context.model_config or {}
            device, dtype = config.get("device", "auto"), config.get("dtype", "float32")
            self.pipeline = open_pipeline(self.folder, device, dtype, trust_code=True)

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
            settings = settings_from(generation_defaults(self.folder), dict(params or {}))
            pictures = draw(self.pipeline, prompts_of(model_input), settings)
            return pd.DataFrame({"image": [base64.b64encode(to_png(picture)).decode() for picture in pictures]})


mlflow.models.set_model(TextToImage())
