"""Imports point one way: steps → rooms → diffusion, and no room knows a shell."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "latentflow"
SHELLS = {"kfp", "dvc", "typer"}
ROOMS = ("diffusion", "data", "encoders", "denoisers", "training", "evaluation", "registry")


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
        assert not {name.split(".")[0] for name in names} & SHELLS
    if place in ROOMS:
        assert not {name for name in names if name.startswith(("latentflow.steps", "latentflow.cli"))}
    if place == "diffusion":
        outside = {name for name in names if not name.startswith("latentflow.diffusion")}
        assert outside <= {"torch", "collections.abc", "dataclasses", "itertools"}
    assert not {name for name in names if name.split(".")[0] in ("components", "pipelines")}


@pytest.mark.parametrize("path", sorted((PACKAGE / "steps").glob("*.py")), ids=lambda path: path.name)
def test_steps_import_heavy_libraries_only_when_they_run(path: Path) -> None:
    heavy = {"torch", "mlflow", "diffusers", "transformers", "accelerate", "pyarrow"}
    assert not {name.split(".")[0] for name in imported(path, top_only=True)} & heavy
