"""Writes the pipeline package that is uploaded to Kubeflow: ``python -m pipelines.compile [--check]``."""

import argparse
import sys
import tempfile
from pathlib import Path

from kfp import compiler

from pipelines.configuration import PROJECT
from pipelines.training import training

PACKAGE = PROJECT / "pipelines" / "latentflow_training.yaml"


def package() -> str:
    """The package that the sources give, as text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PACKAGE.name
        compiler.Compiler().compile(training, str(path))
        return path.read_text(encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed package is stale")
    check = parser.parse_args(arguments).check
    text = package()
    if not check:
        PACKAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PACKAGE.relative_to(PROJECT)}")
    elif not PACKAGE.is_file() or PACKAGE.read_text(encoding="utf-8") != text:
        print(
            f"{PACKAGE.relative_to(PROJECT)} is not what the sources give: run `python -m pipelines.compile` "
            "with the pinned kfp and commit it.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
