"""The package that is uploaded and its version's name: the commit, and a digest where the commit says too little."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from latentflow import __version__
from latentflow.errors import ParamsError
from latentflow.registry.lineage import git_state
from pipelines.cluster import Cluster
from pipelines.compile import PIPELINES, package
from pipelines.configuration import PROJECT

SHORT = 12


# Whose defaults are those of its own form; the other's are params.yaml's.
OWN_DEFAULTS = ("fine_tune",)


@dataclass(frozen=True)
class Package:
    """A compiled pipeline and where it comes from."""

    text: str
    commit: str
    dirty: bool
    marks: tuple[str, ...] = ()
    """What made this package another than its commit's own, such as ``no-cache``."""

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The pipeline's document; the platform's follows it in ``text``."""
        document: dict[str, Any] = next(iter(yaml.safe_load_all(self.text)))
        return document

    @property
    def name(self) -> str:
        """The pipeline's name, such as ``latentflow-training``."""
        return str(self.spec["pipelineInfo"]["name"])

    @property
    def digest(self) -> str:
        """sha256 of the text in UTF-8, in hexadecimal."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    @property
    def version(self) -> str:
        """The commit; with a digest of the text where two packages of one commit can differ."""
        commit = self.commit[:SHORT] or f"v{__version__}"
        marks = (*(("dirty",) if self.dirty else ()), *self.marks)
        certain = self.commit and not marks
        return commit if certain else "-".join((commit, *marks, self.digest[:8]))

    @property
    def description(self) -> str:
        """What the version's page says; ``same_package`` reads the digest from it."""
        commit = f"commit {self.commit}{' with changes' if self.dirty else ''}" if self.commit else "no git commit"
        return f"latentflow {__version__}, {commit}, package sha256:{self.digest}"

    def same_package(self, description: str | None) -> bool:
        """Whether a version with this description was uploaded from the same text."""
        return f"sha256:{self.digest}" in (description or "")


def build(pipeline: str = "training", cluster: Path | None = None, cache: bool = True) -> Package:
    """Compiles a pipeline of this checkout. Raises LatentflowError."""
    require(pipeline)
    text = package(pipeline, Cluster.read(cluster) if cluster else None)
    marks = (*(("cluster",) if cluster else ()), *(() if cache else ("no-cache",)))
    state = git_state(PROJECT)
    return Package(
        text=text if cache else without_cache(text),
        commit=state.get("git_commit", ""),
        dirty=state.get("git_dirty") == "true",
        marks=marks,
    )


def require(pipeline: str) -> None:
    """Raises ParamsError for what is no choice of --pipeline."""
    if pipeline not in PIPELINES:
        raise ParamsError(f"--pipeline {pipeline}: choose one of {', '.join(PIPELINES)}.")


def without_cache(text: str) -> str:
    """The package with caching off for every task, those of nested pipelines and loops too."""
    documents = list(yaml.safe_load_all(text))
    for task in _tasks(documents[0]):
        task["cachingOptions"] = {}
    return yaml.safe_dump_all(documents, sort_keys=True)


def task_names(spec: dict[str, Any]) -> list[str]:
    """The tasks that run a container, of nested pipelines too, in an order in which they can run."""
    names: list[str] = []

    def add(component: dict[str, Any]) -> None:
        tasks = component["dag"]["tasks"]
        waiting = dict(tasks)
        while waiting:
            ready = [key for key, task in waiting.items() if not set(task.get("dependentTasks", ())) & set(waiting)]
            for key in ready or list(waiting):
                inner = spec["components"][waiting.pop(key)["componentRef"]["name"]]
                if "dag" in inner:
                    add(inner)
                elif key not in names:
                    names.append(key)

    add(spec["root"])
    return names


def _tasks(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for component in (spec["root"], *spec["components"].values()):
        yield from component.get("dag", {}).get("tasks", {}).values()
