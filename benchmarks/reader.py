"""Our reader of the encoded set against others: samples per second from disk and from S3, and sizes on disk.

    python benchmarks/reader.py [--small] [--folder /tmp/reader-benchmark] [--records 8192] [--rounds 3]

Records: latents 4x32x32 float32 and text 77x768 float16, all different; batches of 256 in random order, delivered as
tensors of whole batches in memory of their own. Every figure is the median of rounds in which all readers take turns,
each time in a new process, with no worker process or two, whichever is faster. From disk the first epoch is not counted
(files in the page cache, workers running) and two are. From S3 (moto's server, a process of its own on this machine)
one epoch is read with an empty cache; opening counts, imports do not.

The peers pin other versions than the project. They need an environment of their own, which sees the project's:

    python -m venv /tmp/peers
    echo <the project's site-packages> > /tmp/peers/lib/python3.11/site-packages/project.pth
    /tmp/peers/bin/pip install s3fs "moto[s3,server]" webdataset datasets
    /tmp/peers/bin/pip install --no-deps litdata mosaicml-streaming     and what their imports still ask for

and a torchvision that was built for the project's torch, because mosaicml-streaming imports it. A peer that cannot be
imported is named with its error and left out.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from reader_parties import PARTIES, Data, Party

BUCKET = "benchmark"
ONCE = Path(__file__).with_name("reader_once.py")
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
# What moto asks for, and that litdata's client may speak to a server without encryption.
CLIENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ALLOW_HTTP": "true",
}


@dataclass
class Figures:
    """Samples per second per party and number of workers, one per round, and what went wrong instead."""

    rounds: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def best(self, party: Party) -> tuple[float, int] | None:
        """The better median over the numbers of workers, and that number."""
        medians = [
            (statistics.median(self.rounds[party.name, n]), n) for n in party.workers if (party.name, n) in self.rounds
        ]
        return max(medians, default=None)


def once(party: Party, workers: int, data: Data, place: list[str]) -> float:
    """One measurement. Raises RuntimeError with the last thing that the process said."""
    words = [party.name, str(workers), str(data.records), str(data.shard), *place]
    try:
        done = subprocess.run(
            [sys.executable, str(ONCE), *words], capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError("not done after 300 seconds") from None
    if done.returncode:
        raise RuntimeError(" ".join((done.stderr.strip() or "ended without a word").split())[-300:])
    return float(done.stdout.splitlines()[-1])


def take_turns(parties: list[Party], rounds: int, data: Data, place: Callable[[Party], list[str]]) -> Figures:
    figures = Figures()
    for _ in range(rounds):
        for party in parties:
            for workers in party.workers:
                try:
                    figure = once(party, workers, data, place(party))
                    figures.rounds.setdefault((party.name, workers), []).append(figure)
                    print(f"{party.name}, {workers} workers: {figure:,.0f} samples/s", file=sys.stderr, flush=True)
                except RuntimeError as error:
                    figures.failed[f"{party.name}, {workers} workers"] = str(error)
    return figures


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 in a process of its own; its address, which the environment names too."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        endpoint = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        os.environ.update(CLIENT, AWS_ENDPOINT_URL=endpoint)
        yield endpoint
    finally:
        process.communicate()


def upload(folders: list[Path], endpoint: str) -> None:
    import boto3

    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    for folder in folders:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            client.upload_file(str(path), BUCKET, path.relative_to(folder.parent).as_posix())


def write(parties: list[Party], data: Data, folder: Path) -> None:
    """Every party's files in a folder of its name; those that an earlier run of this size left are used again."""
    for party in parties:
        if not (folder / party.name).is_dir():
            with TemporaryDirectory(dir=folder) as temporary:
                party.write(Path(temporary) / "made", data)
                (Path(temporary) / "made").rename(folder / party.name)


def show(title: str, parties: list[Party], figures: Figures) -> None:
    ours, _ = figures.best(PARTIES[0]) or (float("nan"), 0)
    print(f"\n{title}\n\n| reader | samples/s | workers | ours is faster by | delivers |\n|---|---|---|---|---|")
    for party in parties:
        if best := figures.best(party):
            print(f"| {party.name} | {best[0]:,.0f} | {best[1]} | {ours / best[0]:.1f} | {party.delivers} |")
    for name, error in figures.failed.items():
        print(f"\n{name}: {error}")


def show_sizes(parties: list[Party], data: Data, folder: Path) -> None:
    print("\n| reader | bytes on disk / bytes of the tensors |\n|---|---|")
    for party in parties:
        kept = folder / party.name / "arrow" if party.name == "datasets" else folder / party.name
        size = sum(path.stat().st_size for path in kept.rglob("*") if path.is_file())
        print(f"| {party.name} | {size / data.raw_bytes:.4f} |")


def from_s3(parties: list[Party], rounds: int, data: Data, folder: Path) -> Figures:
    with s3_server() as endpoint, TemporaryDirectory(dir=folder) as caches:
        upload([folder / party.name for party in parties], endpoint)

        def place(party: Party) -> list[str]:
            cache = Path(caches) / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            return [BUCKET, party.name, endpoint, str(cache)]

        return take_turns(parties, rounds, data, place)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--small", action="store_true", help="a few records once: shows that everything runs")
    options.add_argument("--folder", type=Path, default=Path("/tmp/reader-benchmark"), help="takes some 8 GB of files")
    options.add_argument("--records", type=int, default=8192, help="a multiple of 1024")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--only", nargs="*", default=[], help="names of readers; all that are there if not given")
    chosen = options.parse_args()
    records, rounds = (1024, 1) if chosen.small else (chosen.records, chosen.rounds)
    local, remote = Data(records, min(512, records // 4)), Data(records, 128)
    parties = [party for party in PARTIES if not chosen.only or party.name in chosen.only]
    for party in [party for party in parties if party.absent()]:
        print(f"{party.name} is left out: {party.absent()}")
        parties.remove(party)
    folders = chosen.folder / f"disk-{records}", chosen.folder / f"s3-{records}"
    for folder, data in zip(folders, (local, remote), strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        write(parties if data is local else [party for party in parties if party.remote], data, folder)
    figures = take_turns(parties, rounds, local, lambda party: [str(folders[0] / party.name)])
    show("From disk", parties, figures)
    if importlib.util.find_spec("moto") and importlib.util.find_spec("s3fs"):
        far = [party for party in parties if party.remote]
        show("From S3, nothing cached", far, from_s3(far, rounds, remote, folders[1]))
    else:
        print("\nNo figures from S3: moto or s3fs is not installed.")
    show_sizes(parties, local, folders[0])


if __name__ == "__main__":
    main()
