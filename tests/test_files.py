"""Files are whole or absent, and content digests see content only."""

import json
from pathlib import Path

import pytest

from latentflow.files import atomic_file, atomic_folder, digest_folder, write_json
from latentflow.workspace import work_folder


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_folder_leaves_the_old_one_and_no_rest(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("3")
    assert sorted(path.name for path in target.iterdir()) == ["b"]
    assert list(tmp_path.iterdir()) == [target]


def test_digest_ignores_versions_and_paths_but_no_content(tmp_path: Path) -> None:
    def model(name: str, version: str, width: int, weights: bytes = b"w") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "_diffusers_version": version,
            "_name_or_path": f"/somewhere/{name}",
            "width": width,
            "low": -float("inf"),
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "w.safetensors").write_bytes(weights)
        return folder

    first = digest_folder(model("a", "1", 8))
    assert digest_folder(model("b", "2", 8)) == first
    assert digest_folder(model("c", "1", 9)) != first
    assert digest_folder(model("d", "1", 8, b"v")) != first


def test_manifests_never_hold_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "m.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_killed_writers_leftovers_are_swept_when_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path))
    with work_folder("train", "f" * 64) as work:
        (work / "done").mkdir()
        (work / "parts" / ".done.k1ll3d").mkdir(parents=True)
        (work / "parts" / ".done.k1ll3d" / "half").write_text("")
        (work / ".shard.safetensors.k1ll3d").write_text("half")
    with work_folder("train", "f" * 64) as work:
        assert sorted(path.relative_to(work).as_posix() for path in work.rglob("*")) == ["done", "parts"]
