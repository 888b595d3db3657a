"""The command line: help, the list of parameters, and where the last results are."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentflow import params as parameters
from latentflow.cli import app
from latentflow.errors import LatentflowError
from latentflow.manifest import RegistrationManifest

RUNNER = CliRunner()


@pytest.mark.parametrize(
    "command",
    [*parameters.STEP_INPUTS, "average", "generate", "pull", "promote", "rollback", "lineage", "summary", "params"],
)
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
