"""Data in a DVC repository: real repositories of git and DVC with a local remote, two revisions, and what fails."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from source_helpers import opened, params_of, png, refusal, shard, tar_bytes

from latentflow.data import dvc_repository
from latentflow.data.sources import pin
from latentflow.errors import LatentflowError

dvc_repo = pytest.importorskip("dvc.repo", reason="DVC is not installed (extra dvc)")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def fill(folder: Path, names: dict[str, int]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = [json.dumps({"file_name": name, "text": f"shade {shade}"}) for name, shade in names.items()]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    for name, shade in names.items():
        (folder / name).write_bytes(png(shade))


@dataclass(frozen=True)
class Repository:
    """A repository with ``pictures`` and ``tars`` under DVC and ``plain`` under git, in two revisions."""

    folder: Path
    remote: Path
    first: str
    second: str


def build(root: Path) -> Repository:
    folder, remote = root / "repository", root / "remote"
    folder.mkdir()
    git(folder, "init", "--initial-branch=main")
    repo = dvc_repo.Repo.init(str(folder))
    with repo.config.edit() as config:
        config["core"] = {"remote": "here", "analytics": False}
        config["remote"] = {"here": {"url": str(remote)}}

    def revision(names: dict[str, int]) -> str:
        fill(folder / "pictures", names)
        (folder / "tars").mkdir(exist_ok=True)
        (folder / "tars" / "0.tar").write_bytes(tar_bytes(shard(0, len(names))))
        fill(folder / "plain", names)
        repo.add([str(folder / "pictures"), str(folder / "tars")])
        repo.push()
        git(folder, "add", ".")
        git(folder, "commit", "-m", f"{len(names)} pictures")
        return git(folder, "rev-parse", "HEAD")

    first = revision({"a.png": 1, "b.png": 2})
    git(folder, "tag", "v1")
    second = revision({"a.png": 3, "b.png": 2, "c.png": 4})
    repo.close()
    # What is fetched must come from the remote.
    shutil.rmtree(folder / ".dvc" / "cache")
    shutil.rmtree(folder / "pictures")
    return Repository(folder, remote, first, second)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return build(tmp_path_factory.mktemp("dvc"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


ADDRESSES: dict[str, Callable[[Path], str]] = {"path": str, "url": lambda folder: folder.as_uri()}


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("path", ["pictures", "plain"])
def test_each_revision_has_its_own_data(built: Repository, store: Path, address: str, path: str) -> None:
    where = f"dvc:{ADDRESSES[address](built.folder)}"
    for revision, sha, shades in [("v1", built.first, [1, 2]), ("", built.second, [3, 2, 4])]:
        source = opened(where, path=path, revision=revision)
        assert source.revision == sha
        candidates = list(source.candidates())
        assert [each.id for each in candidates] == ["a.png", "b.png", "c.png"][: len(shades)]
        assert [each.captions for each in candidates] == [f"shade {shade}" for shade in shades]
        assert [each.media.read() for each in candidates] == [png(shade) for shade in shades]
    assert list((store / "sources").glob(f"{built.first}-*"))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", ["whole SHA", "short SHA", "branch"])
def test_a_revision_is_resolved_to_its_sha(built: Repository, store: Path, address: str, name: str) -> None:
    revision, sha = {
        "whole SHA": (built.first, built.first),
        "short SHA": (built.first[:9], built.first),
        "branch": ("main", built.second),
    }[name]
    where = f"dvc:{ADDRESSES[address](built.folder)}"
    assert opened(where, path="pictures", revision=revision).revision == sha


def test_no_clones_are_left_behind(
    built: Repository, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    opened(f"dvc:{built.folder.as_uri()}", path="pictures")
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("path", ["tars", "tars/0.tar"])
def test_tars_are_read_from_the_fetched_copy(built: Repository, store: Path, path: str) -> None:
    candidates = list(opened(f"dvc:{built.folder}", path=path, revision=built.first[:10]).candidates())
    assert [each.id for each in candidates] == ["0/0000", "0/0001"]
    assert not any(refusal(each) for each in candidates)


def test_what_was_fetched_is_not_asked_for_again(store: Path, tmp_path: Path) -> None:
    repository = build(tmp_path)
    first = opened(f"dvc:{repository.folder}", path="pictures", revision="v1")
    shutil.rmtree(repository.remote)
    again = opened(f"dvc:{repository.folder}", path="pictures", revision="v1")
    shutil.rmtree(repository.folder)
    pinned = opened(f"dvc:{repository.folder}", path="pictures", revision=repository.first)
    assert list(first.candidates()) == list(again.candidates()) == list(pinned.candidates())
    assert len(list(pinned.candidates())) == 2


def test_a_remote_without_the_data_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    repository = build(tmp_path)
    shutil.rmtree(repository.remote)
    with pytest.raises(LatentflowError, match=r"repository/pictures at revision v1 cannot be fetched \("):
        opened(f"dvc:{repository.folder}", path="pictures", revision="v1")
    assert [path.name for path in (store / "sources").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"revision": "v9"}, "at revision v9 cannot be fetched .*v9"),
        ({"path": "nothing"}, "ingest.path: nothing is not in the repository at "),
        ({"path": "../pictures"}, "is no path inside a repository"),
        ({"path": "/etc"}, "is no path inside a repository"),
        ({"path": "pictures/a.png"}, r"repository/pictures/a\.png was fetched and is no source: "),
    ],
)
def test_a_wrong_revision_or_path_is_named(built: Repository, store: Path, changes: dict[str, str], words: str) -> None:
    with pytest.raises(LatentflowError, match=words) as caught:
        opened(f"dvc:{built.folder}", **({"path": "pictures"} | changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("/nowhere/at/all", r"\(No git repository was found at /nowhere/at/all\)"),
        ("https://me:secret@127.0.0.1:1/repository", "Connection refused"),
    ],
)
def test_a_repository_that_is_not_there_is_named_without_its_password(store: Path, where: str, words: str) -> None:
    with pytest.raises(LatentflowError, match=f"cannot be fetched .*{words}") as caught:
        opened(f"dvc:{where}", path="pictures", revision="v1")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "me:" not in str(caught.value)


def test_a_folder_that_is_no_repository_is_named(store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(LatentflowError, match="empty/pictures cannot be fetched"):
        opened(f"dvc:{tmp_path / 'empty'}", path="pictures")


def test_pinning_fetches_nothing(built: Repository, store: Path) -> None:
    where = f"dvc:{built.folder}"
    assert pin(params_of(where, path="pictures", revision="main")) == built.second
    assert pin(params_of(where, path="tars", revision=built.first[:9])) == built.first
    assert not (store / "sources").exists()
    with pytest.raises(LatentflowError, match=r"ingest\.path: nothing is not in the repository at "):
        pin(params_of(where, path="nothing"))


def test_a_token_from_the_environment_opens_a_repository_and_is_not_told(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TOKEN", "to/ken")
    assert dvc_repository._with_credentials("https://host/a/b") == "https://git:to%2Fken@host/a/b"
    monkeypatch.setenv("GIT_USERNAME", "robot")
    assert dvc_repository._with_credentials("https://host/a/b") == "https://robot:to%2Fken@host/a/b"
    for other in ("https://me:own@host/a", "http://host/a", "git@host:a/b.git", "/some/folder"):
        assert dvc_repository._with_credentials(other) == other
    with pytest.raises(LatentflowError, match="Connection refused") as caught:
        pin(params_of("dvc:https://127.0.0.1:1/repository", path="pictures"))
    assert "ken" not in str(caught.value)
