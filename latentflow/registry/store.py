"""The way to MLflow: one connection, quick and clear when there is none, and a lock where MLflow has none."""

import logging
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from filelock import BaseFileLock, FileLock

from latentflow.errors import RegistryError
from latentflow.workspace import artifact_root, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

DEFAULT_EXPERIMENT = "latentflow"
REACH_SECONDS = 5.0
log = logging.getLogger(__name__)


def connect(create: bool = True) -> "MlflowClient":
    """A client of the store that MLFLOW_TRACKING_URI names, or of the local one; its experiment exists afterwards.

    ``create=False`` is for reading: it makes neither a local store nor an experiment. MLflow's global state
    is left alone (its set_tracking_uri would also change the environment of every process started later).
    Raises RegistryError, for a server that does not answer within seconds.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own patience is minutes per call; a run that is being written buffers what could not be sent.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    uri = tracking_uri()
    database = sqlite_file(uri)
    if uri.startswith(("http://", "https://")):
        _reach(uri)
    if database is not None and not create and not database.exists():
        raise RegistryError(
            f"There is no MLflow store at {database}: run in the project's folder, or set MLFLOW_TRACKING_URI."
        )
    from mlflow.tracking import MlflowClient

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Two processes that open a fresh sqlite file together break it, so the first one finishes its tables first.
    with mlflow_errors("be opened"), store_lock():
        client = MlflowClient(uri)
        if create:
            experiment_id(client)
        else:
            client.search_registered_models(max_results=1)
    return client


def try_writing() -> None:
    """Sets a tag of the experiment and lists registered models. Raises RegistryError where one of them fails."""
    client = connect()
    with mlflow_errors("be written"):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        client.set_experiment_tag(experiment_id(client), "latentflow.last_checked", now)
        client.search_registered_models(max_results=1)


def run_page(run_id: str) -> str:
    """The address of a run in MLflow's UI, below MLFLOW_UI_URL or the server itself; "" where there is none to look at.

    Nothing is raised: a link is never worth the step's result.
    """
    uri = os.environ.get("MLFLOW_UI_URL") or shown(tracking_uri())
    if not run_id or not uri.startswith(("http://", "https://")):
        return ""
    try:
        experiment = connect(create=False).get_run(run_id).info.experiment_id
    except Exception as error:
        log.debug("no link to run %s: %s", run_id, error)
        return ""
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def experiment_id(client: "MlflowClient") -> str:
    """The experiment of our runs: MLFLOW_EXPERIMENT_ID, or the one named MLFLOW_EXPERIMENT_NAME, made if missing."""
    if injected := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return injected
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    if (found := client.get_experiment_by_name(name)) is None:
        return _create_experiment(client, name)
    if found.lifecycle_stage != "active":
        raise RegistryError(
            f"The MLflow experiment {name!r} was deleted in {shown(tracking_uri())}: restore it with "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}` or set MLFLOW_EXPERIMENT_NAME."
        )
    return str(found.experiment_id)


def _create_experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    place = artifact_root() if not os.environ.get("MLFLOW_TRACKING_URI") else None
    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:
        # Another process was faster.
        if (found := client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        raise


def store_lock() -> "BaseFileLock | nullcontext[None]":
    """A lock on a local store, re-entrant within a thread; a server serialises for itself.

    MLflow has no transactions over "look it up, else make it", which is what idempotence needs.
    """
    database = sqlite_file(tracking_uri())
    if database is None:
        return nullcontext()
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(
            f"The MLflow store {database} cannot be made ({error}): set MLFLOW_TRACKING_URI."
        ) from error
    return FileLock(f"{database}.lock", is_singleton=True)


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable that MLflow reads deep inside, and puts it back."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def errors() -> tuple[type[Exception], ...]:
    """What MLflow's client raises when its store fails: its own, the database's, and the network's or disk's."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


@contextmanager
def mlflow_errors(what: str) -> Iterator[None]:
    """Turns MLflow's exceptions into one sentence: "MLflow at <uri> could not <what>: <reason>"."""
    try:
        yield
    except errors() as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise RegistryError(f"MLflow at {shown(tracking_uri())} could not {what}: {reason}.") from error


def is_missing(error: Exception) -> bool:
    """Whether MLflow says that there is no such run, model, version or alias."""
    return getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")


def is_refusal(error: Exception) -> bool:
    """Whether what was sent is at fault, and not the way to the store, so that sending it again is no use."""
    ours = not isinstance(error, (*errors(), RegistryError))
    return ours or getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")


def shown(uri: str) -> str:
    """A URI as it may be printed: without user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def sqlite_file(uri: str) -> Path | None:
    """The database file of a local store; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def _reach(uri: str) -> None:
    """Asks a server for /health, once; any HTTP answer, even a refusal, means that there is a server."""
    parts = urlsplit(shown(uri))
    health = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/health"
    try:
        urllib.request.urlopen(health, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # A server is there; MLflow has its own settings for which certificates to trust.
        raise RegistryError(
            f"The MLflow server at {shown(uri)} does not answer ({reason}): start it, or correct MLFLOW_TRACKING_URI."
        ) from error
