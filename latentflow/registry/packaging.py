"""A trained model as MLflow keeps it: a pyfunc that carries its own code around a plain diffusers folder."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow.errors import LatentflowError
from latentflow.files import write_json, write_text
from latentflow.manifest import EvaluationManifest, ModelManifest
from latentflow.registry import store
from latentflow.registry.card import model_card
from latentflow.registry.lineage import tags
from latentflow.registry.logged_models import pinned, upload

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature
    from mlflow.tracking import MlflowClient

# What pyfunc_model.py needs to run; transformers, accelerate and safetensors are diffusers' own needs.
_REQUIRES = ("mlflow", "torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pandas", "pillow")


@dataclass(frozen=True)
class Package:
    """What is to be packaged, read and checked before anything is written."""

    name: str
    model: ModelManifest
    evaluation: EvaluationManifest
    pipeline: Path
    results: Path
    protocol: dict[str, Any]
    generation: dict[str, Any]


def prepare(name: str, model_folder: Path, evaluation_folder: Path) -> Package:
    """Reads a model and its evaluation; LatentflowError when they do not belong together or lack something."""
    model, evaluation = ModelManifest.read(model_folder), EvaluationManifest.read(evaluation_folder)
    if (judged := evaluation.inputs.get("model", model.digest)) != model.digest:
        raise LatentflowError(
            f"{evaluation_folder} judges another model ({judged[:12]}) than the one in {model_folder} "
            f"({model.digest[:12]}): run `latentflow evaluate` again."
        )
    pipeline = model_folder / "pipeline"
    if not (pipeline / "model_index.json").is_file() or not (pipeline / "generation.json").is_file():
        raise LatentflowError(
            f"{pipeline} lacks model_index.json or generation.json: run `latentflow train`, or `dvc pull` the model."
        )
    generation = json.loads((pipeline / "generation.json").read_text(encoding="utf-8"))
    protocol, sampler = _protocol(evaluation_folder)
    return Package(name, model, evaluation, pipeline, evaluation_folder, protocol, generation | sampler)


def _protocol(evaluation: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """How the model was judged, and of that the sampler, steps and guidance, which are the ones that ship."""
    try:
        protocol = json.loads((evaluation / "protocol.json").read_text(encoding="utf-8"))
        sampler = {
            "sampler": str(protocol["sampler"]),
            "steps": int(protocol["steps"]),
            "guidance": float(protocol["guidance"]),
        }
        return protocol, sampler
    except (OSError, KeyError, ValueError) as error:
        raise LatentflowError(
            f"{evaluation / 'protocol.json'} does not say with which sampler, steps and guidance the "
            f"pictures were drawn ({error!r}): run `latentflow evaluate` again."
        ) from error


def signature(generation: dict[str, Any]) -> "ModelSignature":
    """Columns `prompt` and perhaps `negative_prompt` in, `image` out, and the parameters with the model's defaults.

    A model that is led by images also takes `image`, base64 text of a PNG or JPEG.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params = [
        ParamSpec("seed", "long", 0),
        ParamSpec("steps", "long", generation["steps"]),
        ParamSpec("guidance", "double", generation["guidance"]),
        ParamSpec("height", "long", generation["height"]),
        ParamSpec("width", "long", generation["width"]),
        ParamSpec("sampler", "string", generation["sampler"]),
    ]
    columns = [ColSpec("string", "prompt"), ColSpec("string", "negative_prompt", required=False)]
    if generation.get("led_by"):
        columns.append(ColSpec("string", "image"))
    return ModelSignature(Schema(columns), Schema([ColSpec("string", "image")]), ParamSchema(params))


def log_model(client: "MlflowClient", package: Package, run_id: str) -> str:
    """Uploads the package as a model of the run and returns its id; `models:/<id>` loads it."""
    return upload(
        client,
        run_id,
        package.name,
        "text-to-image",
        tags(package.model.lineage),
        lambda folder, description: _save(package, folder, description),
    )


def _save(package: Package, folder: Path, description: "Model") -> None:
    """Writes the MLflow model folder, and into its copy of the pipeline what was not known before evaluation."""
    import mlflow.pyfunc

    from latentflow.denoisers.families import family_of
    from latentflow.denoisers.schedulers import put_scheduler, scheduler_of

    # MLflow shows a bar for its own copying and advises type hints and an input example; see pyfunc_model.py.
    with store.environment("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        mlflow.pyfunc.save_model(
            path=str(folder),
            mlflow_model=description,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"pipeline": str(package.pipeline)},
            signature=signature(package.generation),
            model_config={"device": "auto", "dtype": "float32"},
            pip_requirements=pinned(*_REQUIRES),
        )
    pipeline = folder / "artifacts" / "pipeline"
    put_scheduler(pipeline, scheduler_of(pipeline, package.generation["sampler"]))
    for other in family_of(pipeline).samplers:
        if other != package.generation["sampler"]:
            scheduler_of(pipeline, other).save_pretrained(pipeline / "samplers" / other)
    write_json(pipeline / "generation.json", package.generation)
    carries_code = (pipeline / "code").is_dir()
    write_text(pipeline / "README.md", model_card(package, carries_code))
