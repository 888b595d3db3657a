"""What turns the rows of a shard of images into tensors: control pictures as pixels, reference images as embeddings."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from latentflow.data.batching import full_batches
from latentflow.data.media import decode_picture, fit
from latentflow.data.packs import Packs
from latentflow.data.plan import ImagesJob
from latentflow.data.records import Condition, Record, RecordSet
from latentflow.devices import best_device
from latentflow.encoders import images
from latentflow.encoders.edges import VERSION as EDGES_VERSION
from latentflow.encoders.edges import edges
from latentflow.encoders.images import ImageEncoder
from latentflow.encoders.rows import as_rows, namespace, note, require_finite, workers
from latentflow.errors import LatentflowError
from latentflow.files import atomic_folder, copy_tree_or_file, digest_folder, digest_model
from latentflow.manifest import ImageFacts
from latentflow.params import EncodeParams, column_of

# Raised by hand when equal inputs would give other rows.
IMAGES_VERSION = 1


class ImageRows:
    """Images of records, as ``encode.control_image`` and ``encode.reference_image`` ask for them."""

    def __init__(self, params: EncodeParams, records: RecordSet, store: Path, token: str) -> None:
        """Raises LatentflowError where a column that is asked for holds no pictures."""
        self.params = params
        self.records = records
        self.columns = [name for name in map(column_of, (params.control_image, params.reference_image)) if name]
        for column in self.columns:
            _require_pictures(records, column)
        self.made_from = {
            "control": params.control_image,
            "edges": EDGES_VERSION if params.control_image == "edges" else 0,
            "reference": params.reference_image,
            "image_encoder": digest_model(params.image_encoder) if params.image_encoder else "",
            "dtype": params.dtype,
            "version": IMAGES_VERSION,
        } | ({"force_rerun": token} if token else {})
        self.folder = namespace(store / "images", self.made_from)
        self._packs: dict[str, Packs] = {}

    def packs(self, job: ImagesJob) -> Packs:
        return self._packs.setdefault(job.size, Packs(self.folder / job.size, "images"))

    def keys(self, job: ImagesJob) -> list[bytes]:
        """A sha256 of each row's media and of its pictures in the columns."""
        return [self._key(record) for record in self.records.at(job.latents.rows)]

    def _key(self, record: Record) -> bytes:
        parts = [record.sha256, *(_condition(record, column).sha256 for column in self.columns)]
        return hashlib.sha256(b"".join(parts)).digest()

    @cached_property
    def encoder(self) -> ImageEncoder:
        """Loaded at the first picture that has to be embedded."""
        encoder = images.load(self.params.image_encoder)
        encoder.model.to(best_device())  # type: ignore[arg-type]
        return encoder

    def encode(self, job: ImagesJob, wanted: Sequence[int]) -> Iterator[dict[str, Tensor]]:
        """The tensors of the job's rows ``wanted``, batch by batch. Raises LatentflowError that names a record."""
        note(self.folder, self.made_from)
        records = list(self.records.at(job.latents.rows[list(wanted)]))
        batches = list(full_batches(len(records), self.params.batch_size))
        decoded = _Decoded(
            self.records.folder,
            job,
            self.params,
            self.encoder if self.params.reference_image else None,
            [[records[row] for row in rows] for rows, _ in batches],
        )
        loader = torch.utils.data.DataLoader(
            decoded, batch_size=None, num_workers=workers(self.params.workers, len(batches))
        )
        for (rows, new), (control, prepared) in zip(batches, loader, strict=True):
            tensors = {"source": as_rows([self._key(records[row]) for row in rows])}
            if control is not None:
                tensors["control"] = edges(control) if self.params.control_image == "edges" else control
            if prepared is not None:
                tensors["image"] = self.encoder.embed(prepared).to(getattr(torch, self.params.dtype)).cpu()
            require_finite(tensors, [records[row].id for row in rows])
            yield {name: tensor[:new] for name, tensor in tensors.items()}

    def hand_over(self, folder: Path) -> ImageFacts:
        """What the manifest says of the images; the image encoder goes to ``folder``, for the set carries it along."""
        facts = ImageFacts(control=self.params.control_image)
        if not self.params.image_encoder:
            return facts
        saved = self._saved()
        with atomic_folder(folder / images.FOLDER) as temporary:
            copy_tree_or_file(saved / images.FOLDER, temporary)
        digest = digest_folder(saved / images.FOLDER)
        return facts.model_copy(update={"width": images.width(self.params.image_encoder), "encoder": digest})

    def _saved(self) -> Path:
        """The folder with ``image_encoder/``, saved once beside the rows."""
        folder = self.folder / "encoder"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                with atomic_folder(folder) as temporary:
                    self.encoder.save(temporary)
        return folder


@dataclass(frozen=True)
class _Decoded(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Batches of control pictures (n, 3, h, w) uint8 and of prepared reference images, read in worker processes.

    Of the pictures' edges these are the pictures themselves; None where they are not asked for.
    """

    folder: Path
    job: ImagesJob
    params: EncodeParams
    encoder: ImageEncoder | None
    batches: list[list[Record]]

    def __len__(self) -> int:
        return len(self.batches)

    @cached_property
    def records(self) -> RecordSet:
        """Opened anew in every worker."""
        return RecordSet.open(self.folder)

    def __getitem__(self, number: int) -> tuple[Tensor | None, Tensor | None]:
        batch, params = self.batches[number], self.params
        control = prepared = None
        if params.control_image:
            control = torch.stack([self._control(record) for record in batch])
        if self.encoder is not None:
            column = column_of(params.reference_image)
            prepared = torch.stack([self.encoder.prepare(self._picture(record, column)) for record in batch])
        return control, prepared

    def _control(self, record: Record) -> Tensor:
        """Scaled and cut as the picture itself is."""
        picture = self._picture(record, column_of(self.params.control_image))
        _require_same_shape(record, picture)
        fitted, _ = fit(picture, self.job.latents.height, self.job.latents.width)
        return torch.from_numpy(fitted.copy()).permute(2, 0, 1)

    def _picture(self, record: Record, column: str) -> Image.Image:
        """That of a column, or the record's own."""
        return decode_picture(self.records.read(_condition(record, column) if column else record))


def _condition(record: Record, column: str) -> Condition:
    """A record's picture in a column."""
    return next(condition for condition in record.conditions if condition.name == column)


def _require_pictures(records: RecordSet, column: str) -> None:
    """Raises LatentflowError unless every record has media in that column."""
    for record in records.table:
        found = next((condition for condition in record.conditions if condition.name == column), None)
        if found is None or found.media < 0:
            what = "no such column" if found is None else f"the text {found.text[:40]!r} there"
            raise LatentflowError(
                f"encode: column:{column} should hold a picture of every record, and {record.id} has {what}; name it "
                "in ingest.condition_columns, give paths of pictures, and ingest again."
            )


def _require_same_shape(record: Record, picture: Image.Image) -> None:
    """Raises LatentflowError where scaling and cutting would not keep the control picture in register."""
    wanted = record.height * picture.width / picture.height
    if abs(wanted - record.width) > 1:
        raise LatentflowError(
            f"encode.control_image: that of {record.id} is {picture.width}x{picture.height} and the picture itself "
            f"{record.width}x{record.height}; give control pictures of the same aspect ratio."
        )
