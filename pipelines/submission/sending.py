"""Sending a plan: the pipeline and its version if they are not there, the experiment, the run."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import kfp_server_api

from latentflow.errors import LatentflowError
from pipelines.submission.connection import Kubeflow
from pipelines.submission.packages import Package
from pipelines.submission.plan import Plan
from pipelines.submission.schedule import Schedule

# The API's number of this comparison.
_EQUALS = 1


@dataclass(frozen=True)
class Sent:
    """What was created: a ``run`` or a ``recurring run``, and its id."""

    kind: str
    identity: str


def send(plan: Plan, kubeflow: Kubeflow, say: Callable[[str], None]) -> Sent:
    """Uploads the version if it is not there and creates the run. Raises KubeflowError."""
    pipeline = _pipeline(plan.package, kubeflow)
    version, reused = _version(plan.package, pipeline, kubeflow)
    how = "as uploaded before" if reused else "uploaded"
    say(f"pipeline {plan.package.name}, version {version.display_name} ({how})")
    experiment = _experiment(plan.experiment, kubeflow)
    if plan.schedule:
        return Sent("recurring run", _recurring_run(plan, plan.schedule, kubeflow, experiment, version, say))
    run = kubeflow.ask(
        "create the run",
        lambda: kubeflow.client.run_pipeline(
            experiment_id=experiment,
            job_name=plan.run_name,
            params=dict(plan.arguments),
            pipeline_id=pipeline,
            version_id=version.pipeline_version_id,
            service_account=plan.service_account or None,
        ),
    )
    return Sent("run", run.run_id)


def _filter(name: str) -> str:
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": "display_name", "stringValue": name}]})


def _pipeline(package: Package, kubeflow: Kubeflow) -> str:
    """The id of the pipeline of the package's name, made if there is none."""
    api = kubeflow.client
    listed = kubeflow.ask(
        "list pipelines", lambda: api.list_pipelines(namespace=kubeflow.namespace, filter=_filter(package.name))
    )
    if listed.pipelines:
        return str(listed.pipelines[0].pipeline_id)
    # An upload would make it too, but with a first version that is named after the pipeline.
    made = kfp_server_api.V2beta1Pipeline(
        display_name=package.name,
        description=package.spec["pipelineInfo"].get("description"),
        namespace=kubeflow.namespace,
    )
    created = kubeflow.ask("make the pipeline", lambda: api.pipelines.pipeline_service_create_pipeline(pipeline=made))
    return str(created.pipeline_id)


def _version(package: Package, pipeline: str, kubeflow: Kubeflow) -> tuple[Any, bool]:
    """The version with this very package, uploaded if it is not there, and whether it was."""
    for name in (package.version, f"{package.version}-{package.digest[:8]}"):
        listed = kubeflow.ask(
            "list versions", partial(kubeflow.client.list_pipeline_versions, pipeline, filter=_filter(name))
        )
        if not listed.pipeline_versions:
            return _upload(package, name, pipeline, kubeflow), False
        for version in listed.pipeline_versions:
            if package.same_package(version.description):
                return version, True
    raise LatentflowError(f"Versions {package.version} of {package.name} hold other packages: delete them in the UI.")


def _upload(package: Package, name: str, pipeline: str, kubeflow: Kubeflow) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{package.name}.yaml"
        path.write_text(package.text, encoding="utf-8")
        return kubeflow.ask(
            "take the package",
            lambda: kubeflow.client.upload_pipeline_version(
                str(path), pipeline_version_name=name, pipeline_id=pipeline, description=package.description
            ),
        )


def _experiment(name: str, kubeflow: Kubeflow) -> str:
    """The id of the experiment of this name, made if there is none."""
    api = kubeflow.client.experiments
    listed = kubeflow.ask(
        "list experiments",
        lambda: api.experiment_service_list_experiments(filter=_filter(name), namespace=kubeflow.namespace),
    )
    if listed.experiments:
        return str(listed.experiments[0].experiment_id)
    made = kfp_server_api.V2beta1Experiment(display_name=name, namespace=kubeflow.namespace)
    created = kubeflow.ask("make the experiment", lambda: api.experiment_service_create_experiment(experiment=made))
    return str(created.experiment_id)


def _recurring_run(
    plan: Plan, schedule: Schedule, kubeflow: Kubeflow, experiment: str, version: Any, say: Callable[[str], None]
) -> str:
    api = kubeflow.client
    listed = kubeflow.ask(
        "list recurring runs", lambda: api.list_recurring_runs(experiment_id=experiment, filter=_filter(plan.run_name))
    )
    for other in listed.recurring_runs or []:
        if other.status == "ENABLED":
            say(
                f"warning: recurring run {other.recurring_run_id} of the same name is enabled too, so both will start "
                "runs: disable the one that you do not want."
            )
    created = kubeflow.ask(
        "create the recurring run",
        lambda: api.create_recurring_run(
            experiment_id=experiment,
            job_name=plan.run_name,
            description=plan.package.description,
            cron_expression=schedule.cron or None,
            interval_second=schedule.interval_seconds or None,
            max_concurrency=schedule.max_concurrency,
            no_catchup=not schedule.catch_up,
            params=dict(plan.arguments),
            pipeline_id=version.pipeline_id,
            version_id=version.pipeline_version_id,
            enabled=schedule.enabled,
            service_account=plan.service_account or None,
        ),
    )
    return str(created.recurring_run_id)
