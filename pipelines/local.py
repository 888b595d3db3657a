"""Runs the pipeline on this machine, without a cluster: ``python -m pipelines.local [--full] [--set a.b=c]``.

Every task is a process of this Python environment that runs the component's compiled source, as a pod would; with
``--docker`` it is a container of the images. Outputs, work store and the default MLflow place lie under ``--root``.
"""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from latentflow import __version__
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

Pipeline = Callable[..., Any]

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


def run(
    overrides: Mapping[str, Any],
    root: Path,
    force_rerun: str = "",
    encode_parts: int = 1,
    images: Mapping[str, str] | None = None,
    storage: str = "",
) -> list[Result]:
    """Runs the training pipeline under ``root`` and returns every step's output; raises when one is missing."""
    inputs = {"force_rerun": force_rerun, "encode_parts": encode_parts, "storage": storage}
    return collect(start("training", overrides, inputs, root, images))


def start(
    name: str,
    overrides: Mapping[str, Any],
    inputs: Mapping[str, Any],
    root: Path,
    images: Mapping[str, str] | None = None,
) -> Path:
    """Runs a pipeline under ``root`` without a GPU and returns the folder in which its tasks left their outputs.

    ``inputs`` are the pipeline's, beside ``overrides`` of parameters. ``images`` are the names by input (``image_cpu``,
    ``image_gpu``) of those whose containers the tasks become; without them a task is a process.
    """
    root = root.absolute()
    outputs = root / "outputs"
    outputs.mkdir(parents=True, exist_ok=True)
    before = set(outputs.iterdir())
    values = {key: _absolute(value) if key in FOLDERS else value for key, value in overrides.items()}
    folders = [Path(values[key]) for key in FOLDERS if Path(values.get(key, "")).is_absolute()]
    with _processes(name, root) if images is None else _containers(name, root, images, folders) as pipeline:
        pipeline(**inputs, overrides=values, train_gpus=0)
    (folder,) = set(outputs.iterdir()) - before
    return folder


@contextmanager
def _processes(name: str, root: Path) -> "Iterator[Pipeline]":
    """The pipeline with a process per task, which imports this checkout and whose current folder is ``root``."""
    from kfp import local

    from pipelines.local_package import local_pipeline

    home = Path.cwd()
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *([path] if path else [])])
    os.chdir(root)
    try:
        with warnings.catch_warnings():
            # Running our image's component without the image is what this runner is for.
            warnings.filterwarnings("ignore", message="You may be attemping", category=RuntimeWarning)
            runner = local.SubprocessRunner(use_venv=False)
            local.init(runner=runner, pipeline_root=str(root / "outputs"), raise_on_error=True)
            yield local_pipeline(name)
    finally:
        os.chdir(home)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


@contextmanager
def _containers(name: str, root: Path, images: Mapping[str, str], folders: list[Path]) -> "Iterator[Pipeline]":
    """The pipeline with a container per task, and an MLflow server unless the environment names one."""
    from kfp import local

    from pipelines.containers import container_runner, engine_with
    from pipelines.local_package import local_pipeline
    from pipelines.mlflow_server import mlflow_server

    with ExitStack() as stack:
        client = stack.enter_context(engine_with(images.values()))
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        if not uri.startswith(("http://", "https://")):
            uri = stack.enter_context(mlflow_server(root / "mlruns"))
        runner = stack.enter_context(container_runner(client, root, filter(Path.exists, folders), uri))
        local.init(runner=runner, pipeline_root=str(root / "outputs"), raise_on_error=True)
        yield local_pipeline(name, images)


def collect(folder: Path) -> list[Result]:
    """The steps' outputs in a finished run's folder; raises LatentflowError naming what is missing."""
    results = []
    for step, task, artifact, manifest, files in OUTPUTS:
        if missing := [name for name in files if not (folder / task / name).exists()]:
            raise LatentflowError(f"{task} left no {', '.join(missing)} in {folder / task}: see its log above.")
        results.append(Result(step, folder / task / artifact, manifest.read(folder / task / artifact)))
    return results


def differences(results: Sequence[Result], folder: Path) -> list[str]:
    """The steps whose content digest or fingerprint is not that of the same step's output in ``folder``.

    ``folder`` is `dvc repro`'s, ``data``.
    """
    names = {output.step: output.artifact for output in OUTPUTS}
    others = [(result, type(result.manifest).read(folder / names[result.step])) for result in results]
    return [
        f"{result.step}: {what} {getattr(result.manifest, what)} here, {getattr(other, what)} in {folder}"
        for result, other in others
        for what in ("fingerprint", "digest")
        if getattr(result.manifest, what) != getattr(other, what)
    ]


def _absolute(value: Any) -> Any:
    return str(Path(value).absolute()) if isinstance(value, str) and value and Path(value).is_dir() else value


def _compare(results: Sequence[Result], overrides: Mapping[str, Any], root: Path) -> None:
    """Runs `dvc repro` with the same parameters in a copy of the project and raises when a digest differs."""
    from pipelines.clone import clone_project

    with tempfile.TemporaryDirectory(dir=root) as folder:
        print("\nThe same parameters by `dvc repro`, in a copy of the project ...", flush=True)
        clone = clone_project(Path(folder), overrides)
        clone.dvc("repro")
        if differing := differences(results, clone.folder / "data"):
            raise LatentflowError("`dvc repro` gives something else.\n" + "\n".join(differing))
    print("All six steps have the digests that `dvc repro` gives.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.local", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--overrides", type=Path, default=TINY, metavar="FILE", help="YAML of `section.field: value`")
    size.add_argument("--full", action="store_true", help="params.yaml as it is, instead of pipelines/tiny.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="one more override")
    parser.add_argument("--root", type=Path, help="work folder; default .latentflow/kubeflow-local or -docker")
    parser.add_argument("--force-rerun", default="", metavar="TOKEN", help="any text; a new one does all work again")
    parser.add_argument("--encode-parts", type=int, default=1, metavar="N", help="tasks that share the encoding")
    parser.add_argument("--storage", default="", metavar="PLACE", help="folder or URL for encoded data and checkpoints")
    parser.add_argument("--docker", action="store_true", help="a container per task, of the images of `make images`")
    for which in ("cpu", "gpu"):
        name = f"latentflow-{which}:{__version__}"
        parser.add_argument(f"--image-{which}", default=name, metavar="NAME", help=f"with --docker; default {name}")
    parser.add_argument(
        "--compare-dvc", action="store_true", help="afterwards run `dvc repro` in a copy and compare all digests"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    images = {"image_cpu": options.image_cpu, "image_gpu": options.image_gpu} if options.docker else None
    root = options.root or Path(".latentflow") / ("kubeflow-docker" if options.docker else "kubeflow-local")
    try:
        overrides = {} if options.full else read_overrides(options.overrides)
        overrides |= parse_settings(options.set)
        results = run(overrides, root, options.force_rerun, options.encode_parts, images, _absolute(options.storage))
        print()
        for result in results:
            print(f"{result.step:<12} {result.manifest.digest[:16]}  {result.folder}")
        if options.compare_dvc:
            _compare(results, overrides, root)
    except (LatentflowError, RuntimeError) as error:
        print(f"The local run failed: {error}", file=sys.stderr)
        return 1
    report = next(result.folder for result in results if result.step == "evaluate") / "report.html"
    print(f"\nAll six steps left their outputs. Open {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
