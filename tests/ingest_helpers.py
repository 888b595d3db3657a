"""Real bytes for these tests: pictures and clips made on the spot, and folders of them."""

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentflow.params import IngestInputs


def ingest_inputs(source: Path | str, **changes: object) -> IngestInputs:
    """Parameters of ingest for small data, in this process unless ``workers`` says otherwise."""
    import yaml

    defaults = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())["ingest"]
    small = {"validation_fraction": 0.2, "test_fraction": 0.2, "max_bad_fraction": 0.5, "min_side": 4, "workers": 1}
    return IngestInputs.model_validate({"ingest": defaults | small | {"source": str(source)} | changes})


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scene(seed: int, size: tuple[int, int] = (256, 192)) -> Image.Image:
    """A picture with large and small shapes, another for every seed."""
    generator = np.random.default_rng(seed)
    image = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    noise = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return Image.blend(image, noise, 0.06)


def clip(frames: int = 24, fps: int = 12, size: tuple[int, int] = (64, 48), kind: str = "mp4", **options: str) -> bytes:
    """A clip whose frame n is uniformly grey of level 8 n; skips the test without PyAV."""
    av = pytest.importorskip("av")
    handle, name = tempfile.mkstemp()
    os.close(handle)
    with av.open(name, "w", format=kind, options=options) as container:
        stream = container.add_stream("vp9" if kind == "webm" else "mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            levels = np.full((size[1], size[0], 3), 8 * number, np.uint8)
            levels[0, 0] = 255 - levels[0, 0]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(levels, format="rgb24")))
        container.mux(stream.encode())
    data = Path(name).read_bytes()
    Path(name).unlink()
    return data


def append(root: Path, **row: object) -> None:
    """A further row of a folder's metadata.jsonl."""
    with (root / "metadata.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def make_folder(root: Path) -> Path:
    """Forty good pictures with metadata.jsonl."""
    root.mkdir()
    for number in range(40):
        name = f"{number:02d}.png"
        (root / name).write_bytes(encoded(Image.new("RGB", (20, 10), (number, 0, 0))))
        append(root, file_name=name, text=f"picture {number}")
    return root
