"""A folder of pictures and clips with a metadata file: columns for the path, the caption and conditions."""

from collections.abc import Iterator
from pathlib import Path

from latentflow.data.columns import Columns, condition_of, license_of
from latentflow.data.media_refs import FileMedia
from latentflow.data.rows import FILES, Row, numbered_rows
from latentflow.data.sources import Candidate
from latentflow.errors import LatentflowError
from latentflow.files import sha256_file
from latentflow.params import IngestParams


class FolderSource:
    """Media below ``root``; a record's id is its path there. Columns that are not asked for are left alone."""

    license = ""
    credit = ""

    def __init__(self, root: Path, params: IngestParams) -> None:
        self.name = root.name
        self.root = root.resolve()
        found = [root / name for name in FILES if (root / name).is_file()]
        if len(found) != 1:
            raise LatentflowError(
                f"{root}: expected one of {', '.join(FILES)}, found "
                f"{' and '.join(path.name for path in found) or 'none'}; each row needs a path and a caption."
            )
        self.metadata = found[0]
        self.revision = sha256_file(self.metadata)[:16]
        self._columns = self._checked_columns(params)

    def candidates(self) -> Iterator[Candidate]:
        columns = self._columns
        wanted = [columns.media, columns.caption, *columns.conditions, "license"]
        for _, row in numbered_rows(self.metadata, wanted):
            yield self._candidate(row)

    def _candidate(self, row: Row) -> Candidate:
        columns = self._columns
        path = row[columns.media]
        return Candidate(
            id=str(path),
            captions=row[columns.caption],
            media=FileMedia(self.root, path),
            conditions={name: condition_of(name, row[name], self.root) for name in columns.conditions},
            license=license_of(row),
        )

    def _checked_columns(self, params: IngestParams) -> Columns:
        """The columns, after a look at every row: a broken one shows before hours of reading pictures."""
        columns = None
        for number, row in numbered_rows(self.metadata):
            place = f"{self.metadata}, row {number}"
            columns = columns or Columns.choose(row, params, place)
            columns.check(row, place)
            if self.metadata.suffix == ".parquet":  # its schema holds for all rows
                break
        if columns is None:
            raise LatentflowError(f"{self.metadata} holds no rows; each needs a path and a caption.")
        return columns
