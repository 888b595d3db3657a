"""Low-rank adapters in MLflow's own flavor for them: the file, and a reference to the pipeline that it changes."""

from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.files import digest_folder
from latentflow.registry.logged_models import pinned, upload

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.models import Model, ModelSignature
    from mlflow.tracking import MlflowClient

NAME = "adapter"
BASE = "latentflow.base_model"
DIGEST = "latentflow.adapter_digest"
STEPS = 30

_REQUIRES = ("mlflow", "torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "pandas", "pillow")


def log_adapter(
    client: "MlflowClient", run_id: str, folder: Path, base_model: str, resolution: int, guidance: float
) -> str:
    """Logs an adapter's folder as a model of the run, once, and returns its id; `models:/<id>` loads it.

    ``base_model`` is a pipeline folder, a models:/ address or an id of the hub. MLflow keeps the folder that it lies in
    here: elsewhere, `mlflow.diffusers.load_model(uri).load_pipeline(base_model=<folder>)` names another; the tag
    latentflow.base_model keeps what was given. ``resolution`` and ``guidance`` are what it draws with unless told
    otherwise.
    """
    from latentflow.denoisers.starting import find_pipeline

    digest = digest_folder(folder)
    if present := _present(client, client.get_run(run_id), digest):
        return present
    base = find_pipeline(base_model).folder.absolute()

    def save(path: Path, description: "Model") -> None:
        import mlflow.diffusers

        mlflow.diffusers.save_model(
            adapter_path=str(folder),
            path=str(path),
            base_model=str(base),
            mlflow_model=description,
            signature=signature(resolution, guidance),
            pip_requirements=pinned(*_REQUIRES),
        )

    return upload(client, run_id, NAME, "lora-adapter", {BASE: base_model, DIGEST: digest}, save)


def signature(resolution: int, guidance: float) -> "ModelSignature":
    """Column `prompt` in, column `image` (PNG bytes) out, and the parameters that MLflow's flavor passes on."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params = [
        ParamSpec("num_inference_steps", "long", STEPS),
        ParamSpec("guidance_scale", "double", guidance),
        ParamSpec("height", "long", resolution),
        ParamSpec("width", "long", resolution),
        ParamSpec("negative_prompt", "string", ""),
    ]
    return ModelSignature(
        Schema([ColSpec("string", "prompt")]), Schema([ColSpec("binary", "image")]), ParamSchema(params)
    )


def _present(client: "MlflowClient", run: "Run", digest: str) -> str:
    """The id of the run's model that holds this very adapter, or ""."""
    for output in run.outputs.model_outputs if run.outputs else []:
        if client.get_logged_model(output.model_id).tags.get(DIGEST) == digest:
            return str(output.model_id)
    return ""
