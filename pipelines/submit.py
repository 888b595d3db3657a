"""Submits a pipeline of this checkout to Kubeflow and follows its run; `latentflow submit` is its command line."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Console

from pipelines.submission.connection import Connection, CredentialsError, Kubeflow, UnavailableError, connect
from pipelines.submission.following import Screen, TimedOutError, Watch, follow, log_tail
from pipelines.submission.links import mlflow_page, page
from pipelines.submission.packages import task_names
from pipelines.submission.plan import Request, describe, prepare
from pipelines.submission.sending import send

INTERRUPTED = 130


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def submit(request: Request, connection: Connection, watch: Watch | None, dry_run: bool, console: Console) -> int:
    """The whole of `latentflow submit`; without ``watch`` the run is not followed. Returns the exit code."""
    plan = prepare(request)
    for warning in plan.warnings:
        _say(console, f"warning: {warning}")
    if dry_run:
        _say(console, describe(plan, connection))
        _say(console, "Nothing was sent (--dry-run).")
        return 0
    kubeflow = connect(connection)
    sent = send(plan, kubeflow, partial(_say, console))
    _say(console, f"{sent.kind} {sent.identity} in experiment {plan.experiment}: {plan.run_name}")
    _say(console, f"Kubeflow: {page(connection.user_interface, sent.kind, sent.identity)}")
    if plan.schedule:
        _say(console, f"It starts by itself: {plan.schedule}.")
        return 0
    if watch is None:
        _say(console, f"next: latentflow submit --attach {sent.identity}")
        return 0
    return watch_run(kubeflow, sent.identity, task_names(plan.package.spec), watch, console)


def attach(run_id: str, connection: Connection, watch: Watch, console: Console) -> int:
    """Follows a run that is there already. Returns the exit code."""
    kubeflow = connect(connection)
    run = kubeflow.ask(f"show run {run_id}", lambda: kubeflow.client.get_run(run_id))
    return watch_run(kubeflow, run_id, _names(kubeflow, run), watch, console)


def _names(kubeflow: Kubeflow, run: Any) -> list[str]:
    """The tasks of a run's pipeline, from the version that it was started from; empty if there is none."""
    spec, reference = run.pipeline_spec, run.pipeline_version_reference
    if not spec and reference:
        spec = kubeflow.ask(
            "show the run's version",
            lambda: kubeflow.client.get_pipeline_version(reference.pipeline_id, reference.pipeline_version_id),
        ).pipeline_spec
    # With a platform document beside it, the pipeline's is one level down.
    spec = (spec or {}).get("pipeline_spec", spec)
    return task_names(spec) if spec else []


def watch_run(kubeflow: Kubeflow, run_id: str, names: Sequence[str], watch: Watch, console: Console) -> int:
    """Follows a run, says how it ended and where its pages are. Returns the exit code."""
    kubeflow_page = page(kubeflow.connection.user_interface, "run", run_id)
    again = f"The run itself goes on; follow it again by `latentflow submit --attach {run_id}`, or see {kubeflow_page}"
    try:
        with Screen(console) as screen:
            outcome = follow(kubeflow, run_id, names, watch, screen)
    except KeyboardInterrupt:
        _say(console, f"No longer following. {again}")
        return INTERRUPTED
    except (TimedOutError, CredentialsError, UnavailableError) as error:
        raise type(error)(f"{error} {again}") from None
    _say(console, f"MLflow: {mlflow_page(outcome.run)}")
    if outcome.succeeded:
        _say(console, f"The run succeeded. Kubeflow: {kubeflow_page}")
        return 0
    for task in outcome.failed:
        tail = log_tail(kubeflow, run_id, task)
        _say(
            console,
            "\n  ".join([f"{task.name} failed; the last lines of its log:", *tail]) if tail else f"{task.name} failed.",
        )
    reason = outcome.run.error.message if outcome.run.error and outcome.run.error.message else ""
    _say(
        console,
        f"The run ended {outcome.run.state.lower()}{f' ({reason})' if reason else ''}. Kubeflow: {kubeflow_page}",
    )
    return 1
