"""How fast ingest checks pictures beside a plain loop over the same checks, and how much memory a million records take.

    python benchmarks/ingest.py [--pictures 600] [--side 512] [--rounds 5] [--workers 0]
    python benchmarks/ingest.py --memory [--records 1000000] [--workers 0]

The first makes JPEGs (noise over shapes) in a temporary folder and runs, interleaved, the loop in one process and the
step's own reading, checking and writing; it prints the median seconds and records per second as a Markdown table.
The second feeds 8x8 PNGs, made as they are asked for, through the whole step and prints the largest resident memory of
all its processes together (proportional set size: a shared page counts once), sampled every second.
"""

import argparse
import json
import os
import random
import statistics
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from latentflow import params as parameters
from latentflow.data import sources
from latentflow.data.inspection import inspect
from latentflow.data.media_refs import BytesMedia
from latentflow.data.sources import Candidate, open_source
from latentflow.data.validation import Limits
from latentflow.params import IngestInputs
from latentflow.steps import ingest

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pictures", type=int, default=600)
    options.add_argument("--side", type=int, default=512)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--workers", type=int, default=0)
    options.add_argument("--memory", action="store_true")
    options.add_argument("--records", type=int, default=1_000_000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if chosen.memory:
            measure_memory(Path(place), chosen.records, chosen.workers)
        else:
            measure_speed(Path(place), chosen.pictures, chosen.side, chosen.rounds, chosen.workers)


def measure_speed(place: Path, pictures: int, side: int, rounds: int, workers: int) -> None:
    source = place / "pictures"
    make_pictures(source, pictures, side)
    inputs = inputs_for(str(source), workers)
    loop, step = [], []
    for number in range(rounds):
        start = time.perf_counter()
        check_all(inputs)
        between = time.perf_counter()
        (place / str(number)).mkdir()
        ingest.fill(place / str(number), open_source(inputs.ingest), inputs.ingest)
        loop.append(between - start)
        step.append(time.perf_counter() - between)
    print(f"{pictures} JPEGs of {side}x{side}, median of {rounds} interleaved rounds, {os.cpu_count()} cores\n")
    print("| | seconds | records/s | times the loop |")
    print("|---|---|---|---|")
    ratio = statistics.median(one / other for one, other in zip(loop, step, strict=True))
    for name, times, factor in (
        ("loop over the checks, 1 process", loop, 1.0),
        ("ingest, which also writes", step, ratio),
    ):
        seconds = statistics.median(times)
        print(f"| {name} | {seconds:.2f} | {pictures / seconds:.0f} | {factor:.2f} |")


def check_all(inputs: IngestInputs) -> None:
    limits = Limits(inputs.ingest.min_side, inputs.ingest.max_side)
    for candidate in open_source(inputs.ingest).candidates():
        inspect(candidate, limits)


def make_pictures(folder: Path, count: int, side: int) -> None:
    folder.mkdir()
    generator = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for number in range(count):
            shapes = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            noise = Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
            picture = Image.blend(shapes.resize((side, side), Image.Resampling.BICUBIC), noise, 0.15)
            picture.save(folder / f"{number:05d}.jpg", quality=90)
            metadata.write(json.dumps({"file_name": f"{number:05d}.jpg", "text": f"picture {number}"}) + "\n")


class Synthetic:
    """8x8 PNGs of noise, each another, made while they are read."""

    name = revision = "synthetic"
    license = credit = ""

    def __init__(self, count: int) -> None:
        self.count = count

    def candidates(self) -> Iterator[Candidate]:
        noise = random.Random(0)
        for number in range(self.count):
            yield Candidate(
                f"{number:08d}", f"a picture of noise, number {number}", BytesMedia(png(noise.randbytes(192)))
            )


def png(pixels: bytes) -> bytes:
    """192 bytes as an 8x8 RGB picture."""
    rows = b"".join(b"\0" + pixels[start : start + 24] for start in range(0, 192, 24))
    parts = ((b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def measure_memory(place: Path, records: int, workers: int) -> None:
    sources.open_source = lambda _: Synthetic(records)
    peak = Peak()
    start = time.perf_counter()
    with peak:
        manifest = ingest.run(inputs_for("synthetic", workers), place / "records")
    seconds = time.perf_counter() - start
    assert sum(manifest.counts.values()) == records
    print("| records | near duplicates | minutes | largest resident memory, MiB |")
    print("|---|---|---|---|")
    print(f"| {records:,} | {manifest.duplicates.near:,} | {seconds / 60:.1f} | {peak.mebibytes:.0f} |")


class Peak:
    """The largest sum of proportional set sizes of this process and its children, while the context lasts."""

    def __init__(self) -> None:
        self.mebibytes = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        while not self._over.wait(1):
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.NoSuchProcess:
                    continue
            self.mebibytes = max(self.mebibytes, total / 2**20)


def inputs_for(source: str, workers: int) -> IngestInputs:
    overrides = [f"ingest.source={source}", f"ingest.workers={workers}"]
    return IngestInputs(ingest=parameters.load(PARAMS, overrides).ingest)


if __name__ == "__main__":
    main()
