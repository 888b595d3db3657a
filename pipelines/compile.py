"""Writes the pipeline packages that are uploaded to Kubeflow: ``python -m pipelines.compile [--check]``.

With ``--cluster`` and ``--out`` one package is compiled for a cluster of its own.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from kfp import compiler

from latentflow.errors import LatentflowError
from pipelines import fine_tune, training
from pipelines.cluster import Cluster
from pipelines.configuration import PROJECT

# The pipelines by name, and their committed packages.
PIPELINES = {"training": training.make, "fine_tune": fine_tune.make}
PACKAGES = {name: PROJECT / "pipelines" / f"latentflow_{name}.yaml" for name in PIPELINES}


def package(name: str = "training", cluster: Cluster | None = None) -> str:
    """The package that the sources give for a cluster (the default options, if none is given), as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.yaml"
        compiler.Compiler().compile(PIPELINES[name](cluster or Cluster()), str(path))
        return path.read_text(encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a committed package is stale")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="YAML of the cluster's options; needs --out")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the package to write for that cluster")
    parser.add_argument("--pipeline", choices=PIPELINES, default="training", help="which pipeline goes to --out")
    options = parser.parse_args(arguments)
    if bool(options.cluster) != bool(options.out) or (options.check and options.out):
        parser.error("--cluster and --out go together, and without --check")
    if options.check:
        return _check()
    if not options.out:
        for name, path in PACKAGES.items():
            path.write_text(package(name), encoding="utf-8")
            print(f"wrote {path.relative_to(PROJECT)}")
        return 0
    try:
        options.out.write_text(package(options.pipeline, Cluster.read(options.cluster)), encoding="utf-8")
    except (LatentflowError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.out}")
    return 0


def _check() -> int:
    stale = [path for name, path in PACKAGES.items() if not path.is_file() or path.read_text("utf-8") != package(name)]
    for path in stale:
        print(
            f"{path.relative_to(PROJECT)} is not what the sources give: run `python -m pipelines.compile` "
            "with the pinned kfp and commit it.",
            file=sys.stderr,
        )
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
