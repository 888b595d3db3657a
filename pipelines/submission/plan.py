"""What will be sent: made and checked from what a user asks, without asking Kubeflow."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from latentflow.errors import ParamsError
from pipelines.configuration import PARAMS, PROJECT
from pipelines.submission.arguments import OVERRIDES, Input, arguments, inputs_of
from pipelines.submission.connection import Connection
from pipelines.submission.images import Image, pinned
from pipelines.submission.packages import OWN_DEFAULTS, Package, build
from pipelines.submission.schedule import Schedule

EXPERIMENT = "latentflow"


@dataclass(frozen=True)
class Images:
    """Where the images are: both in a registry under their own names, or each by its name."""

    registry: str = ""
    cpu: str = ""
    gpu: str = ""


@dataclass(frozen=True)
class Request:
    """What a user asks to be run."""

    pipeline: str = "training"
    params: Path | None = None
    settings: Sequence[str] = ()
    fields: Sequence[str] = ()
    cluster: Path | None = None
    images: Images = field(default_factory=Images)
    cache: bool = True
    experiment: str = ""
    run_name: str = ""
    service_account: str = ""
    schedule: Schedule | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that will be sent, made and checked without asking Kubeflow."""

    package: Package
    inputs: Mapping[str, Input]
    arguments: Mapping[str, Any]
    images: Mapping[str, Image]
    experiment: str
    run_name: str
    service_account: str
    schedule: Schedule | None

    @property
    def warnings(self) -> list[str]:
        """What the user should know before it runs."""
        changed = (
            f"{PROJECT} has changes that are not committed: the version is named {self.package.version}; commit "
            "them to be able to make this run again."
        )
        images = [f"{name}: {image.warning}" for name, image in self.images.items() if image.problem]
        return [*((changed,) if self.package.dirty else ()), *images]


def prepare(request: Request) -> Plan:
    """Compiles, validates all parameters and asks registries for digests; sends nothing. Raises LatentflowError."""
    package = build(request.pipeline, request.cluster, request.cache)
    inputs = inputs_of(package.spec)
    params = request.params or (None if request.pipeline in OWN_DEFAULTS else PARAMS)
    chosen = arguments(inputs, params, request.settings, request.fields)
    images = _images(inputs, request.images, chosen)
    chosen |= {name: image.name for name, image in images.items() if image.name != inputs[name].default}
    return Plan(
        package=package,
        inputs=inputs,
        arguments=chosen,
        images=images,
        experiment=request.experiment or os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME") or EXPERIMENT,
        run_name=request.run_name or _name(package, request.schedule),
        service_account=request.service_account,
        schedule=request.schedule,
    )


def _name(package: Package, schedule: Schedule | None) -> str:
    if schedule is None:
        return f"{package.name} {package.version} {datetime.now():%Y-%m-%d %H-%M-%S}"
    return f"{package.name} {schedule.cron or f'every {schedule.interval_seconds} s'}"


def _images(inputs: Mapping[str, Input], wanted: Images, chosen: Mapping[str, Any]) -> dict[str, Image]:
    """The pipeline's images by the names of their inputs, with digests where their registries tell them."""
    found = {}
    for name, given in (("image_cpu", wanted.cpu), ("image_gpu", wanted.gpu)):
        if name not in inputs:
            if given or wanted.registry:
                raise ParamsError(
                    f"This pipeline has no input {name}: leave out --image-registry, --image-cpu and -gpu."
                )
            continue
        default = str(inputs[name].default)
        pushed = f"{wanted.registry.rstrip('/')}/{default.rpartition('/')[2]}" if wanted.registry else default
        found[name] = pinned(given or chosen.get(name) or pushed)
    return found


def describe(plan: Plan, connection: Connection) -> str:
    """What would be sent, as text."""
    package = plan.package
    lines = [
        ("host", connection.shown),
        ("namespace", connection.namespace or "the server's, or kfp's own setting"),
        ("experiment", plan.experiment),
        ("recurring run" if plan.schedule else "run", plan.run_name),
        *((("schedule", str(plan.schedule)),) if plan.schedule else ()),
        *((("account", plan.service_account),) if plan.service_account else ()),
        ("pipeline", package.name),
        ("version", package.version),
        ("commit", (package.commit or "no git repository") + (", with changes" if package.dirty else "")),
        ("package", f"sha256:{package.digest}"),
        *((name, image.name) for name, image in plan.images.items()),
    ]
    told = [f"{name:<14}{value}" for name, value in lines]
    shown = [f"  {name} = {_text(value)}{was}" for name, value, was in _differences(plan)]
    return "\n".join([*told, "arguments that differ from their defaults:", *(shown or ["  none"])])


def _differences(plan: Plan) -> list[tuple[str, Any, str]]:
    values = {name: value for name, value in plan.arguments.items() if name != OVERRIDES}
    found = [(name, value, f"  (default {_text(plan.inputs[name].default)})") for name, value in sorted(values.items())]
    overrides = plan.arguments.get(OVERRIDES, {})
    return [*found, *((f"{OVERRIDES}: {name}", value, "") for name, value in sorted(overrides.items()))]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
