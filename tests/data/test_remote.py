"""Trying a place by writing there: a folder and a real bucket, and the sentences when that fails."""

from pathlib import Path

import pytest
from object_store import s3_bucket

from latentflow.data.remote import RemoteFolder, try_writing
from latentflow.errors import LatentflowError


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    try_writing(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(LatentflowError, match=r"file/folder cannot be written: .*Not a directory"):
        try_writing(tmp_path / "file" / "folder")


def test_a_bucket_is_left_empty() -> None:
    with s3_bucket("tried") as url:
        try_writing(f"{url}/folder")
        assert RemoteFolder(url).names() == []
        with pytest.raises(LatentflowError, match="s3://nobody-s/folder cannot be written"):
            try_writing("s3://nobody-s/folder")


def test_a_scheme_that_nobody_knows_is_told() -> None:
    with pytest.raises(LatentflowError, match="nothing://place cannot be opened"):
        try_writing("nothing://place")
