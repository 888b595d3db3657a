"""A copy of the project as a clone would have it, in which `dvc repro` runs on its own and tells its digests."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from latentflow.errors import LatentflowError
from latentflow.params import load
from pipelines.configuration import PARAMS, PROJECT, as_settings

LEFT_OUT = (".venv", "data", "mlruns", ".latentflow")
# A run must not find another run's work, nor talk to a server that the environment names.
INHERITED = ("LATENTFLOW_", "MLFLOW_", "DVC_", "KFP_")


@dataclass(frozen=True)
class Clone:
    """A folder with the project, changes that are not committed yet included, and a work store of its own."""

    folder: Path
    store: Path

    def run(self, command: Sequence[str]) -> str:
        """What the command printed; one that fails raises LatentflowError with the end of that."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LatentflowError(f"{' '.join(command)} failed:\n{done.stdout[-6000:]}")
        return done.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run([sys.executable, "-m", "dvc", *arguments])

    def environment(self) -> dict[str, str]:
        """This process's, with the copy's code and store, and without what would lead it to another run's work."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
        return {
            **kept,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": str(self.folder),
            "LATENTFLOW_STORE": str(self.store),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }


def clone_project(root: Path, overrides: Mapping[str, Any]) -> Clone:
    """Copies the project below ``root`` with ``overrides`` (``section.field``: value) written into its params.yaml."""
    clone = Clone(root / "project", root / "dvc-store")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source = PROJECT / name
        if name.split("/")[0] not in LEFT_OUT and source.is_file():
            (clone.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, clone.folder / name)
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "clone"]):
        identity = ["-c", "user.name=latentflow", "-c", "user.email=latentflow@localhost"]
        subprocess.run(["git", *identity, *command], cwd=clone.folder, check=True)
    params = load(PARAMS, as_settings(overrides)).model_dump(mode="json")
    (clone.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return clone
