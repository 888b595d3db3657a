"""Parameters: a typo, a wrong type or a value out of range is refused fast and by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from latentflow import params as parameters
from latentflow.errors import ParamsError

ROOT = Path(__file__).parents[1]
PARAMS = ROOT / "params.yaml"


@pytest.mark.parametrize(
    ("override", "field", "words"),
    [
        ("train.stepz=3", "train.stepz", "unknown parameter"),
        ("train.steps=0", "train.steps", "greater than or equal to 1, found 0"),
        ("train.batch_size=many", "train.batch_size", "valid integer"),
        (
            "model.denoiser=gan",
            "model.denoiser",
            "one of unet, pixart, auraflow, or a class of your own",
        ),
        ("model.unet.channels=[50, 128]", "model.unet", "multiples of 32"),
        ("autoencoder.resolution=30", "autoencoder", "not a multiple of 4"),
        ("ingest.test_fraction=0.96", "ingest", "nothing is left to train on"),
        ("model.pixart.patch_size=3", "(whole file)", "does not divide latents of 8x8"),
        ("train.sigma_mean=.nan", "train.sigma_mean", "finite number"),
        ("evaluate.guidance=0.5", "evaluate.guidance", "greater than or equal to 1"),
        ("diffusion.definition=nowhere:parabola", "diffusion.definition", "no module nowhere"),
        ("register.name=a/b", "register.name", "should match pattern"),
        ("encode.control_image=pose", "encode", "control_image is `edges`, `column:NAME` or empty, found 'pose'"),
        ("encode.control_image='column:pose'", "(whole file)", "add it to ingest.condition_columns"),
        ("encode.reference_image=picture", "encode", "reference_image and image_encoder need each other"),
        ("train.adapter.kind=controlnet", "(whole file)", "name one in model.pretrained"),
    ],
)
def test_a_fault_is_named(override: str, field: str, words: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parameters.load(PARAMS, [override])
    assert f"  {field}: " in str(caught.value)
    assert words in str(caught.value)


def test_sizes_of_a_new_denoiser_are_not_asked_of_a_pretrained_one() -> None:
    overrides = ["model.pixart.patch_size=3", "model.pretrained=some/pipeline"]
    assert parameters.load(PARAMS, overrides).model.pretrained == "some/pipeline"


def test_every_fault_is_listed_at_once() -> None:
    with pytest.raises(ParamsError, match="2 parameter"):
        parameters.load(PARAMS, ["train.steps=0", "evaluate.seeds=0"])


def test_a_file_that_is_not_there_or_not_yaml(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="does not exist"):
        parameters.load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("train: [")
    with pytest.raises(ParamsError, match="not YAML"):
        parameters.load(tmp_path / "params.yaml")


def test_every_field_is_described() -> None:
    def check(model: type[parameters.Section]) -> None:
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, parameters.Section):
                check(kind)
            else:
                assert field.description, f"{model.__name__}.{name}"

    check(parameters.Params)


def test_dvc_stages_declare_what_their_step_reads() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert list(stages) == list(parameters.STEP_INPUTS)
    for step, model in parameters.STEP_INPUTS.items():
        sections = {field.alias or name for name, field in model.model_fields.items()}
        assert set(stages[step]["params"]) == sections, step


def test_the_command_line_refuses_a_typo_before_any_heavy_import(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS.read_text().replace("batch_size: 64", "batchsize: 64", 1))
    program = (
        "import sys\nfrom latentflow import cli\nsys.argv = ['latentflow', 'train']\n"
        "try:\n    cli.main()\nfinally:\n"
        "    assert not {'torch', 'mlflow', 'diffusers', 'pyarrow'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "encode.batchsize: unknown parameter" in done.stderr
    assert "Traceback" not in done.stderr
