"""Checkpoints: whole or absent in a folder and behind URLs, kept by rule, written while training goes on."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest
import torch
from object_store import s3_bucket
from safetensors.torch import load_file, save_file

from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.training.vault import Keep, Vault, open_checkpoint

ALL = Keep(last=100, every=0)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("runs") as url:
        yield url


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of this test's own, and beside it one whose name begins alike."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    if request.param == "folder":
        return str(tmp_path / "checkpoints")
    root = "memory:/" if request.param == "memory" else request.getfixturevalue("bucket")
    url = f"{root}/{tmp_path.name}/checkpoints"
    fsspec.url_to_fs(url)[0].pipe_file(f"{url}2/step-000000099/files.json", b"{}")
    return url


def weights(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file({"weight": torch.full((300,), float(step))}, folder / "model.safetensors")
        (folder / "state").mkdir()
        (folder / "state" / "progress.json").write_text(json.dumps({"step": step}))

    return write


def saved(place: str, *steps: int, keep: Keep = ALL) -> Vault:
    vault = Vault(place, keep)
    for step in steps:
        vault.save(step, weights(step), {})
    vault.wait()
    return vault


def names(place: str) -> set[str]:
    """Every file of a place, hidden ones too."""
    if (folder := local_folder(place)) is None:
        return set(RemoteFolder(place).names())
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def kept(place: str) -> list[int]:
    return sorted({int(name.split("/")[0].removeprefix("step-")) for name in names(place)})


def spoil(place: str, name: str, data: bytes = b"spoilt") -> None:
    files, root = fsspec.url_to_fs(place, auto_mkdir=True) if local_folder(place) else fsspec.url_to_fs(place)
    files.pipe_file(f"{root}/{name}", data)


def drop(place: str, name: str) -> None:
    files, root = fsspec.url_to_fs(place)
    files.rm_file(f"{root}/{name}")


def test_what_was_saved_is_there_for_another_process(place: str, tmp_path: Path) -> None:
    assert Vault(place, ALL).newest() is None
    assert Vault(place, ALL).describe_newest() == "no checkpoint yet"
    saved(place, 8, 120)
    vault = Vault(place, ALL)
    checkpoint = vault.newest()
    assert checkpoint
    assert checkpoint.step == 120
    assert torch.equal(load_file(checkpoint.folder / "model.safetensors")["weight"], torch.full((300,), 120.0))
    assert json.loads((checkpoint.folder / "state" / "progress.json").read_text()) == {"step": 120}
    assert vault.describe_newest() == f"checkpoint of step 120 in {place}"
    assert {name for name in names(place) if name.startswith("step-000000120")} == {
        "step-000000120/model.safetensors",
        "step-000000120/state/progress.json",
        "step-000000120/files.json",
    }


def test_a_fetched_checkpoint_goes_when_nobody_uses_it(place: str, tmp_path: Path) -> None:
    checkpoint = saved(place, 1).newest()
    assert checkpoint
    fetched = list((tmp_path / "tmp").iterdir())
    assert [checkpoint.folder] == (fetched or [Path(place) / "step-000000001"])
    del checkpoint
    assert not list((tmp_path / "tmp").iterdir())


def test_a_step_that_is_saved_again_is_replaced(place: str) -> None:
    saved(place, 5)

    def write(folder: Path) -> None:
        (folder / "other").write_text("new")

    Vault(place, ALL).save(5, write, {}, wait=True)
    assert names(place) == {"step-000000005/other", "step-000000005/files.json"}


@pytest.mark.parametrize(
    ("keep", "losses", "wanted"),
    [
        (Keep(1, 0), {}, [60]),
        (Keep(2, 0), {}, [50, 60]),
        (Keep(1, 20), {}, [20, 40, 60]),
        (Keep(1, 0), {10: 0.9, 20: 0.2, 30: 0.5, 60: 0.4}, [20, 60]),
        (Keep(1, 0), {10: 0.9, 20: 0.2, 30: 0.2, 60: float("nan")}, [30, 60]),
        (Keep(2, 30), {20: 0.1}, [20, 30, 50, 60]),
    ],
)
def test_what_stays(tmp_path: Path, keep: Keep, losses: dict[int, float], wanted: list[int]) -> None:
    vault = Vault(tmp_path, keep)
    for step in range(10, 70, 10):
        vault.save(step, weights(step), {known: loss for known, loss in losses.items() if known <= step})
    vault.wait()
    assert kept(str(tmp_path)) == wanted


def test_the_best_so_far_stays_until_there_is_a_better_one(place: str) -> None:
    vault, losses = Vault(place, Keep(1, 0)), {1: 0.5, 2: 0.6, 3: 0.7, 4: 0.1}
    seen = []
    for step in losses:
        vault.save(step, weights(step), {known: loss for known, loss in losses.items() if known <= step}, wait=True)
        seen.append(kept(place))
    assert seen == [[1], [1, 2], [1, 3], [4]]


def test_the_old_one_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    vault = saved(str(tmp_path), 1, keep=Keep(1, 0))
    seen = []

    def write(folder: Path) -> None:
        weights(2)(folder)
        seen.append(Vault(tmp_path, ALL).describe_newest())

    vault.save(2, write, {}, wait=True)
    assert seen == [f"checkpoint of step 1 in {tmp_path}"]
    assert kept(str(tmp_path)) == [2]


@pytest.mark.parametrize("file", ["model.safetensors", "state/progress.json", "files.json"])
def test_a_damaged_newest_is_passed_over_by_name_and_makes_room(
    place: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(place, 1, 2, 3)
    spoil(place, f"step-000000003/{file}")
    drop(place, "step-000000002/model.safetensors")
    vault = Vault(place, Keep(2, 3))
    checkpoint = vault.newest()
    assert checkpoint
    assert checkpoint.step == 1
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        f"{place}/step-000000003 cannot be used: its file {file} is damaged"
        + ("" if file == "files.json" else ": it holds other bytes than were written")
        + ". It is passed over.",
        f"{place}/step-000000002 cannot be used: its file model.safetensors is missing. It is passed over.",
    ]
    assert vault.describe_newest() == f"checkpoint of step 1 in {place}"
    vault.save(2, weights(2), {}, wait=True)
    assert kept(place) == [1, 2]
    newest = Vault(place, ALL).newest()
    assert newest
    assert newest.step == 2


def test_all_damaged(place: str, caplog: pytest.LogCaptureFixture) -> None:
    saved(place, 1, 2)
    for step in (1, 2):
        spoil(place, f"step-00000000{step}/model.safetensors")
    vault = Vault(place, ALL)
    assert vault.newest() is None
    assert f"none of the 2 checkpoints in {place} is whole" in caplog.text
    assert vault.describe_newest() == "no checkpoint yet"


def test_files_json_names_nothing_outside(tmp_path: Path) -> None:
    saved(str(tmp_path), 1)
    for name in ("../1", "/etc/hostname", "a/../../1"):
        spoil(str(tmp_path), "step-000000001/files.json", json.dumps({name: "0"}).encode())
        with pytest.raises(LatentflowError, match=r"files\.json names a file outside its folder"):
            open_checkpoint(tmp_path / "step-000000001")


def test_half_an_upload_is_no_checkpoint_and_goes_with_the_next(place: str) -> None:
    saved(place, 1)
    spoil(place, "step-000000002/model.safetensors", b"the upload broke off after this file")
    vault = Vault(place, ALL)
    newest = vault.newest()
    assert newest
    assert newest.step == 1
    vault.save(3, weights(3), {}, wait=True)
    assert kept(place) == [1, 3]


def opened(place: str) -> list[int]:
    """The steps that say they are whole; each of them is."""
    folders = sorted(name.split("/")[0] for name in names(place) if name.endswith("/files.json"))
    return [open_checkpoint(f"{place}/{folder}").step for folder in folders]


@pytest.mark.parametrize(
    ("deed", "done", "left"),
    [
        ("put", 0, [1, 2]),
        ("put", 1, [1, 2]),
        ("put", 2, [1, 2]),
        ("remove", 0, [1, 2, 3]),
        ("remove", 1, [2, 3]),
        ("remove", 2, [2, 3]),
    ],
)
def test_what_breaks_off_after_some_files_leaves_no_half_checkpoint(
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    deed: str,
    done: int,
    left: list[int],
) -> None:
    place = f"{bucket}/breaks-off-{deed}-{done}"
    vault, work, calls = saved(place, 1, 2, keep=Keep(2, 0)), getattr(RemoteFolder, deed), []

    def breaks_off(*arguments: object) -> None:
        if len(calls) == done:
            raise ConnectionError("the line is dead")
        calls.append(arguments)
        work(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, deed, breaks_off)
        vault.save(3, weights(3), {})
        told = rf"dead\. .*Last good: checkpoint of step {left[-1]} in {place}"
        with pytest.raises(LatentflowError, match=told) if deed == "put" else nullcontext():
            vault.wait()
    # An old checkpoint that stays costs room, and no training.
    assert ("could not be removed: the line is dead" in caplog.text) == (deed == "remove")
    assert opened(place) == left
    vault.save(4, weights(4), {}, wait=True)
    assert kept(place) == [left[-1], 4]


KILLED = """
import sys, time
from latentflow.training.vault import Keep, Vault

def half(folder):
    (folder / "model.safetensors").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(600)

vault = Vault(sys.argv[1], Keep(9, 0))
vault.save(1, lambda folder: (folder / "model.safetensors").write_bytes(b"whole"), {})
vault.save(2, half, {}, wait=True)
"""


def test_killed_in_the_middle_of_a_write(place: str, tmp_path: Path) -> None:
    if place.startswith("memory:"):
        pytest.skip("the memory goes with the process")
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, place], stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[2]
    )
    assert process.stdout
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()

    def halves() -> list[Path]:
        return [path for path in tmp_path.rglob("*.safetensors") if path.read_bytes() == b"half"]

    assert len(halves()) == 1
    vault = Vault(place, ALL)
    newest = vault.newest()
    assert newest
    assert newest.step == 1
    vault.prepare()
    assert not halves()
    assert names(place) == {"step-000000001/model.safetensors", "step-000000001/files.json"}
    vault.save(2, weights(2), {}, wait=True)
    assert kept(place) == [1, 2]


def test_a_living_process_keeps_what_it_writes(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    checkpoint = saved(f"{bucket}/living", 1).newest()
    assert checkpoint
    Vault(f"{bucket}/living", ALL).prepare()
    assert (checkpoint.folder / "model.safetensors").is_file()


def test_saving_is_beside_the_training(place: str) -> None:
    vault, let_go, began = Vault(place, ALL), threading.Event(), threading.Event()

    def write(folder: Path) -> None:
        began.set()
        assert let_go.wait(60)
        weights(1)(folder)

    vault.save(1, write, {})
    assert began.wait(60)
    assert vault.describe_newest() == "no checkpoint yet"
    assert not {name for name in names(place) if name.endswith("/files.json")}
    let_go.set()
    vault.wait()
    assert vault.describe_newest() == f"checkpoint of step 1 in {place}"


def test_one_at_a_time(tmp_path: Path) -> None:
    vault, order = Vault(tmp_path, ALL), []
    held = threading.Event()

    def first(folder: Path) -> None:
        assert held.wait(60)
        order.append("first")

    def second(folder: Path) -> None:
        order.append("second")

    vault.save(1, first, {})
    threading.Timer(0.05, held.set).start()
    vault.save(2, second, {}, wait=True)
    assert order == ["first", "second"]


def full(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"as far as it went")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_at_the_next_call_with_the_last_good_checkpoint(place: str, tmp_path: Path) -> None:
    vault = saved(place, 1)
    vault.save(2, full, {})
    with pytest.raises(LatentflowError) as told:
        vault.save(3, weights(3), {})
    where = "" if local_folder(place) else f"the temporary folder {tmp_path / 'tmp'} (TMPDIR): "
    assert str(told.value) == (
        f"The checkpoint of step 2 could not be kept in {place}: {where}No space left on device. Mend that or choose "
        f"another place, then start again. Last good: checkpoint of step 1 in {place}."
    )
    assert kept(place) == [1]
    assert not list((tmp_path / "tmp").iterdir())
    vault.wait()
    vault.save(3, weights(3), {}, wait=True)
    assert kept(place) == [1, 3]


def test_safetensors_own_error_is_told_too(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        save_file({"weight": torch.ones(2)}, folder / "no such folder" / "model.safetensors")

    vault = Vault(tmp_path, ALL)
    vault.save(1, write, {})
    with pytest.raises(LatentflowError, match=r"step 1 could not be kept in .*No such file.*no checkpoint yet\."):
        vault.wait()


def test_a_fault_of_the_writer_is_raised_as_it_is(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise KeyError("a fault in the training")

    vault = Vault(tmp_path, ALL)
    with pytest.raises(KeyError, match="a fault in the training"):
        vault.save(1, write, {}, wait=True)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "checkpoints"
    with pytest.raises(LatentflowError, match=f"No checkpoint can be kept in {place}: Not a directory"):
        Vault(place, ALL).prepare()
    vault = Vault(place, ALL)
    vault.save(1, weights(1), {})
    with pytest.raises(LatentflowError, match=rf"step 1 could not be kept in {place}: Not a directory.*no checkpoint"):
        vault.wait()


def test_urls_that_cannot_be_written(bucket: str) -> None:
    with pytest.raises(LatentflowError, match=r"No checkpoint can be kept in s3://nosuch/run: .*bucket does not exist"):
        Vault("s3://nosuch/run", ALL).prepare()
    with pytest.raises(LatentflowError, match="nosuch://run cannot be opened: Protocol not known") as told:
        Vault("nosuch://anna:secret@run", ALL).newest()
    assert "secret" not in str(told.value)


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    saved(f"file://{tmp_path}/checkpoints", 4)
    assert open_checkpoint(f"file://{tmp_path}/checkpoints/step-000000004").folder.is_relative_to(tmp_path)


def test_a_named_checkpoint(place: str) -> None:
    saved(place, 3, 7)
    checkpoint = open_checkpoint(f"{place}/step-000000003/")
    assert checkpoint.step == 3
    assert load_file(checkpoint.folder / "model.safetensors")["weight"][0] == 3
    spoil(place, "step-000000003/state/progress.json")
    with pytest.raises(
        LatentflowError, match=f"{place}/step-000000003 cannot be used: its file state/progress.json is damaged"
    ):
        open_checkpoint(f"{place}/step-000000003")
    drop(place, "step-000000003/state/progress.json")
    with pytest.raises(LatentflowError, match=r"its file state/progress\.json is missing"):
        open_checkpoint(f"{place}/step-000000003")


def test_what_is_no_checkpoint(place: str) -> None:
    saved(place, 3, 7)
    with pytest.raises(LatentflowError, match=f"{place} is not a checkpoint: it holds 2; .* such as step-000000007"):
        open_checkpoint(place)
    with pytest.raises(LatentflowError, match=f"{place}/step-000000004 is not a checkpoint: it should be a folder"):
        open_checkpoint(f"{place}/step-000000004")
    drop(place, "step-000000003/files.json")
    with pytest.raises(LatentflowError, match="step-000000003 is not a checkpoint: it should be a folder"):
        open_checkpoint(f"{place}/step-000000003")
