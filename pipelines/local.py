"""Runs the pipeline on this machine, without a cluster: ``python -m pipelines.local [--full] [--set a.b=c]``.

Every task is a process of this Python environment that runs the component's compiled source, as a pod would.
Outputs, work store and the default MLflow place lie under ``--root``.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from latentflow.errors import LatentflowError
from latentflow.manifest import (
    AutoencoderManifest,
    EncodedManifest,
    EvaluationManifest,
    Manifest,
    ModelManifest,
    RecordsManifest,
    RegistrationManifest,
)
from pipelines.configuration import PROJECT, parse_settings, read_overrides

TINY = PROJECT / "pipelines" / "tiny.yaml"


class Output(NamedTuple):
    """The last task of a step, its artifact with the step's manifest, and the other files that it must leave."""

    step: str
    task: str
    artifact: str
    manifest: type[Manifest]
    files: tuple[str, ...]


OUTPUTS = (
    Output("ingest", "ingest", "records", RecordsManifest, ("records/records.parquet", "summary")),
    Output("autoencoder", "autoencoder", "autoencoder", AutoencoderManifest, ("autoencoder/vae/config.json",)),
    Output("encode", "merge", "encoded", EncodedManifest, ("encoded/index.parquet", "encoded/metrics.json")),
    Output("train", "train", "model", ModelManifest, ("model/pipeline/model_index.json", "model/metrics.json")),
    Output("evaluate", "evaluate", "evaluation", EvaluationManifest, ("evaluation/metrics.json", "report")),
    Output("register", "register", "registration", RegistrationManifest, ("summary",)),
)

# Parameters that may name a folder; the tasks run in the root, so a relative one is made absolute.
FOLDERS = ("ingest.source", "autoencoder.pretrained", "encode.text_encoder")


@dataclass(frozen=True)
class Result:
    """What one step left behind."""

    step: str
    folder: Path
    manifest: Manifest


def run(overrides: Mapping[str, Any], root: Path, force_rerun: str = "", encode_parts: int = 1) -> list[Result]:
    """Runs the pipeline under ``root`` and returns every step's output; raises when one is missing."""
    from kfp import local

    from pipelines.training import NAME, training

    values = {name: _absolute(value) if name in FOLDERS else value for name, value in overrides.items()}
    outputs = root.absolute() / "outputs"
    outputs.mkdir(parents=True, exist_ok=True)
    before = set(outputs.iterdir())
    home = Path.cwd()
    # The tasks are to import this checkout, and to keep what they keep in the current folder under the root.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *([path] if path else [])])
    os.chdir(root)
    try:
        with warnings.catch_warnings():
            # Running our image's component without the image is what this runner is for.
            warnings.filterwarnings("ignore", message="You may be attemping", category=RuntimeWarning)
            local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(outputs), raise_on_error=True)
            training(overrides=values, force_rerun=force_rerun, encode_parts=encode_parts)
    finally:
        os.chdir(home)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    folder = next(new for new in sorted(set(outputs.iterdir()) - before) if new.name.startswith(NAME))
    return collect(folder)


def collect(folder: Path) -> list[Result]:
    """The steps' outputs in a finished run's folder; raises LatentflowError naming what is missing."""
    results = []
    for step, task, artifact, manifest, files in OUTPUTS:
        if missing := [name for name in files if not (folder / task / name).exists()]:
            raise LatentflowError(f"{task} left no {', '.join(missing)} in {folder / task}: see its log above.")
        results.append(Result(step, folder / task / artifact, manifest.read(folder / task / artifact)))
    return results


def _absolute(value: Any) -> Any:
    return str(Path(value).absolute()) if isinstance(value, str) and value and Path(value).is_dir() else value


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--overrides", type=Path, default=TINY, metavar="FILE", help="YAML of `section.field: value`")
    size.add_argument("--full", action="store_true", help="params.yaml as it is, instead of pipelines/tiny.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="one more override")
    parser.add_argument("--root", type=Path, default=Path(".latentflow/kubeflow-local"), help="work folder")
    parser.add_argument("--force-rerun", default="", metavar="TOKEN", help="any text; a new one does all work again")
    parser.add_argument("--encode-parts", type=int, default=1, metavar="N", help="tasks that share the encoding")
    options = parser.parse_args(arguments)
    try:
        overrides = {} if options.full else read_overrides(options.overrides)
        results = run(
            {**overrides, **parse_settings(options.set)}, options.root, options.force_rerun, options.encode_parts
        )
    except (LatentflowError, RuntimeError) as error:
        print(f"The local run failed: {error}", file=sys.stderr)
        return 1
    print()
    for result in results:
        print(f"{result.step:<12} {result.manifest.digest[:16]}  {result.folder}")
    report = next(result.folder for result in results if result.step == "evaluate") / "report.html"
    print(f"\nAll six steps left their outputs. Open {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
