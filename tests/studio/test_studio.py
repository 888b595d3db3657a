"""The page in a real browser: a prompt, two versions at one seed, figures and lineage, errors, and no internet."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
from mlflow_servers import free_port
from PIL import Image

from latentflow.generation import album
from latentflow.generation.drawing import Model
from latentflow.generation.orders import Dials, Order
from latentflow.registry.pulling import Pulled

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 240_000


@dataclass(frozen=True)
class Studio:
    """A running `latentflow studio` over a registry of two versions, and what they were made from."""

    address: str
    pipelines: tuple[Path, Path]


def shake(pipeline: Path) -> None:
    """Other weights, so that the second version draws another picture."""
    from safetensors.torch import load_file, save_file

    file = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "registry"))
    from registry_helpers import INPUTS, model_manifest, write_evaluation, write_model
    from tiny import build_pipeline

    from latentflow.steps import register

    folder = tmp_path_factory.mktemp("studio")
    pipelines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        patch.chdir(folder)
        for name, guidance in (("one", 2.0), ("two", 3.0)):
            place = folder / name
            place.mkdir()
            model = write_model(place / "model", build_pipeline(place / "pipeline"))
            if name == "two":
                shake(model / "pipeline")
            model_manifest().model_copy(update={"digest": name * 20}).write(model)
            evaluation = write_evaluation(place / "evaluation", name * 20, guidance)
            manifest = json.loads((evaluation / "manifest.json").read_text())
            (evaluation / "manifest.json").write_text(json.dumps(manifest | {"inputs": {"model": name * 20}}))
            register.run(INPUTS, model, evaluation, place / "registration")
            generation = json.loads((model / "pipeline" / "generation.json").read_text())
            judged = {"sampler": "euler", "steps": 3, "guidance": guidance}
            (model / "pipeline" / "generation.json").write_text(json.dumps(generation | judged))
            pipelines.append(model / "pipeline")
        port = free_port()
        # NiceGUI waits for a test of its own where it sees pytest.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment = {**kept, "LATENTFLOW_STORE": str(folder / "work"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "latentflow.cli", "studio", "--port", str(port), "--device", "cpu"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"
        try:
            for _ in range(480):
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.5)
            yield Studio(address, (pipelines[0], pipelines[1]))
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture
def page(studio: Studio) -> "Iterator[Page]":
    """The page in a headless browser that may reach nothing but the studio."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    asked: list[str] = []
    with sync.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(studio.address)
        page.get_by_text("latentflow studio").wait_for()
        yield page
        chromium.close()
    hosts = {urlsplit(url).netloc for url in asked if url.startswith(("http", "ws"))}
    assert hosts == {urlsplit(studio.address).netloc}


def draw(page: "Page", prompt: str, seed: int) -> None:
    page.get_by_label("Prompt").fill(prompt)
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_role("button", name="Draw").click()


def shown(page: "Page", place: int) -> bytes:
    """The PNG that stands on one side."""
    source = page.locator(".stage").nth(place).locator("img").get_attribute("src")
    assert source
    with urllib.request.urlopen(source) as data:
        content: bytes = data.read()
    return content


def test_two_versions_at_one_seed(studio: Studio, page: "Page") -> None:
    draw(page, "red heart", 7)
    page.locator(".stage img").nth(1).wait_for()
    for place, pipeline in enumerate(studio.pipelines):
        picture = Image.open(io.BytesIO(shown(page, place)))
        expected = Model(Pulled("tiny", pipeline), device="cpu").draw(Order("red heart", 7), Dials())
        assert np.array_equal(np.asarray(picture), np.asarray(expected)), place
    assert shown(page, 0) != shown(page, 1)
    assert page.get_by_text("seed 7 · 3 steps · guidance 2 ·").is_visible()
    assert page.get_by_text("seed 7 · 3 steps · guidance 3 ·").is_visible()


def test_a_saved_picture_says_how_it_was_drawn(studio: Studio, page: "Page", tmp_path: Path) -> None:
    draw(page, "blue cat", 3)
    page.locator(".stage img").nth(1).wait_for()
    with page.expect_download() as saved:
        page.locator("button:has-text('download')").nth(1).click()
    file = tmp_path / "saved.png"
    saved.value.save_as(file)
    origin = album.read_origin(file)
    assert (origin.model, origin.orders) == ("models:/tiny/2", (Order("blue cat", 3),))
    assert saved.value.suggested_filename == "version-2-challenger.png"


def test_figures_and_lineage_of_both_are_shown(page: "Page") -> None:
    assert page.get_by_text("retrieval/train/top5").first.is_visible()
    assert page.get_by_text("version 1 @champion").first.is_visible()
    page.get_by_text("Where they come from").click()
    page.get_by_text("git commit").wait_for()
    assert page.get_by_text("c0ffee").first.is_visible()
    assert page.get_by_text("CC-BY-4.0").first.is_visible()


def test_what_cannot_be_drawn_is_said_on_the_page(page: "Page") -> None:
    draw(page, " ", 0)
    page.get_by_text("Give a prompt and a seed.").wait_for()
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Width").fill("12")
    draw(page, "red heart", 0)
    page.get_by_text("divisible by 8").wait_for()
    page.get_by_label("Width").fill("")
    draw(page, "red heart", 0)
    page.locator(".stage img").nth(1).wait_for()
    assert not page.get_by_text("divisible by 8").is_visible()


def test_one_version_alone(page: "Page") -> None:
    page.get_by_label("Version").nth(1).click()
    page.get_by_role("option", name="no second version").click()
    draw(page, "red heart", 1)
    page.locator(".stage img").nth(0).wait_for()
    page.get_by_role("button", name="Draw").wait_for()
    assert page.locator(".stage img").count() == 1
