"""Imports point one way: steps → rooms → diffusion, and no room knows a shell."""

import ast
import sys
from pathlib import Path

import pytest
import yaml

PACKAGE = Path(__file__).parents[1] / "latentflow"
SHELLS = {"kfp", "dvc", "typer"}
# DVC is a shell that runs the steps, and there a library that fetches data.
LIBRARIES = {"data/dvc_repository.py": {"dvc"}}
ROOMS = (
    "diffusion",
    "cluster",
    "data",
    "encoders",
    "denoisers",
    "training",
    "evaluation",
    "registry",
    "generation",
    "studio",
)


def imported(path: Path, top_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    names = imported(path)
    place = path.relative_to(PACKAGE).parts[0]
    if path.name != "cli.py":
        used = LIBRARIES.get(path.relative_to(PACKAGE).as_posix(), set())
        assert not {name.split(".")[0] for name in names} & (SHELLS - used)
        assert not {name.split(".")[0] for name in imported(path, top_only=True)} & SHELLS
    if place in ROOMS:
        assert not {name for name in names if name.startswith(("latentflow.steps", "latentflow.cli"))}
    if place == "diffusion":
        outside = {name.split(".")[0] for name in names if not name.startswith("latentflow.diffusion")}
        assert outside - sys.stdlib_module_names <= {"torch"}
    shells = {"components", "pipelines"}
    # The command line starts what a checkout brings along, when it is asked to.
    told = imported(path, top_only=True) if path.name == "cli.py" else names
    assert not {name.split(".")[0] for name in told} & shells


# What every step rests on and no step's result follows from; the registry is told of results, it makes none.
FOUNDATION = ("params", "files", "manifest", "progress", "errors", "workspace", "registry")


def reached(module: str, seen: set[str]) -> set[str]:
    """The files of latentflow that ``module`` imports, directly or not."""
    base = PACKAGE.parent / Path(*module.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    name = path.relative_to(PACKAGE.parent).as_posix()
    parts = module.split(".")
    if name in seen or not path.is_file() or (len(parts) > 1 and parts[1] in FOUNDATION):
        return seen
    seen.add(name)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("latentflow"):
            reached(node.module, seen)
            for alias in node.names:
                reached(f"{node.module}.{alias.name}", seen)
    return seen


@pytest.mark.parametrize("step", ["ingest", "autoencoder", "encode", "train", "evaluate"])
def test_a_dvc_stage_depends_on_all_code_that_makes_its_result(step: str) -> None:
    stages = yaml.safe_load((PACKAGE.parent / "dvc.yaml").read_text())["stages"]
    deps = [dep for dep in stages[step]["deps"] if dep.startswith("latentflow/")]
    files = {name for name in reached(f"latentflow.steps.{step}", set()) if not name.endswith("__init__.py")}
    assert {name for name in files if not any(name == dep or name.startswith(f"{dep}/") for dep in deps)} == set()


@pytest.mark.parametrize("path", sorted((PACKAGE / "steps").glob("*.py")), ids=lambda path: path.name)
def test_steps_import_heavy_libraries_only_when_they_run(path: Path) -> None:
    heavy = {"torch", "mlflow", "diffusers", "transformers", "accelerate", "pyarrow"}
    assert not {name.split(".")[0] for name in imported(path, top_only=True)} & heavy
