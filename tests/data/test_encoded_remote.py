"""A set behind a URL: read through the cache, which is small, shared, checked and forgets what is not used."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from encoded_sets import Recipe, write_set

from latentflow.data import remote
from latentflow.data.cache import Cache
from latentflow.data.encoded import EncodedSet
from latentflow.data.places import RemotePlace
from latentflow.errors import LatentflowError
from latentflow.files import sha256_file
from latentflow.manifest import EncodedManifest

SHAPE, SHARDS, ROWS = (4, 8, 8), 8, 16
EVERY = torch.arange(SHARDS * ROWS)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    write_set(folder, Recipe({"train": [(SHAPE, ROWS)] * SHARDS}, text_rows=16))
    for name in ("text_encoder", "tokenizer"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LATENTFLOW_CACHE_GB", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def url(origin: Path, cache: Path) -> Iterator[str]:
    """The folder in fsspec's memory, which is as far away as any object store to a reader that only knows URLs."""
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(origin), "/encoded", recursive=True)
    yield "memory://encoded"
    memory.rm("/encoded", recursive=True)


def cached(cache: Path) -> list[Path]:
    return [path for path in (cache / "files").glob("*/*") if path.is_file()]


def test_it_reads_the_same_as_from_the_folder(origin: Path, url: str, cache: Path) -> None:
    here, there = (EncodedSet.open(place).split("train") for place in (origin, url))
    wanted, found = (split.samples(0, EVERY) for split in (here, there))
    assert torch.equal(found.latents, wanted.latents)
    assert torch.equal(found.text, wanted.text)
    assert (there.remote, here.remote) == (True, False)


def test_only_the_shards_that_are_read_come(origin: Path, url: str, cache: Path) -> None:
    encoded = EncodedSet.open(url)
    split = encoded.split("train")
    assert len(cached(cache)) == 2  # prompts and index
    split.samples(0, torch.arange(3))
    assert len(cached(cache)) == 4
    split.fetch(0, torch.arange(20))
    assert len(cached(cache)) == 6
    assert all(sha256_file(path) == path.name for path in cached(cache))


def test_the_text_encoder_comes_when_it_is_asked_for(url: str, cache: Path) -> None:
    encoded = EncodedSet.open(url)
    assert not (cache / "sets").exists()
    folder = encoded.text_folder
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"text_encoder/config.json", "tokenizer/config.json"}


def test_a_second_process_reads_from_the_cache_alone(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = EncodedSet.open(url).split("train").samples(0, EVERY)
    monkeypatch.setattr(RemotePlace, "fetch", lambda *_: pytest.fail("fetched again"))
    found = EncodedSet.open(url).split("train").samples(0, EVERY)
    assert torch.equal(found.latents, wanted.latents)


def test_the_cache_stays_below_its_limit_and_what_was_dropped_comes_again(
    origin: Path, url: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = EncodedManifest.read(origin).shards
    size = max((origin / shard.file).stat().st_size for shard in shards)
    monkeypatch.setenv("LATENTFLOW_CACHE_GB", str(6 * size / 1e9))
    split, here = (EncodedSet.open(place).split("train") for place in (url, origin))
    for _ in range(2):
        for rows in EVERY.split(ROWS):
            assert torch.equal(split.samples(0, rows).latents, here.samples(0, rows).latents)
            assert sum(path.stat().st_size for path in cached(cache)) <= 6 * size
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(cache) in line}
    assert not [name for name in mapped if name == "(deleted)"]


def copied(source: Path) -> Callable[[Path], str]:
    """What fetches a file of this machine."""
    return lambda target: sha256_file(Path(shutil.copy(source, target)))


@pytest.mark.parametrize("size", [1, 63, 64, 65, 128, 200])
def test_a_file_of_any_size_comes_whole(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setattr(remote, "BLOCK", 64)
    bytes_ = os.urandom(size)
    fsspec.filesystem("memory").pipe_file("/sizes/file", bytes_)
    found = RemotePlace("memory://sizes", Cache(tmp_path, 1)).fetch("file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == bytes_
    assert found == sha256_file(tmp_path / "file")


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=25)
    files = {}
    for number in range(4):
        source = tmp_path / f"source{number}"
        source.write_bytes(bytes([number]) * 10)
        files[number] = (sha256_file(source), source)

    def get(number: int) -> Path:
        return cache.get(files[number][0], "a file", copied(files[number][1]))

    first, second = get(0), get(1)
    os.utime(first, ns=(1, 1))
    os.utime(second, ns=(2, 2))
    get(0)
    third = get(2)
    assert (first.exists(), second.exists(), third.exists()) == (True, False, True)
    assert get(1).read_bytes() == b"\x01" * 10


def test_one_file_larger_than_the_limit_is_kept_while_it_is_the_newest(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"a" * 100)
    path = Cache(tmp_path / "cache", 10).get(sha256_file(source), "a file", copied(source))
    assert path.stat().st_size == 100


def test_other_bytes_than_the_manifests_are_refused_and_not_kept(origin: Path, url: str, cache: Path) -> None:
    import fsspec

    shard = EncodedManifest.read(origin).shards[2]
    fsspec.filesystem("memory").pipe_file(f"/encoded/{shard.file}", b"something else")
    split = EncodedSet.open(url).split("train")
    with pytest.raises(LatentflowError, match=f"{shard.file} has sha256 .*, the manifest says {shard.sha256}"):
        split.samples(0, torch.tensor([2 * ROWS]))
    assert not [path for path in cached(cache) if path.name.startswith((shard.sha256, "."))]


def test_a_missing_shard_is_named_with_its_digest(origin: Path, url: str) -> None:
    import fsspec

    shard = EncodedManifest.read(origin).shards[0]
    fsspec.filesystem("memory").rm_file(f"/encoded/{shard.file}")
    with pytest.raises(
        LatentflowError, match=rf"{shard.file} \(sha256 {shard.sha256}\) is missing in memory://encoded"
    ):
        EncodedSet.open(url).split("train").samples(0, EVERY)


def test_places_that_cannot_be_opened(cache: Path) -> None:
    with pytest.raises(LatentflowError, match=r"memory://nothing holds no manifest\.json"):
        EncodedSet.open("memory://nothing")
    with pytest.raises(LatentflowError, match="nosuch://bucket/encoded cannot be opened: Protocol not known"):
        EncodedSet.open("nosuch://bucket/encoded")


def test_a_limit_that_is_no_number(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFLOW_CACHE_GB", "plenty")
    with pytest.raises(LatentflowError, match="LATENTFLOW_CACHE_GB: expected a number of gigabytes, found 'plenty'"):
        EncodedSet.open("memory://encoded")


def _fetch(folder: Path, source: Path, log: Path) -> None:
    def copy(target: Path) -> str:
        with log.open("a") as file:
            file.write("fetched\n")
        return copied(source)(target)

    assert Cache(folder, 10**9).get(sha256_file(source), "a file", copy).read_bytes() == source.read_bytes()


def test_processes_at_once_fetch_a_file_once(tmp_path: Path) -> None:
    source, log = tmp_path / "source", tmp_path / "log"
    source.write_bytes(os.urandom(1_000_000))
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_fetch, args=(tmp_path / "cache", source, log)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert log.read_text() == "fetched\n"


def test_a_cached_file_that_was_damaged_is_fetched_again(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"whole")
    digest = sha256_file(source)
    path = Cache(tmp_path / "cache", 100).get(digest, "a file", copied(source))
    path.write_bytes(b"who")
    again = Cache(tmp_path / "cache", 100).get(digest, "a file", copied(source))
    assert (again, again.read_bytes()) == (path, b"whole")


def test_what_a_killed_fetch_left_is_swept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"whole")
    digest = sha256_file(source)
    left = tmp_path / "cache" / "files" / digest[:2] / f".{digest}.left"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"who")
    Cache(tmp_path / "cache", 100).get(digest, "a file", copied(source))
    assert [path.name for path in left.parent.iterdir()] == [digest]


def test_over_http(origin: Path, cache: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http:// with aiohttp")
    handler = partial(QuietHandler, directory=str(origin))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = EncodedSet.open(f"http://127.0.0.1:{server.server_port}").split("train").samples(0, EVERY)
        server.shutdown()
    assert torch.equal(there.latents, EncodedSet.open(origin).split("train").samples(0, EVERY).latents)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Says nothing."""
