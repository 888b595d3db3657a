"""Where a model comes from: code, environment, parameters, as flat text that any MLflow store can hold."""

import getpass
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from latentflow import __version__
from latentflow.registry.dvc_files import data_digests

# In a lineage, a key with this prefix is a parameter of the run; with it a run can be rebuilt in another store.
PARAMS = "params."

# What is in the environment, and its name in the lineage. DVC sets DVC_STAGE; the Kubeflow components set
# KFP_RUN_ID; the images set LATENTFLOW_IMAGE to their digest.
_ENVIRONMENT = {"KFP_RUN_ID": "kfp_run_id", "DVC_STAGE": "dvc_stage", "LATENTFLOW_IMAGE": "image"}


def lineage_from_environment() -> dict[str, str]:
    """What this process can tell: latentflow_version, git_commit, git_dirty, kfp_run_id, dvc_stage, image.

    Only what is known is in it. Without a repository the commit is LATENTFLOW_GIT_SHA (an image's build argument).
    In a stage of DVC there is also `dvc/<path>`, DVC's digest of each output that the stage reads.
    """
    lineage = {"latentflow_version": __version__, **git_state(Path())}
    if "git_commit" not in lineage and (commit := os.environ.get("LATENTFLOW_GIT_SHA", "unknown")) != "unknown":
        lineage["git_commit"] = commit
    lineage.update({name: os.environ[key] for key, name in _ENVIRONMENT.items() if os.environ.get(key)})
    if stage := lineage.get("dvc_stage"):
        # DVC runs a stage's command in the folder of its dvc.yaml, with what it reads locked before.
        lineage.update({f"dvc/{path}": md5 for path, md5 in data_digests(Path(), stage).items()})
    return lineage


def git_state(folder: Path) -> dict[str, str]:
    """git_commit and git_dirty ("true" or "false") of the repository that a folder is in; empty where there is none."""
    if not (commit := git(folder, "rev-parse", "HEAD")):
        return {}
    # `dvc repro` itself rewrites dvc.lock while it runs.
    changed = git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top,glob)**/dvc.lock")
    return {"git_commit": commit, "git_dirty": "true" if changed else "false"}


def flat_params(sections: BaseModel) -> dict[str, str]:
    """A step's validated sections as flat text: {"train.steps": "1300", "model.unet.channels": "[64, 128]", ...}."""
    return flat_text(sections.model_dump(mode="json"))


def flat_text(values: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as text under dotted names."""
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = str(value)

    add("", values)
    return flat


def with_params(lineage: Mapping[str, str], params: Mapping[str, str]) -> dict[str, str]:
    """A lineage that also holds the run's parameters, for the model's manifest."""
    return dict(lineage) | {f"{PARAMS}{name}": value for name, value in params.items()}


def split_params(lineage: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The inverse of with_params: (lineage, parameters)."""
    params = {key.removeprefix(PARAMS): value for key, value in lineage.items() if key.startswith(PARAMS)}
    return {key: value for key, value in lineage.items() if not key.startswith(PARAMS)}, params


def tags(lineage: Mapping[str, str]) -> dict[str, str]:
    """A lineage as MLflow tags, `latentflow.<key>`; its parameters are left out."""
    return {f"latentflow.{key}": value for key, value in split_params(lineage)[0].items()}


def author() -> str:
    """Who is at work, for people: user and machine, and the Kubeflow run if there is one."""
    try:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (OSError, KeyError):  # A pod's numeric user has no name.
        user = f"uid {os.getuid()}"
    run = os.environ.get("KFP_RUN_ID")
    return f"{user}@{socket.gethostname()}" + (f", Kubeflow run {run}" if run else "")


def git(folder: Path, *arguments: str) -> str:
    """What git says in that folder; "" where it fails or is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
