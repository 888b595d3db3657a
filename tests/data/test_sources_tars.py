"""WebDataset tars: local, compressed, behind URLs; whole, hostile and broken ones."""

import io
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from object_store import s3_bucket
from source_helpers import opened, png, refusal, regular, shard, special, tar_bytes

from latentflow.data.locations import spell_out, without_secrets
from latentflow.data.media_refs import BytesMedia, SliceMedia
from latentflow.data.sources import Candidate
from latentflow.errors import LatentflowError

Members = list[tuple[tarfile.TarInfo, bytes]]


def read(tmp_path: Path, members: Members, **changes: Any) -> list[Candidate]:
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    return list(opened(tmp_path / "x.tar", **changes).candidates())


@pytest.mark.parametrize("pattern", ["t-{00..02}.tar", "t-*.tar", "t-{00,01,02}.tar", "{t-0[01],t-02}.tar", ""])
def test_shards_are_found_and_read_in_order(tmp_path: Path, pattern: str) -> None:
    for number in range(3):
        (tmp_path / f"t-{number:02d}.tar").write_bytes(tar_bytes(shard(10 * number, 4)))
    candidates = list(opened(f"{tmp_path}/{pattern}").candidates())
    numbers = [10 * n + i for n in range(3) for i in range(4)]
    assert [each.id for each in candidates] == [f"t-{n // 10:02d}/{n:04d}" for n in numbers]
    assert [each.captions for each in candidates] == [f"no {n}" for n in numbers]
    assert all(isinstance(each.media, SliceMedia) for each in candidates)
    assert [pickle.loads(pickle.dumps(each)).media.read() for each in candidates] == [png(n) for n in numbers]


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("name", ["x.tar.{}", "misnamed.tar"])
def test_compressed_tars_are_streamed(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name.format(kind)
    path.write_bytes(tar_bytes(shard(0, 3), f"w:{kind}"))
    candidates = list(opened(path).candidates())
    assert [each.media for each in candidates] == [BytesMedia(png(n)) for n in range(3)]


def test_equal_keys_of_two_shards_are_two_records(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(tar_bytes(shard(0, 2)))
    ids = [each.id for each in opened(f"{tmp_path}/{{a,b}}/0.tar").candidates()]
    assert ids == ["a/0/0000", "a/0/0001", "b/0/0000", "b/0/0001"]


def test_captions_come_from_txt_caption_or_json(tmp_path: Path) -> None:
    members = []
    for key, ending, text in [
        ("a", "txt", "by txt"),
        ("b", "caption", "\ufeffby caption"),
        ("c", "json", json.dumps({"prompt": "by json", "alt": "another", "license": "CC0-1.0"})),
        ("d", "json", json.dumps({"caption": ["one", "two"]})),
        ("e", "json", "{}"),
    ]:
        members += [regular(f"{key}.PNG", png()), regular(f"{key}.{ending}", text.encode())]
    candidates = read(tmp_path, members)
    assert [each.captions for each in candidates] == ["by txt", "by caption", "by json", ["one", "two"], None]
    assert [each.license for each in candidates] == ["", "", "CC0-1.0", "", ""]
    assert [each.captions for each in read(tmp_path, members, caption_column="alt")][2] == "another"


def test_media_and_conditions_are_chosen_by_their_endings(tmp_path: Path) -> None:
    members = [regular(f"deep/er.2/001.{name}.png", png(n)) for n, name in enumerate(["target", "control"], 1)]
    members.append(regular("deep/er.2/001.style.txt", b"oil"))
    members.append(regular("deep/er.2/001.json", json.dumps({"score": 3, "text": "x"}).encode()))
    (found,) = read(tmp_path, members, media_column="target", condition_columns=["control", "style", "score", "more"])
    assert (found.id, found.captions, found.media.read()) == ("x/deep/er.2/001", "x", png(1))
    control, more = found.conditions.pop("control"), found.conditions.pop("more")
    assert isinstance(control, SliceMedia)
    assert control.read() == png(2)
    assert found.conditions == {"style": "oil", "score": "3"}
    assert not isinstance(more, str)
    with pytest.raises(ValueError, match="no condition more"):
        more.read()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([special("b.png", tarfile.SYMTYPE, "/etc/passwd")], "b.png is a link"),
        ([special("b.png", tarfile.LNKTYPE, "0000.png")], "b.png is a link"),
        ([special("b.png", tarfile.CHRTYPE)], "b.png is no regular file"),
        ([special("b.png", tarfile.FIFOTYPE)], "b.png is no regular file"),
        ([regular("/etc/b.png", png())], "/etc/b.png leaves the tar"),
        ([regular("../b.png", png())], "../b.png leaves the tar"),
        ([regular("x/../../b.png", png())], "b.png leaves the tar"),
        ([regular("b.png", png()), regular("b.png", png(1))], "b.png is there twice"),
        ([regular("b.png", png()), regular("b.jpg", png())], "has 2 pictures or clips"),
        ([regular("b.txt", b"text")], "has 0 pictures or clips"),
        ([regular("b.png", png()), regular("b.txt", b"\xff")], "b.txt is not UTF-8"),
        ([regular("b.png", png()), regular("b.json", b"{")], "b.json is not JSON"),
        ([regular("b.png", png()), regular("b.json", b"[]")], "b.json is no JSON object"),
        ([regular("b.png", png()), regular("b.json", b"[" * 100_000)], "b.json is not JSON"),
        ([regular("b.png", png()), regular("b.txt", b"x" * (2**20 + 1))], "b.txt has 1,048,577 bytes"),
    ],
)
def test_a_bad_sample_is_refused_and_the_others_are_kept(tmp_path: Path, bad: Members, reason: str) -> None:
    candidates = read(tmp_path, [*shard(0, 1), *bad, *shard(2, 1)])
    assert [refusal(each) for each in candidates[::2]] == ["", ""]
    assert reason in refusal(candidates[1])
    assert len(candidates) == 3


def test_a_sample_without_a_caption_has_none(tmp_path: Path) -> None:
    assert [each.captions for each in read(tmp_path, [*shard(0, 1), regular("b.png", png())])] == ["no 0", None]


def test_members_that_belong_to_no_sample_are_passed_over(tmp_path: Path) -> None:
    others = [special("./", tarfile.DIRTYPE), regular("._0000.png", b"x"), regular("README", b"x")]
    candidates = read(tmp_path, [*others, *shard(0, 2)])
    assert [each.id for each in candidates] == ["x/0000", "x/0001"]


def test_a_huge_member_is_refused_unread(tmp_path: Path) -> None:
    member = tarfile.TarInfo("huge.mp4")
    member.size = 2**30 + 512
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(member.tobuf())
        file.truncate(512 + member.size)
        file.seek(0, io.SEEK_END)
        file.write(tar_bytes(shard(0, 1)))
    candidates = list(opened(tmp_path / "x.tar").candidates())
    assert "above 1,073,741,824" in refusal(candidates[0])
    assert refusal(candidates[1]) == ""


# Each sample has 2,048 bytes: a header and a block for the picture, the same for the caption.
@pytest.mark.parametrize(
    ("cut", "whole"),
    [(0, 0), (100, 0), (2048 * 2 + 700, 2), (2048 * 2 + 1024, 2), (2048 * 3 - 100, 2), (2048 * 3 + 10, 2)],
)
@pytest.mark.parametrize("where", ["local", "remote"])
def test_of_a_truncated_tar_the_samples_before_are_kept(
    tmp_path: Path, cut: int, whole: int, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = tar_bytes(shard(0, 4))[:cut]
    place = f"memory://cut/{cut}.tar" if where == "remote" else f"{tmp_path}/{cut}.tar"
    fsspec.filesystem("memory" if where == "remote" else "file").pipe_file(place, data)
    candidates = list(opened(place).candidates())
    assert [refusal(each) for each in candidates[:-1]] == [""] * whole
    assert f"the tar {cut}.tar breaks off" in refusal(candidates[-1])
    assert f"the tar {cut}.tar breaks off" in caplog.text


def test_a_damaged_header_and_a_foreign_file_are_noticed(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(shard(0, 4)))
    data[2048 * 2 : 2048 * 2 + 300] = b"\xff" * 300
    (tmp_path / "0.tar").write_bytes(data)
    (tmp_path / "1.tar").write_bytes(b"<html>not found</html>" * 100)
    (tmp_path / "2.tar").write_bytes(tar_bytes(shard(0, 1)))
    candidates = list(opened(tmp_path).candidates())
    assert [bool(refusal(each)) for each in candidates] == [False, True, True, False]


def test_a_truncated_compressed_tar_is_noticed(tmp_path: Path) -> None:
    data = tar_bytes(shard(0, 50), "w:gz")
    (tmp_path / "0.tar.gz").write_bytes(data[: len(data) // 2])
    candidates = list(opened(tmp_path).candidates())
    assert 1 < len(candidates) < 50
    assert "the tar 0.tar.gz breaks off" in refusal(candidates[-1])
    assert not any(refusal(each) for each in candidates[:-1])


def test_a_remote_tar_is_streamed(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    for number in range(2):
        files.pipe_file(f"/bucket/train/t-{number}.tar", tar_bytes(shard(10 * number, 3)))
    for pattern in ("memory://bucket/train/t-{0..1}.tar", "memory://bucket/train/t-*.tar"):
        candidates = list(opened(pattern).candidates())
        assert [each.id for each in candidates] == [f"t-{n}/{10 * n + i:04d}" for n in range(2) for i in range(3)]
        assert [each.media for each in candidates] == [BytesMedia(png(10 * n + i)) for n in range(2) for i in range(3)]


def test_a_file_url_is_local(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(shard(0, 2)))
    assert all(isinstance(each.media, SliceMedia) for each in opened(f"file://{tmp_path}/x.tar").candidates())


def test_the_revision_follows_names_and_sizes_alone(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.tar").write_bytes(tar_bytes(shard(0, 2)))
    first = opened(f"{tmp_path}/a/*.tar").revision
    assert opened(f"{tmp_path}/b/{{0..0}}.tar").revision == opened(tmp_path / "a").revision == first
    (tmp_path / "b" / "0.tar").write_bytes(tar_bytes(shard(0, 20)))
    assert opened(tmp_path / "b").revision != first


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("none-*.tar", r"1 of the tars are not there: .*none-\*\.tar"),
        ("x-{0..4}.tar", r"3 of the tars are not there: .*x-2\.tar"),
        ("x-{4..0}.tar", "counts down"),
        ("x-{0..999}-{0..999}.tar", "spells 1,000,000 names"),
        ("nosuch://user:secret@host/x.tar", r"nosuch://host/x\.tar cannot be listed \(ValueError: Protocol not known"),
    ],
)
def test_tars_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        (tmp_path / f"x-{number}.tar").write_bytes(tar_bytes(shard(0, 1)))
    with pytest.raises(LatentflowError, match=words) as caught:
        opened(pattern)
    assert "secret" not in str(caught.value)


def test_braces_are_spelled_out() -> None:
    assert spell_out("a{08..11}b{x,y}") == [f"a{n:02d}b{c}" for n in range(8, 12) for c in "xy"]
    assert spell_out("{8..10}") == ["8", "9", "10"]
    assert spell_out("plain") == ["plain"]


def test_secrets_are_not_shown() -> None:
    shown = without_secrets("x https://me:p@ss@host/a/b?X-Amz-Signature=abc&y=z (s3://host/a-?.tar) git@host:a/b")
    assert shown == "x https://host/a/b (s3://host/a-?.tar) git@host:a/b"


def test_a_web_address_is_streamed_and_its_signature_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(shard(0, 3)))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        source = opened(f"{address}/x.tar?signature=secret")
        candidates = list(source.candidates())
        with pytest.raises(LatentflowError, match=r"not there: http://127.0.0.1:\d+/y\.tar\.") as caught:
            opened(f"{address}/y.tar?signature=secret")
        server.shutdown()
    assert [(each.id, each.media) for each in candidates] == [(f"x/{n:04d}", BytesMedia(png(n))) for n in range(3)]
    assert source.name == f"{address}/x.tar"
    assert "secret" not in str(caught.value)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket of a real S3 server on this machine; its address and keys lie in the environment."""
    with s3_bucket("bucket") as url:
        for number in range(3):
            fsspec.filesystem("s3").pipe_file(f"{url}/train/t-{number:03d}.tar", tar_bytes(shard(10 * number, 5)))
        yield f"{url}/train"


@pytest.mark.parametrize("pattern", ["t-{000..002}.tar", "t-*.tar"])
def test_shards_in_s3_are_streamed(s3: str, pattern: str) -> None:
    candidates = list(opened(f"{s3}/{pattern}").candidates())
    numbers = [10 * n + i for n in range(3) for i in range(5)]
    assert [each.id for each in candidates] == [f"t-{n // 10:03d}/{n:04d}" for n in numbers]
    assert [each.media for each in candidates] == [BytesMedia(png(n)) for n in numbers]


def test_the_revision_in_s3_follows_the_content(s3: str) -> None:
    first = opened(f"{s3}/t-*.tar").revision
    assert opened(f"{s3}/t-{{000..002}}.tar").revision == first
    files = fsspec.filesystem("s3")
    before = files.cat_file("bucket/train/t-000.tar")
    files.pipe_file("bucket/train/t-000.tar", before[::-1])
    assert opened(f"{s3}/t-*.tar").revision != first
    files.pipe_file("bucket/train/t-000.tar", before)


def test_a_shard_that_is_not_in_s3_is_named(s3: str) -> None:
    with pytest.raises(LatentflowError, match=r"1 of the tars are not there: s3://bucket/train/t-003\.tar"):
        opened(f"{s3}/t-{{001..003}}.tar")
    with pytest.raises(LatentflowError, match="not there: s3://nowhere"):
        opened("s3://nowhere/t.tar")
