"""The component folders: what they may import, and that their pages are what the code says."""

import ast
import sys
from pathlib import Path

import pytest
import yaml

from latentflow import __version__
from pipelines import document
from pipelines.configuration import PROJECT

COMPONENTS = PROJECT / "components"


def source(name: str) -> Path:
    return COMPONENTS / name / "component.py"


def top_imports(path: Path) -> set[str]:
    """The first names of the modules that a file imports at its top."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_every_folder_is_a_component() -> None:
    folders = {path.name for path in COMPONENTS.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(document.NAMES)


@pytest.mark.parametrize("name", document.NAMES)
def test_module_top_imports_only_the_standard_library_and_kfp(name: str) -> None:
    assert top_imports(source(name)) <= set(sys.stdlib_module_names) | {"kfp"}
    assert top_imports(COMPONENTS / name / "__init__.py") <= {"components"}


@pytest.mark.parametrize("name", document.NAMES)
def test_metadata_matches_the_component(name: str) -> None:
    about = document.metadata(name)
    assert about["name"] == name
    # KFP's own names have no underscores.
    assert document.component(name).component_spec.name == name.replace("_", "-")
    assert about["stability"] in {"experimental", "alpha", "beta", "stable"}
    assert "Pipelines" in {item["name"] for item in about["dependencies"]["kubeflow"]}
    assert about["tags"]


@pytest.mark.parametrize("name", document.NAMES)
def test_image_is_ours_at_this_version(name: str) -> None:
    kind = "gpu" if name == "train" else "cpu"
    assert document.component(name).component_spec.implementation.container.image == f"latentflow-{kind}:{__version__}"


@pytest.mark.parametrize("name", [name for name in document.NAMES if name not in ("prerequisites", "adopt")])
def test_every_step_takes_its_parameters_and_the_rerun_token(name: str) -> None:
    inputs = document.component(name).component_spec.inputs
    assert inputs["params"].type.startswith("Dict")
    assert inputs["force_rerun"].default == ""


@pytest.mark.parametrize("name", document.NAMES)
def test_every_input_and_output_is_described(name: str) -> None:
    spec = document.component(name).component_spec
    assert spec.description
    fields = set(document.form_fields())
    for key, item in {**spec.inputs, **spec.outputs}.items():
        assert item.description or key in fields, key


def test_pages_are_what_the_code_says() -> None:
    stale = [str(path) for path, text in document.documents().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run `python -m pipelines.document`: {stale}"


def test_metadata_is_plain_yaml() -> None:
    for name in document.NAMES:
        assert set(yaml.safe_load((COMPONENTS / name / "metadata.yaml").read_text())) <= {
            "name",
            "stability",
            "dependencies",
            "tags",
            "lastVerified",
            "ci",
            "links",
        }
