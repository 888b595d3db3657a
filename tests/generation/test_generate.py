"""`latentflow generate`: files that say how they were drawn, folders that go on, grids, samplers, negative prompts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from latentflow.cli import app
from latentflow.errors import LatentflowError
from latentflow.generation import album
from latentflow.generation.drawing import Model, draw
from latentflow.generation.orders import Dials, Order
from latentflow.registry.pulling import Pulled

RUNNER = CliRunner()


def generate(*arguments: object) -> str:
    done = RUNNER.invoke(app, ["generate", *map(str, arguments)])
    if done.exception:
        raise done.exception
    return done.stdout


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def test_one_file_per_picture_that_says_how_it_was_drawn(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    said = generate(
        "--model", trained, "--prompt", "red heart", "--prompt", "Blue cat!", "--seeds", "3-4", "--out", folder
    )
    assert "4 pictures" in said
    names = ["0001-red-heart-seed3", "0002-red-heart-seed4", "0003-blue-cat-seed3", "0004-blue-cat-seed4"]
    assert sorted(path.stem for path in folder.iterdir()) == names
    origin = album.read_origin(folder / "0004-blue-cat-seed4.png")
    assert origin.orders == (Order("Blue cat!", 4),)
    assert origin.model == str(trained)
    assert origin.dials == Dials(steps=3, guidance=2.0, height=16, width=16, sampler="euler")
    expected = draw(trained, ["Blue cat!"], seed=4)[0]
    assert np.array_equal(pixels(folder / "0004-blue-cat-seed4.png"), np.asarray(expected))
    assert Image.open(folder / "0001-red-heart-seed3.png").info["Description"] == "red heart"


def test_a_run_that_was_cut_short_goes_on(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    asked = ("--model", trained, "--prompt", "red heart", "--seeds", "0-3", "--out", folder)
    generate(*asked)
    first, second, *_ = sorted(folder.iterdir())
    first.unlink()
    stamp = second.stat().st_mtime_ns
    assert "1 picture (3 more were there)" in generate(*asked)
    assert second.stat().st_mtime_ns == stamp
    with pytest.raises(LatentflowError, match="was drawn otherwise: give another folder"):
        generate(*asked, "--steps", 2)
    first.write_bytes(b"no picture")
    with pytest.raises(LatentflowError, match="cannot be read as a picture"):
        generate(*asked)


def test_a_grid_has_a_row_per_prompt_and_can_be_drawn_again(trained: Path, tmp_path: Path) -> None:
    sheet, again, other = tmp_path / "sheet.png", tmp_path / "again.png", tmp_path / "other.png"
    generate("--model", trained, "--prompt", "red heart", "--prompt", "cat", "--seeds", "0-2", "--out", sheet)
    assert Image.open(sheet).size == (3 * 20 + 4, 2 * 20 + 4)
    generate("--again", sheet, "--out", again)
    assert again.read_bytes() == sheet.read_bytes()
    generate("--again", sheet, "--steps", 2, "--out", other)
    assert album.read_origin(other).dials.steps == 2
    assert not np.array_equal(pixels(other), pixels(sheet))


def test_a_file_of_prompts(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "red heart", "seed": 7}\n{"prompt": "cat", "negative_prompt": "red"}\n')
    generate("--model", trained, "--prompts-file", file, "--out", f"{tmp_path}/out/")
    origins = [album.read_origin(path).orders[0] for path in sorted((tmp_path / "out").iterdir())]
    assert origins == [Order("red heart", 7), Order("cat", 0, "red")]


def test_a_picture_of_somebody_else_cannot_be_drawn_again(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "holiday.png")
    with pytest.raises(LatentflowError, match=r"holiday\.png does not say how it was drawn"):
        generate("--again", tmp_path / "holiday.png")
    with pytest.raises(LatentflowError, match=r"absent\.png cannot be read"):
        generate("--again", tmp_path / "absent.png")


def test_too_many_for_a_sheet_and_a_file_for_a_folder(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match=r"401 pictures are too many for the one sheet .*--out .*/sheet/"):
        generate("--model", trained, "--prompt", "a", "--seeds", "0-400", "--out", tmp_path / "sheet.png")
    (tmp_path / "file").touch()
    with pytest.raises(LatentflowError, match=r"is a file: --out takes a \.png file or a folder"):
        generate("--model", trained, "--prompt", "a", "--out", tmp_path / "file")


def test_every_sampler_draws_and_the_default_is_untouched_by_another(trained: Path) -> None:
    model = Model(Pulled("tiny", trained))
    order = Order("red heart", 1)
    pictures = {name: np.asarray(model.draw(order, Dials(sampler=name))) for name in model.samplers()}
    assert list(pictures) == ["euler", "heun", "dpm_solver_2m", "unipc", "ancestral"]
    assert np.array_equal(pictures["euler"], np.asarray(model.draw(order, Dials())))
    assert not np.array_equal(pictures["euler"], pictures["heun"])


def test_a_negative_prompt_changes_the_picture_and_needs_guidance(trained: Path) -> None:
    model = Model(Pulled("tiny", trained))
    plain, empty, other = (
        np.asarray(model.draw(Order("red heart", 1, negative), Dials())) for negative in ("", "", "green dog")
    )
    assert np.array_equal(plain, empty)
    assert not np.array_equal(plain, other)
    with pytest.raises(LatentflowError, match="a negative prompt acts through guidance above 1"):
        model.draw(Order("red heart", 1, "green dog"), Dials(guidance=1.0))


def test_sizes_other_than_the_model_s(trained: Path) -> None:
    model = Model(Pulled("tiny", trained))
    assert model.draw(Order("cat", 0), Dials(width=32, height=24)).size == (32, 24)
    with pytest.raises(LatentflowError, match="divisible by 8"):
        model.draw(Order("cat", 0), Dials(width=30))


def test_a_wrong_precision_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(LatentflowError, match="dtype is 'float8': it must be one of float32, float16, bfloat16"):
        generate("--model", trained, "--prompt", "a", "--dtype", "float8", "--out", tmp_path / "a.png")
