"""The command line: help, the list of parameters, and where the last results are."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from latentflow import params as parameters
from latentflow.cli import app
from latentflow.errors import LatentflowError, ParamsError
from latentflow.manifest import RegistrationManifest

RUNNER = CliRunner()


OTHERS = (
    "average",
    "deliver",
    "generate",
    "pull",
    "serve",
    "studio",
    "submit",
    "promote",
    "rollback",
    "lineage",
    "summary",
    "params",
    "trainjob",
)


@pytest.mark.parametrize("command", [*parameters.STEP_INPUTS, *OTHERS])
def test_every_command_explains_itself(command: str) -> None:
    shown = RUNNER.invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert "Usage:" in shown.stdout


def test_params_lists_every_field_of_the_file() -> None:
    listed = {line.split(":")[0] for line in RUNNER.invoke(app, ["params"]).stdout.splitlines()}
    values = parameters.load(Path(__file__).parents[1] / "params.yaml").model_dump(by_alias=True)

    def names(prefix: str, value: object) -> set[str]:
        if isinstance(value, dict) and value and prefix not in listed:
            return set().union(*(names(f"{prefix}.{key}" if prefix else key, inner) for key, inner in value.items()))
        return {prefix}

    assert listed == names("", values)


def test_summary_names_the_version_that_was_registered(tmp_path: Path) -> None:
    RegistrationManifest(
        digest="d", fingerprint="f", inputs={}, name="cats", version="7", alias="challenger", mlflow_run_id="r"
    ).write(tmp_path)
    shown = RUNNER.invoke(app, ["summary", "--registration", str(tmp_path)]).stdout
    assert "models:/cats/7 (@challenger)" in shown
    assert "latentflow generate --model models:/cats/7" in shown


def test_summary_before_any_run_says_what_to_run(tmp_path: Path) -> None:
    shown = RUNNER.invoke(app, ["summary", "--registration", str(tmp_path)])
    assert isinstance(shown.exception, LatentflowError)
    assert "run `latentflow register` first" in str(shown.exception)


def test_sections_are_checked_on_arrival_and_are_all_there_is(tmp_path: Path) -> None:
    values = parameters.load(Path(__file__).parents[1] / "params.yaml").model_dump(mode="json", by_alias=True)
    sections = {name: values[name] for name in ("train", "model", "diffusion")}
    refused = RUNNER.invoke(app, ["train", "--sections", "{train: {stepz: 1}}"])
    assert isinstance(refused.exception, ParamsError)
    assert "--sections: " in str(refused.exception)
    assert "train.stepz: unknown parameter" in str(refused.exception)
    text = yaml.safe_dump(sections)
    both = RUNNER.invoke(app, ["train", "--sections", text, "--set", "train.steps=2"])
    assert isinstance(both.exception, ParamsError)
    assert "--sections holds every value itself" in str(both.exception)
    # What is right gets as far as the data.
    read = RUNNER.invoke(app, ["train", "--sections", text, "--encoded", str(tmp_path)])
    assert isinstance(read.exception, LatentflowError)
    assert f"{tmp_path} holds no manifest.json" in str(read.exception)
