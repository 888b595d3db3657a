"""Parameters as arguments of a compiled pipeline: what has a field goes there, the rest into ``overrides``."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentflow.errors import ParamsError
from latentflow.params import Section, load
from pipelines.configuration import PARAMS, as_settings, dotted

OVERRIDES = "overrides"


@dataclass(frozen=True)
class Input:
    """An input of a compiled pipeline: its type in the package (STRING, NUMBER_INTEGER, ...) and its default."""

    kind: str
    default: Any


def inputs_of(spec: Mapping[str, Any]) -> dict[str, Input]:
    """The inputs of a pipeline, from the first document of its package."""
    defined = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    return {name: Input(item["parameterType"], _default(item)) for name, item in defined.items()}


def _default(item: Mapping[str, Any]) -> Any:
    """The default of an input; the package writes whole numbers as 1300.0."""
    value = item.get("defaultValue")
    return int(value) if item["parameterType"] == "NUMBER_INTEGER" and value is not None else value


def leaves(section: Section, prefix: str = "") -> dict[str, Any]:
    """Every parameter under its dotted name, such as ``train.adapter.rank``, as plain values."""
    found: dict[str, Any] = {}
    dumped = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        key = field.alias or name
        value = getattr(section, name)
        if isinstance(value, Section):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = dumped[key]
    return found


def arguments(
    inputs: Mapping[str, Input], params: Path | None, settings: Iterable[str], fields: Iterable[str]
) -> dict[str, Any]:
    """The arguments that differ from the pipeline's defaults.

    ``params`` is a whole params.yaml (None: the pipeline's own defaults), ``settings`` are ``section.field=value``,
    ``fields`` are ``name=value`` for inputs that are no parameter. All parameters are validated together, before
    anything is sent. Raises ParamsError.
    """
    defaults = leaves(load(PARAMS))
    field_of = {dotted(name): name for name in inputs if dotted(name) in defaults}
    defaults |= {name: inputs[field].default for name, field in field_of.items()}
    form = [] if params else as_settings({name: defaults[name] for name in field_of})
    wanted = leaves(load(params or PARAMS, [*form, *settings]))

    chosen: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for name, value in wanted.items():
        if value == defaults[name]:
            continue
        if name in field_of:
            chosen[field_of[name]] = value
        else:
            overrides[name] = value
    if overrides and OVERRIDES not in inputs:
        raise ParamsError(f"This pipeline has no field for {', '.join(sorted(overrides))}: leave it as in {PARAMS}.")
    if overrides:
        chosen[OVERRIDES] = overrides
    return chosen | _extra(inputs, set(field_of.values()), fields)


def _extra(inputs: Mapping[str, Input], parameter_fields: set[str], fields: Iterable[str]) -> dict[str, Any]:
    """``name=value`` pairs as typed arguments; those that equal their default are left out."""
    others = sorted(set(inputs) - parameter_fields - {OVERRIDES})
    found = {}
    for text in fields:
        name, equals, value = text.partition("=")
        if not equals:
            raise ParamsError(f"--field {text}: expected name=value.")
        if name in parameter_fields:
            raise ParamsError(f"--field {name}: this is a parameter; write --set {dotted(name)}={value}.")
        if name == OVERRIDES:
            raise ParamsError("--field overrides: write --set section.field=value, once for each parameter.")
        if name not in inputs:
            raise ParamsError(f"--field {name}: this pipeline has no such input; it has {', '.join(others)}.")
        typed = parse_field(name, value, inputs[name].kind)
        if typed != inputs[name].default:
            found[name] = typed
    return found


def parse_field(name: str, text: str, kind: str) -> Any:
    """The text of ``--field name=text`` as the type that the package asks for. Raises ParamsError."""
    if kind == "STRING":
        return text
    names = {"NUMBER_INTEGER": "a whole number", "NUMBER_DOUBLE": "a number", "BOOLEAN": "true or false"}
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "NUMBER_INTEGER": number and isinstance(value, int),
        "NUMBER_DOUBLE": number,
        "BOOLEAN": isinstance(value, bool),
        "LIST": isinstance(value, list),
        "STRUCT": isinstance(value, dict),
    }
    if not fits.get(kind, False):
        raise ParamsError(f"--field {name}: expected {names.get(kind, f'a {kind.lower()} as JSON')}, found {text!r}.")
    return float(value) if kind == "NUMBER_DOUBLE" else value
