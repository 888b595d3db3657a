"""A folder of pictures with metadata.jsonl or metadata.csv: columns file_name and text."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentflow.data.media_refs import FileMedia
from latentflow.data.sources import Candidate
from latentflow.errors import LatentflowError
from latentflow.files import sha256_file

FILES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("file_name", "text")


class FolderSource:
    """Pictures below ``root``; a record's id is its file name. Extra columns are left alone."""

    license = ""
    credit = ""

    def __init__(self, root: Path) -> None:
        self.name = root.name
        self.root = root
        found = [root / name for name in FILES if (root / name).is_file()]
        if len(found) != 1:
            raise LatentflowError(
                f"{root}: expected one of {' or '.join(FILES)}, found "
                f"{'both' if found else 'neither'}; each row needs file_name and text."
            )
        self.metadata = found[0]
        self.revision = sha256_file(self.metadata)[:16]

    def candidates(self) -> Iterator[Candidate]:
        for number, row in self._readable_rows():
            if missing := [column for column in COLUMNS if column not in row]:
                found = ", ".join(map(str, row))
                raise LatentflowError(
                    f"{self.metadata}, row {number}: no column {' or '.join(missing)} (found {found}); "
                    f"the columns are {' and '.join(COLUMNS)}."
                )
            name = row["file_name"]
            yield Candidate(id=str(name), captions=row["text"], media=FileMedia(self.root, name))

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.metadata.open(encoding="utf-8-sig", newline="") as file:
            if self.metadata.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), start=2)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, self._parse(number, line)

    def _readable_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            yield from self._rows()
        except UnicodeDecodeError as error:
            raise LatentflowError(f"{self.metadata} is not UTF-8 (byte {error.start}); save it as UTF-8.") from None
        except csv.Error as error:
            raise LatentflowError(f"{self.metadata} cannot be read as CSV: {error}.") from None

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise LatentflowError(f"{self.metadata}, line {number}: not JSON ({error.msg}).") from None
        if not isinstance(row, dict):
            raise LatentflowError(f"{self.metadata}, line {number}: expected an object, found {line.strip()[:40]}.")
        return row
