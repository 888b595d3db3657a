"""encode: frozen encoders turn records into the encoded set, once; training never loads them again."""

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from latentflow.errors import LatentflowError
from latentflow.files import (
    atomic_file,
    atomic_folder,
    clone_file,
    copy_tree_or_file,
    digest_json,
    digest_model,
    sha256_file,
    write_json,
)
from latentflow.manifest import (
    FILE,
    AutoencoderManifest,
    EncodedManifest,
    EncodedPart,
    ImageFacts,
    RecordsManifest,
    Shard,
    TextFacts,
    fingerprint,
)
from latentflow.params import EncodeInputs
from latentflow.workspace import store

if TYPE_CHECKING:
    from latentflow.data.plan import EncodePlan, Layout
    from latentflow.data.records import RecordSet
    from latentflow.encoders.filling import Encoders

VERSION = 2
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``of``, from 1: a disjoint share of whole shards."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads ``2/8``. Raises LatentflowError when it is not a part."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise LatentflowError(f"--part {text}: expected number/of with 1 <= number <= of, for example 2/8.")
        return cls(int(match[1]), int(match[2]))


def run(inputs: EncodeInputs, records: Path, autoencoder: Path, out: Path, force_rerun: str = "") -> EncodedManifest:
    """Encodes what the work store does not hold yet and writes the whole set to ``out``.

    Under torchrun or accelerate every process encodes its part; the first then writes the set.
    """
    from latentflow.data.packs import drop_superseded
    from latentflow.encoders.filling import fill

    with _disk_trouble(out):
        work = _Work.open(inputs, records, autoencoder, force_rerun)
        with _processes(work) as first:
            if first:
                finished = fill(work.encoders, work.plan.jobs)
                with atomic_folder(out) as folder:
                    for one in finished:
                        copy_tree_or_file(one.pack, folder / one.shard.file)
                    text, images = work.hand_over_text(folder), work.hand_over_images(folder)
                    work.describe([one.shard for one in finished], text, images, folder)
                drop_superseded([one.pack for one in finished])
    return EncodedManifest.read(out)


def run_part(
    inputs: EncodeInputs,
    records: Path,
    autoencoder: Path,
    out: Path,
    part: Part,
    force_rerun: str = "",
    storage: str = "",
) -> EncodedPart:
    """Encodes one part's shards into ``out``, which parts may share; ``merge`` makes a set of all.

    With ``storage``, a folder or an fsspec URL, the files lie below that (see ``shared_place``) and ``out`` holds only
    the part's description; a part that is there already is not encoded again.
    """
    from latentflow.data.shared import SharedSet

    with _disk_trouble(out):
        work = _Work.open(inputs, records, autoencoder, force_rerun)
        if not storage:
            return _encode_part(work, part, out)
        shared = SharedSet(storage, work.fingerprint)
        made = shared.part(part.number, part.of)
        if made:
            log.info("part %d/%d is in %s; nothing is encoded again", part.number, part.of, shared.place)
        else:
            with tempfile.TemporaryDirectory() as folder:
                made = _encode_part(work, part, Path(folder))
                shared.put(Path(folder), last=EncodedPart.file(part.number, part.of))
        made.write(out)
    return made


def shared_place(storage: str, fingerprint: str) -> str:
    """Where the set of that fingerprint lies below ``storage``; it opens there once ``merge`` has run."""
    from latentflow.data.shared import SharedSet

    return SharedSet(storage, fingerprint).place


def _encode_part(work: "_Work", part: Part, out: Path) -> EncodedPart:
    from latentflow.encoders.filling import fill

    finished = fill(work.encoders, work.plan.part(part.number, part.of))
    for one in finished:
        with atomic_file(out / one.shard.file) as temporary:
            clone_file(one.pack, temporary)
    text, images = (work.hand_over_text(out), work.hand_over_images(out)) if part.number == 1 else (None, None)
    shards = [one.shard for one in finished]
    made = EncodedPart(
        fingerprint=work.fingerprint, number=part.number, of=part.of, shards=shards, text=text, images=images
    )
    made.write(out)
    return made


def merge(
    inputs: EncodeInputs,
    records: Path,
    autoencoder: Path,
    out: Path,
    folders: Sequence[Path],
    force_rerun: str = "",
    storage: str = "",
) -> EncodedManifest:
    """Writes the manifest and the index of a set whose parts lie in ``folders`` (or all in ``out``); moves no data.

    With ``storage``, where the parts' files are, they are put there too, and the autoencoder with them.
    """
    from latentflow.data.shared import AUTOENCODER, SharedSet

    with _disk_trouble(out):
        work = _Work.open(inputs, records, autoencoder, force_rerun)
        parts = _parts(folders or [out], work.fingerprint)
        shards = {shard.file: shard for part in parts for shard in part.shards}
        ((text, images),) = [(part.text, part.images or ImageFacts()) for part in parts if part.text]
        out.mkdir(parents=True, exist_ok=True)
        manifest = work.describe([shards[job.file] for job in work.plan.jobs], text, images, out)
        if storage:
            shared = SharedSet(storage, work.fingerprint)
            shared.put(autoencoder, last=FILE, within=AUTOENCODER)
            shared.put(out, last=FILE)
        return manifest


def explain(inputs: EncodeInputs, records: Path, autoencoder: Path, force_rerun: str = "") -> list[str]:
    """What ``run`` would encode and why, in sentences; encodes nothing."""
    from latentflow.encoders.explanation import explained

    work = _Work.open(inputs, records, autoencoder, force_rerun)
    return explained(work.encoders, work.plan)


@dataclass(frozen=True)
class _Work:
    """A set to be encoded: its records, its shards, and who makes their rows."""

    inputs: EncodeInputs
    records: "RecordSet"
    resolution: int
    trained: bool
    plan: "EncodePlan"
    encoders: "Encoders"
    digests: dict[str, str]
    fingerprint: str

    @classmethod
    def open(cls, inputs: EncodeInputs, records: Path, autoencoder: Path, token: str) -> "_Work":
        from latentflow.data import plan
        from latentflow.data.records import RecordSet
        from latentflow.encoders import captions
        from latentflow.encoders.filling import Encoders
        from latentflow.encoders.image_rows import ImageRows
        from latentflow.encoders.rows import CaptionRows, PictureRows

        params, vae_manifest = inputs.encode, AutoencoderManifest.read(autoencoder)
        record_set, source = RecordSet.open(records), captions.find(params)
        digests = {
            "records": record_set.manifest.digest,
            "autoencoder": vae_manifest.digest,
            "text_encoder": source.digest,
        }
        if params.image_encoder:
            digests["image_encoder"] = digest_model(params.image_encoder)
        rows = store() / "encode"
        encoders = Encoders(
            PictureRows(params, record_set, autoencoder, vae_manifest.weights, rows, token),
            ImageRows(params, record_set, rows, token),
            CaptionRows(params, source, rows, token),
        )
        made = plan.make(record_set.arrow, _layout(inputs, autoencoder, vae_manifest.resolution))
        if made.left_out:
            why = (
                "are shorter than what encode.clip_* asks of them" if params.clip_frames else "need encode.clip_frames"
            )
            log.warning("%d clips are left out: they %s", made.left_out, why)
        return cls(
            inputs=inputs,
            records=record_set,
            resolution=vae_manifest.resolution,
            trained=vae_manifest.trained,
            plan=made,
            encoders=encoders,
            digests=digests,
            fingerprint=fingerprint("encode", VERSION, inputs, digests, token),
        )

    def hand_over_text(self, folder: Path) -> TextFacts:
        """Writes the prompts to ``folder``, and the text encoder if the finished pipeline is to have it from there."""
        from latentflow.data.shards import PROMPTS
        from latentflow.encoders.filling import fill

        captions = self.encoders.captions
        (prompts,) = fill(self.encoders, [captions.prompts])
        with atomic_file(folder / PROMPTS) as temporary:
            clone_file(prompts.pack, temporary)
        every = [caption for job in self.plan.text for caption in job.captions]
        return captions.source.hand_over(captions.saved, folder, every, prompts.shard)

    def hand_over_images(self, folder: Path) -> ImageFacts:
        """Writes the image encoder to ``folder`` where there is one: the finished adapter is to have it from there."""
        return self.encoders.images.hand_over(folder)

    def describe(self, shards: list[Shard], text: TextFacts, images: ImageFacts, folder: Path) -> EncodedManifest:
        """Writes index, metrics and manifest of the set of ``shards`` into ``folder``."""
        from latentflow.data.records import SPLITS
        from latentflow.data.shards import INDEX, statistics, write_index

        write_index(folder / INDEX, self.plan, self.records.arrow["id"])
        mean, std = statistics(shards)
        _check_scale(mean, std, self.trained)
        latents = [shard for shard in shards if shard.kind == "latents"]
        counts = {split: sum(s.count for s in latents if s.split == split) for split in SPLITS}
        if text.captions_cut:
            log.warning(
                "%d captions are longer than encode.max_tokens %d and are cut",
                text.captions_cut,
                self.encoders.captions.source.max_tokens,
            )
        write_json(folder / "metrics.json", {"records": sum(counts.values()), "captions_cut": text.captions_cut})
        index = sha256_file(folder / INDEX)
        content: dict[str, Any] = {
            "shards": [shard.model_dump() for shard in shards],
            # What only pipelines' text models have does not change the digest of other sets.
            "text": text.model_dump(exclude_defaults=True),
            "index": index,
        } | ({"images": facts} if (facts := images.model_dump(exclude_defaults=True)) else {})
        manifest = EncodedManifest(
            digest=digest_json(content),
            fingerprint=self.fingerprint,
            inputs=self.digests,
            shards=shards,
            counts=counts,
            index_sha256=index,
            prompts_sha256=text.prompts,
            latent_shape=self.plan.square,
            latent_mean=mean,
            latent_std=std,
            text_width=text.width,
            text_pipeline=text.pipeline,
            pooled_width=text.pooled_width,
            max_tokens=self.encoders.captions.source.max_tokens,
            cased=text.cased,
            resolution=self.resolution,
            sample_prompts=self.inputs.encode.sample_prompts,
            origin=_origin(self.records.manifest),
            images=images,
        )
        manifest.write(folder)
        return manifest


def _layout(inputs: EncodeInputs, autoencoder: Path, resolution: int) -> "Layout":
    """What decides the shards' shapes. Raises LatentflowError when buckets do not fit the VAE."""
    from latentflow.data.plan import Layout
    from latentflow.encoders import vae

    params, shape = inputs.encode, vae.shape_of(autoencoder)
    if params.bucket_step % shape.factor or resolution % (params.bucket_step or 1):
        raise LatentflowError(
            f"encode.bucket_step {params.bucket_step}: expected a multiple of {shape.factor}, by which the VAE shrinks "
            f"pictures, that divides autoencoder.resolution {resolution}."
        )
    if params.clip_frames and shape.frames and (params.clip_frames - 1) % shape.frames:
        raise LatentflowError(
            f"encode.clip_frames {params.clip_frames}: the VAE makes one latent of the first frame and one of every "
            f"{shape.frames} that follow; give a multiple of {shape.frames}, plus 1."
        )
    return Layout(
        resolution=resolution,
        factor=shape.factor,
        vae_frames=shape.frames,
        channels=shape.channels,
        bucket_step=params.bucket_step,
        bucket_min_ratio=params.bucket_min_ratio,
        bucket_max_ratio=params.bucket_max_ratio,
        clip_frames=params.clip_frames,
        clip_stride=params.clip_stride,
        clip_fps=params.clip_fps,
        shard_size=params.shard_size,
        images=bool(params.control_image or params.reference_image),
    )


def _parts(folders: Sequence[Path], fingerprint: str) -> list[EncodedPart]:
    """All parts of one set. Raises LatentflowError when one is missing or was made of other inputs."""
    parts = [part for folder in folders for part in EncodedPart.read_all(folder) if part.fingerprint == fingerprint]
    where = ", ".join(map(str, folders))
    if not parts:
        raise LatentflowError(
            f"{where}: no part of the set that these records, encoders and parameters make; run `latentflow encode "
            "--part 1/n` and the others first, with the same parameters."
        )
    of = max(part.of for part in parts)
    there = {part.number: part for part in parts if part.of == of}
    if absent := [f"{number}/{of}" for number in range(1, of + 1) if number not in there]:
        raise LatentflowError(
            f"{where}: part {', '.join(absent)} is missing; run `latentflow encode --part {absent[0]}`."
        )
    return list(there.values())


@contextmanager
def _processes(work: "_Work") -> Iterator[bool]:
    """Under several processes each fills its part of the work store first; yields whether this is the first one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield True
        return
    import torch
    from accelerate import PartialState

    from latentflow.encoders.filling import fill

    # A part may take longer than the others by more than the usual half hour.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    fill(work.encoders, work.plan.part(state.process_index + 1, count))
    state.wait_for_everyone()
    yield state.is_main_process
    state.wait_for_everyone()


def _origin(records: RecordsManifest) -> dict[str, str]:
    """Where the data came from; it travels with everything that is made of it."""
    return {
        "source": records.source,
        "revision": records.revision,
        "digest": records.digest,
        "license": records.license,
        "credit": records.credit,
    }


def _check_scale(mean: list[float], std: list[float], trained: bool) -> None:
    """Latents far from unit scale spoil the noise schedule: an error for our own VAE, a warning for a given one."""
    off = max(abs(m) for m in mean) > 0.1 or not all(0.9 < s < 1.1 for s in std)
    shown = f"mean {[round(m, 2) for m in mean]}, standard deviation {[round(s, 2) for s in std]}"
    if off and trained:
        raise LatentflowError(
            f"the trained VAE's latents should have mean 0 and deviation 1 per channel, found {shown}."
        )
    if off:
        log.warning("latents are not of unit scale (%s); does the VAE's config lack its scaling_factor?", shown)


@contextmanager
def _disk_trouble(out: Path) -> Iterator[None]:
    """Says what to do when the work store or ``out`` cannot be written; finished shards stay in the work store."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, SafetensorError) and "I/O" not in str(error):
            raise
        raise LatentflowError(
            f"{out} or the work store {store()} cannot be written: {error}. Free space, or name another place by "
            "LATENTFLOW_STORE; shards that are finished stay there, and the next run goes on with the others."
        ) from error
