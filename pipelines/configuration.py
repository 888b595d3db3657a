"""Parameters on their way into the pipeline: defaults of the form, names of its fields, sets of overrides."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from latentflow.errors import ParamsError
from latentflow.params import Params, load

PROJECT = Path(__file__).resolve().parent.parent
PARAMS = PROJECT / "params.yaml"


def defaults() -> dict[str, Any]:
    """Every parameter as in params.yaml, validated, as nested plain values."""
    return load(PARAMS).model_dump(mode="json")


def dotted(field: str) -> str:
    """The parameter behind a field of the run form: ``train_batch_size`` is ``train.batch_size``."""
    section, _, name = field.partition("_")
    return f"{section}.{name}"


def lookup(values: Mapping[str, Any], name: str) -> Any:
    """The value of ``section.field`` in nested values."""
    found: Any = values
    for part in name.split("."):
        found = found[part]
    return found


def description(name: str) -> str:
    """The description of ``section.field`` in the pydantic models."""
    model: type[BaseModel] = Params
    *parents, field = name.split(".")
    for parent in parents:
        section = next(info for key, info in model.model_fields.items() if parent in (key, info.alias))
        if not isinstance(section.annotation, type):
            raise TypeError(f"{parent} in {name} is not a section")
        model = section.annotation
    return model.model_fields[field].description or ""


def read_overrides(path: Path) -> dict[str, Any]:
    """Reads a YAML file of ``section.field: value`` pairs."""
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ParamsError(f"{path}: expected `section.field: value` lines.")
    return values


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Turns ``section.field=value`` with the value in YAML into overrides of the run form."""
    overrides = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or "." not in name:
            raise ParamsError(f"--set {setting}: expected section.field=value.")
        try:
            overrides[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ParamsError(f"--set {setting}: the value is not YAML.") from None
    return overrides


def as_settings(overrides: Mapping[str, Any]) -> list[str]:
    """The same overrides as ``section.field=value`` strings, as ``latentflow.params.load`` takes them."""
    return [f"{name}={_inline(value)}" for name, value in overrides.items()]


def _inline(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    # A bare scalar is written with YAML's end-of-document line.
    return text.removesuffix("...\n").strip()
