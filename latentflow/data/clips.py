"""Clips by PyAV, an optional dependency: what a file holds, and frames of it by number or by time."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentflow.data.refusal import Fault, RefusedError, refuse_large
from latentflow.errors import LatentflowError

# Pictures in the container that clips use too; Pillow or nobody reads them.
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1")
_INSTALL = "a clip needs PyAV to be read: install latentflow[video]"
# A header may round its duration up; a file that ends this much earlier was cut off.
_MISSING_SHARE, _MISSING_FRAMES = 0.02, 2.0


@dataclass(frozen=True)
class Clip:
    """Upright size in pixels, frames that decode, frames per second; the middle frame as a small square, RGB uint8."""

    width: int
    height: int
    frames: int
    fps: float
    small: NDArray[np.uint8]


def is_clip(data: bytes) -> bool:
    """Whether the first bytes are those of a container of clips."""
    return _container(data) is not None


def _container(data: bytes) -> str | None:
    """FFmpeg's reader for these bytes; it is named so that no playlist, which names other files, is ever followed."""
    if data[4:8] == b"ftyp":
        return None if data[8:12] in _PICTURE_BRANDS else "mov"
    if data[4:8] in (b"moov", b"mdat", b"wide", b"free"):
        return "mov"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if data[:4] == b"RIFF" and data[8:12] == b"AVI " else None


def probe_clip(data: bytes, small: int, max_side: int) -> Clip:
    """Decodes all frames. Raises RefusedError with the reason."""
    with _opened(data) as (container, stream):
        refuse_large(stream.codec_context.width, stream.codec_context.height, max_side)
        # A small square is less than what a frame takes in the file: all are kept until the middle is known.
        smalls: list[NDArray[np.uint8]] = []
        packets, end, turned = 0, 0.0, False
        for packet in container.demux():
            if packet.size and packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            packets += packet.size > 0
            for frame in packet.decode():
                turned = frame.rotation % 180 != 0
                smalls.append(_upright(frame.reformat(width=small, height=small)))
        if not smalls or not _rate(stream):
            raise RefusedError(Fault.BROKEN, "the clip has no frame that decodes, or no frame rate")
        _refuse_cut_off(container, stream, packets, end)
        size = stream.codec_context.width, stream.codec_context.height
        width, height = size[::-1] if turned else size
        return Clip(width, height, len(smalls), _rate(stream), smalls[len(smalls) // 2])


def _refuse_cut_off(container: Any, stream: Any, packets: int, end: float) -> None:
    if packets < stream.frames:
        raise RefusedError(Fault.BROKEN, f"the clip is cut off: {packets} of its {stream.frames} frames are there")
    start, duration = (container.start_time or 0) / 1e6, (container.duration or 0) / 1e6
    if start + duration - end > max(_MISSING_SHARE * duration, _MISSING_FRAMES / _rate(stream)):
        raise RefusedError(Fault.BROKEN, f"the clip is cut off: it ends after {end:.2f} of {duration:.2f} seconds")


def decode_clip(data: bytes, frames: int, stride: int, fps: float) -> NDArray[np.uint8]:
    """``frames`` frames from the start, upright, as (frames, height, width, 3) uint8.

    Every ``stride``-th frame is taken; with ``fps`` above 0 the clip is first seen at that rate (of each moment the
    frame on screen, by the clip's average rate). Raises RefusedError for a broken clip and LatentflowError for one
    that is too short.
    """
    with _opened(data) as (container, stream):
        ratio = _rate(stream) / fps if fps else 1.0
        # A rate that is no binary fraction must not fall just short of a whole frame.
        wanted = [math.floor(number * stride * ratio + 1e-6) for number in range(frames)]
        taken: dict[int, NDArray[np.uint8]] = {}
        count = 0
        for frame in container.decode(stream):
            if count in wanted:
                taken[count] = _upright(frame)
            count += 1
            if count > wanted[-1]:
                return np.stack([taken[number] for number in wanted])
    raise LatentflowError(
        f"a clip of {count} frames is too short for {frames} frames with stride {stride} at "
        f"{fps:g} frames per second (0 is its own rate): ask for fewer, or leave shorter clips out."
    )


@contextmanager
def _opened(data: bytes) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream; FFmpeg's errors become refusals."""
    try:
        import av
    except ImportError:
        raise RefusedError(Fault.NO_CLIP_READER, _INSTALL) from None
    try:
        with av.open(io.BytesIO(data), format=_container(data)) as container:
            if not container.streams.video:
                raise RefusedError(Fault.UNKNOWN, "the file is a clip without a video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise RefusedError(Fault.UNKNOWN, "the clip is of a kind that FFmpeg cannot decode")
            # Records are checked in parallel already.
            stream.codec_context.thread_count = 1
            yield container, stream
    except RefusedError:
        raise
    except Exception as error:
        # As with pictures, corrupt bytes lead readers into errors of every kind.
        raise RefusedError(Fault.BROKEN, f"the clip cannot be decoded: {error or type(error).__name__}") from None


def _rate(stream: Any) -> float:
    """Frames per second, 0 where the file does not say."""
    return float(stream.average_rate or stream.guessed_rate or 0)


def _upright(frame: Any) -> NDArray[np.uint8]:
    """A frame as (height, width, 3) uint8, turned as the file's display matrix says."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
