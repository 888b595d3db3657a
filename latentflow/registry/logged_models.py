"""A folder in one of MLflow's flavors, uploaded as a model of a run."""

import tempfile
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.models import Model
    from mlflow.tracking import MlflowClient


def upload(
    client: "MlflowClient",
    run_id: str,
    name: str,
    model_type: str,
    tags: Mapping[str, str],
    save: Callable[[Path, "Model"], None],
) -> str:
    """Creates a logged model of the run from what ``save`` writes; returns its id, and `models:/<id>` loads it.

    Goes step by step through the client and not through a flavor's log_model, which works on MLflow's global
    active run and would reopen a finished one.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run_id,
        tags=dict(tags),
        params=run.data.params,
        model_type=model_type,
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            save(folder, Model(run_id=run_id, model_id=logged.model_id, model_uuid=logged.model_id))
            client.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return str(logged.model_id)


def pinned(*packages: str) -> list[str]:
    """The installed versions, without a local part: torch 2.13.0+cpu is asked for as torch==2.13.0."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in packages]
