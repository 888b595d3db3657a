"""Datasets of the library `datasets`: from the hub, streamed, or from a folder that ``save_to_disk`` wrote.

Pictures and clips pass through undecoded, and no code of a dataset's repository runs.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentflow.data.columns import Columns, license_of, text_of
from latentflow.data.media_refs import BytesMedia, FileMedia, RefusedMedia, check_size
from latentflow.data.sources import Candidate, Media
from latentflow.errors import LatentflowError
from latentflow.files import digest_json, sha256_file
from latentflow.params import IngestParams

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SPLITS = "dataset_dict.json"
SAVED = ("dataset_info.json", "state.json")


@dataclass(frozen=True)
class HubMedia:
    """A file of a dataset's repository, or a member of an archive there, by the URL that the dataset gives."""

    url: str

    def read(self) -> bytes:
        import fsspec

        *outer, last = self.url.split("::")
        # A dataset could name a file of this machine.
        if not last.startswith("hf://") or not all(part.startswith(("zip://", "tar://")) for part in outer):
            raise ValueError("the dataset refers to a file outside the hub")
        with fsspec.open(self.url, "rb") as file:
            check_size(getattr(file, "size", None) or 0)
            data: bytes = file.read()
        return data


@dataclass
class DatasetSource:
    """One split of a dataset; a record's id is its ``id`` column, else its row number.

    ``linked`` makes a medium of a path, for datasets that do not carry the bytes.
    """

    name: str
    revision: str
    license: str
    credit: str
    dataset: "Dataset | IterableDataset"
    columns: Columns
    linked: Callable[[str], Media]

    def candidates(self) -> Iterator[Candidate]:
        for number, row in enumerate(self._rows()):
            yield Candidate(
                id=_id_of(row, number),
                captions=self._value(row, self.columns.caption),
                media=self._media(row, self.columns.media),
                conditions={name: self._condition(row, name) for name in self.columns.conditions},
                license=license_of(row),
            )

    def _rows(self) -> Iterator[dict[str, Any]]:
        read = 0
        try:
            for row in self.dataset:
                yield row
                read += 1
        # The library hands on whatever its file systems and formats raise.
        except Exception as error:
            raise LatentflowError(f"{self.name}: cannot be read on after row {read} ({_first_line(error)}).") from error

    def _value(self, row: Mapping[str, Any], column: str) -> Any:
        """The value; a class's number becomes its name."""
        from datasets import ClassLabel

        value, kind = row.get(column), (self.dataset.features or {}).get(column)
        if isinstance(kind, ClassLabel) and isinstance(value, int) and 0 <= value < kind.num_classes:
            return kind.int2str(value)
        return value

    def _media(self, row: Mapping[str, Any], column: str) -> Media:
        value = row.get(column)
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if isinstance(data, bytes):
            return BytesMedia(data)
        return self.linked(path) if isinstance(path, str) else RefusedMedia(f"the column {column} holds no media")

    def _condition(self, row: Mapping[str, Any], column: str) -> Media | str:
        value = self._value(row, column)
        if isinstance(value, bytes | dict):
            return self._media(row, column)
        return text_of(value) or RefusedMedia(f"the condition {column} is empty or neither text nor media")


def _id_of(row: Mapping[str, Any], number: int) -> str:
    given = row.get("id")
    return str(given) if isinstance(given, str | int) else f"{number:08d}"


def is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote the folder."""
    return (folder / SPLITS).is_file() or all((folder / name).is_file() for name in SAVED)


def open_saved(folder: Path, params: IngestParams) -> DatasetSource:
    """The dataset in a folder, memory-mapped; of several splits the one that ``hub_split`` names."""
    import_datasets()
    from datasets import load_from_disk

    part = _split_folder(folder, params.hub_split)
    try:
        dataset = load_from_disk(str(part))
    # See DatasetSource._rows.
    except Exception as error:
        raise LatentflowError(f"{part} cannot be opened as a saved dataset ({_first_line(error)}).") from error
    columns = Columns.choose(dataset.column_names, params, str(part))
    sizes = {path.name: path.stat().st_size for path in sorted(part.glob("*.arrow"))}
    return DatasetSource(
        name=folder.name,
        revision=digest_json([sizes, sha256_file(part / "state.json")])[:16],
        license=dataset.info.license or "",
        credit=dataset.info.homepage or "",
        dataset=_prepared(dataset, columns, str(part)),
        columns=columns,
        linked=lambda path: FileMedia(part.resolve(), path),
    )


def _split_folder(folder: Path, split: str) -> Path:
    if not (folder / SPLITS).is_file():
        return folder
    names = json.loads((folder / SPLITS).read_text(encoding="utf-8"))["splits"]
    if split not in names:
        raise LatentflowError(f"ingest.hub_split: {folder} has no split {split!r} (found {', '.join(names)}).")
    return folder / split


def open_hub(name: str, params: IngestParams) -> DatasetSource:
    """The dataset ``owner/name`` of the hub, streamed at the SHA that ``ingest.revision`` names now."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(name).exists():
        # The library would read the folder.
        found = "there is a folder of that name" if Path(name).exists() else "that is no name of a dataset"
        raise LatentflowError(f"ingest.source hf:{name}: expected hf:owner/name, and {found}.")
    import_datasets()
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi().dataset_info(name, revision=params.revision or None)
        dataset = load_dataset(name, params.subset or None, split=params.hub_split, revision=info.sha, streaming=True)
        present = dataset.column_names or list(next(iter(dataset.take(1)), {}))
    except OfflineModeIsEnabled:
        raise LatentflowError(
            f"hf:{name} cannot be fetched because HF_HUB_OFFLINE is set: unset it, or write the dataset with "
            f"save_to_disk where there is a network and give that folder."
        ) from None
    # See DatasetSource._rows.
    except Exception as error:
        raise LatentflowError(f"hf:{name}{_asked(params)} cannot be opened ({_first_line(error)}).") from error
    columns = Columns.choose(present, params, f"hf:{name}")
    return DatasetSource(
        name=f"hf:{name}",
        revision=str(info.sha),
        license=_license(info.card_data),
        credit=f"https://huggingface.co/datasets/{name}",
        dataset=_prepared(dataset, columns, f"hf:{name}"),
        columns=columns,
        linked=HubMedia,
    )


def import_datasets() -> None:
    """Raises LatentflowError that says what to install."""
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise LatentflowError("this source needs the package datasets: pip install 'latentflow[hub]'.") from None


def _prepared(dataset: "Dataset | IterableDataset", columns: Columns, place: str) -> "Dataset | IterableDataset":
    """The dataset with the columns that are read only, and media as bytes. Raises LatentflowError if they are none."""
    from datasets import Image, Value, Video

    features = dataset.features or {}
    if isinstance(found := features.get(columns.media), Value) and found.dtype not in ("binary", "large_binary"):
        raise LatentflowError(
            f"{place}: the column {columns.media} holds {found.dtype} and no media; choose by ingest.media_column."
        )
    for name in (columns.media, *columns.conditions):
        if isinstance(kind := features.get(name), Image | Video):
            dataset = dataset.cast_column(name, type(kind)(decode=False))
    wanted = {columns.media, columns.caption, *columns.conditions, "id", "license"}
    return dataset.select_columns([name for name in features if name in wanted]) if features else dataset


def _asked(params: IngestParams) -> str:
    asked = {"revision": params.revision, "subset": params.subset, "hub_split": params.hub_split}
    return " with " + ", ".join(f"{name} {value}" for name, value in asked.items() if value)


def _license(card: Any) -> str:
    said = getattr(card, "license", None)
    return ", ".join(said) if isinstance(said, list) else said or ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
