"""prerequisites: a run form becomes one validated set of parameters per step, and what the run needs is tried first."""

import copy
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from latentflow import __version__
from latentflow.errors import LatentflowError, ParamsError
from latentflow.params import STEP_INPUTS, IngestParams, Params, for_step, parse, source_kind

MAX_PARTS = 1000
T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A run as it was asked for.

    ``defaults`` are all parameters in sections, ``fields`` and ``overrides`` replace some, as ``section.field``.
    ``version`` is that of the pipeline package, ``storage`` the place that all pods reach, or "".
    """

    defaults: Mapping[str, Any]
    fields: Mapping[str, Any]
    overrides: Mapping[str, Any]
    version: str
    images: tuple[str, ...] = ()
    storage: str = ""
    encode_parts: int = 1
    num_nodes: int = 1
    gpus: int = 0


@dataclass(frozen=True)
class Checked:
    """What the steps are given: each its own parameters, by step.

    ``revision`` pins the data. ``trainer`` is "pod", or "job" where training takes several processes.
    """

    sections: dict[str, dict[str, Any]]
    parts: list[str]
    revision: str
    trainer: str


def run(request: Request) -> Checked:
    """Validates everything and tries the data source, the models, MLflow and the places that the run writes to.

    Raises LatentflowError with a line for each thing that is wrong; one does not hide the others.
    """
    faults: list[str] = []

    def tried(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except LatentflowError as error:
            faults.append(str(error))
            return None

    params = tried(lambda: _params(request))
    tried(lambda: _version(request))
    tried(lambda: _counts(request))
    tried(_work_store)
    tried(lambda: _storage(request))
    tried(_mlflow)
    revision = tried(lambda: _revision(params.ingest)) if params else None
    if params:
        faults += _models(params)
    if params is None or revision is None or faults:
        raise LatentflowError("\n".join([f"this run cannot work ({len(faults)} found):", *faults]))
    return Checked(
        sections={step: for_step(_pinned(params, revision), step).model_dump(mode="json") for step in STEP_INPUTS},
        parts=[f"{number}/{request.encode_parts}" for number in range(1, request.encode_parts + 1)],
        revision=revision,
        trainer="job" if _processes(request) > 1 else "pod",
    )


def _params(request: Request) -> Params:
    values: dict[str, Any] = copy.deepcopy(dict(request.defaults))
    for name, value in {**request.fields, **request.overrides}.items():
        *parents, field = name.split(".")
        section: Any = values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not parents or not isinstance(section, dict):
            raise ParamsError(f"overrides: {name!r} names no section; write it as section.field, e.g. train.beta2.")
        section[field] = value
    return parse(Params, values, "run form")


def _version(request: Request) -> None:
    if request.version != __version__:
        raise LatentflowError(
            f"the package is of latentflow {request.version} and the image in image_cpu holds {__version__}: give "
            "images of the package's version, or upload the package of the images."
        )
    for image in request.images:
        tagged = re.search(r":(\d+\.\d+\.\d+)$", image)
        if tagged and tagged[1] != request.version:
            raise LatentflowError(f"the package is of latentflow {request.version} and the image is {image}.")


def _counts(request: Request) -> None:
    if not 1 <= request.encode_parts <= MAX_PARTS:
        raise ParamsError(f"encode_parts should be from 1 to {MAX_PARTS}, found {request.encode_parts}.")
    if request.num_nodes < 1 or request.gpus < 0:
        raise ParamsError(
            f"train_num_nodes should be at least 1 and train_gpus at least 0, found {request.num_nodes} and "
            f"{request.gpus}."
        )
    if request.num_nodes > 1 and request.gpus == 0:
        raise ParamsError(f"train_num_nodes {request.num_nodes} needs train_gpus, the GPUs per node; found 0.")
    if _processes(request) > 1 and not request.storage:
        raise ParamsError(
            f"train_num_nodes {request.num_nodes} with train_gpus {request.gpus} trains in several processes, which "
            "need a place that they all reach: give storage, a bucket's URL or a folder on a shared volume."
        )


def _processes(request: Request) -> int:
    return request.num_nodes * max(request.gpus, 1)


def _work_store() -> None:
    from latentflow.data.remote import try_writing
    from latentflow.workspace import store

    try:
        try_writing(store())
    except LatentflowError as error:
        raise LatentflowError(f"LATENTFLOW_STORE: {error}") from None


def _storage(request: Request) -> None:
    from latentflow.data.remote import try_writing

    if request.storage:
        try:
            try_writing(request.storage)
        except LatentflowError as error:
            raise LatentflowError(f"storage: {error}") from None


def _mlflow() -> None:
    from latentflow.registry.store import try_writing

    if not os.environ.get("MLFLOW_TRACKING_URI") and os.environ.get("KUBERNETES_SERVICE_HOST"):
        raise LatentflowError(
            "MLFLOW_TRACKING_URI is not set, so metrics and the registered model would end with their pods: put the "
            "server's address into the run's Secret."
        )
    try_writing()


def _revision(params: IngestParams) -> str:
    from latentflow.data.sources import pin

    revision = pin(params)
    log.info("ingest.source %s is at %s", params.source, revision)
    return revision


def _models(params: Params) -> list[str]:
    from latentflow.denoisers import preflight

    return preflight.faults(params)


def _pinned(params: Params, revision: str) -> Params:
    """The parameters with the commit that a branch or tag of the data names now."""
    if not source_kind(params.ingest.source):
        return params
    return params.model_copy(update={"ingest": params.ingest.model_copy(update={"revision": revision})})
