"""Where a person looks at a run: Kubeflow's page and MLflow's."""

import os
from typing import Any

from latentflow.errors import RegistryError
from latentflow.registry.store import connect, mlflow_errors, run_page, shown
from latentflow.workspace import tracking_uri

TAG = "latentflow.kfp_run_id"
_PAGES = {"run": "runs/details", "recurring run": "recurringrun/details"}


def page(base: str, kind: str, identity: str) -> str:
    """The address of a ``run`` or a ``recurring run``; without a base, its id and how to get the address."""
    if not base:
        return f"{kind} {identity} (give --ui-host for its address)"
    return f"{base}/#/{_PAGES[kind]}/{identity}"


def mlflow_page(run: Any) -> str:
    """The MLflow run of a pipeline run: as Kubeflow's plugin says, or found by its tag, or a sentence why not."""
    for plugin in (run.plugins_output or {}).values():
        for entry in (plugin.entries or {}).values():
            if entry.render_type == "URL":
                return str(entry.value)
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return f"set MLFLOW_TRACKING_URI in this shell to have it looked up by its tag {TAG}={run.run_id}"
    try:
        return _found(run.run_id)
    except RegistryError as error:
        return str(error)


def _found(run_id: str) -> str:
    client = connect(create=False)
    with mlflow_errors("be searched"):
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        runs = client.search_runs(experiments, f"tags.`{TAG}` = '{run_id}'", order_by=["attributes.start_time ASC"])
    # An evaluation is a child of the run in which its model was trained.
    runs = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    uri = shown(tracking_uri())
    if not runs:
        return f"{uri} has no run of this pipeline run; a train step taken from a cache keeps the run of its first time"
    found = runs[0].info.run_id
    return run_page(found) or f"run {found} in {uri}"
