"""The promise behind three shells: with equal parameters and data, DVC and Kubeflow give equal content digests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latentflow.manifest import Manifest
from latentflow.params import load
from pipelines import local
from pipelines.configuration import PARAMS, PROJECT, as_settings, read_overrides

LEFT_OUT = (".venv", "data", "mlruns", ".latentflow")
# A run must not find another run's work, nor talk to a server that the environment names.
INHERITED = ("LATENTFLOW_", "MLFLOW_", "DVC_", "KFP_")


def copy_project(target: Path) -> None:
    """The project as a clone would have it, with changes that are not committed yet."""
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
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)
    subprocess.run(["git", "init", "--quiet"], cwd=target, check=True)


def environment(project: Path, store: Path) -> dict[str, str]:
    """The copy's code, this Python's programs, a store of its own, one thread count for both shells."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **kept,
        "PATH": programs,
        "PYTHONPATH": str(project),
        "LATENTFLOW_STORE": str(store),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def run(command: list[str], project: Path, store: Path) -> None:
    done = subprocess.run(
        command,
        cwd=project,
        env=environment(project, store),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout[-6000:]}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dvc_and_kubeflow_give_equal_digests(tmp_path: Path) -> None:
    project = tmp_path / "project"
    copy_project(project)

    tiny = load(PARAMS, as_settings(read_overrides(local.TINY)))
    (project / "params.yaml").write_text(yaml.safe_dump(tiny.model_dump(mode="json"), sort_keys=False))
    run([sys.executable, "-m", "dvc", "repro"], project, tmp_path / "dvc-store")

    # The package's form keeps the project's defaults; the tiny values come in as overrides, as a user types them.
    shutil.copy2(PARAMS, project / "params.yaml")
    root = tmp_path / "kubeflow"
    run([sys.executable, "-m", "pipelines.local", "--root", str(root)], project, tmp_path / "kubeflow-store")

    (outputs,) = (root / "outputs").iterdir()
    through_kubeflow = {result.step: result.manifest for result in local.collect(outputs)}
    through_dvc: dict[str, Manifest] = {
        step: manifest.read(project / "data" / artifact) for step, artifact, manifest, _ in local.OUTPUTS
    }
    for what in ("fingerprint", "digest"):
        expected = {step: getattr(manifest, what) for step, manifest in through_dvc.items()}
        assert {step: getattr(manifest, what) for step, manifest in through_kubeflow.items()} == expected
    # Two runs leave a gigabyte behind, mostly copies of the text encoder.
    shutil.rmtree(tmp_path)
