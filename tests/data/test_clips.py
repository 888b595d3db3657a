"""Clips: what they hold, frames by number and by time, and what is broken about broken ones."""

import builtins
import struct
from contextlib import suppress

import numpy as np
import pytest
from ingest_helpers import clip

from latentflow.data.media import decode_clip, probe
from latentflow.data.refusal import Fault, RefusedError
from latentflow.errors import LatentflowError


def levels(data: bytes, frames: int, stride: int, fps: float) -> list[int]:
    """Which frames were taken, by their grey level."""
    taken = decode_clip(data, frames, stride, fps)
    assert taken.shape[0] == frames
    return [round(float(frame[20:40, 20:40].mean()) / 8) for frame in taken]


@pytest.mark.parametrize("kind", ["mp4", "mov", "matroska", "webm", "avi"])
def test_a_clip_is_measured(kind: str) -> None:
    found = probe(clip(24, 12, (64, 48), kind))
    assert (found.kind, found.width, found.height, found.frames) == ("video", 64, 48, 24)
    assert found.fps == pytest.approx(12)
    assert found.small.shape == (32, 32, 3)
    assert abs(int(found.small[16, 16, 0]) - 12 * 8) <= 4


def test_frames_by_number_and_by_time() -> None:
    data = clip(24, 12)
    assert levels(data, 4, 1, 0) == [0, 1, 2, 3]
    assert levels(data, 4, 5, 0) == [0, 5, 10, 15]
    assert levels(data, 4, 1, 6) == [0, 2, 4, 6]
    assert levels(data, 3, 2, 6) == [0, 4, 8]
    assert levels(data, 4, 1, 24) == [0, 0, 1, 1]
    assert levels(data, 24, 1, 12) == list(range(24))


def test_a_clip_that_is_too_short_says_so() -> None:
    with pytest.raises(LatentflowError, match="a clip of 6 frames is too short for 4 frames with stride 2"):
        decode_clip(clip(6), 4, 2, 0)


@pytest.mark.parametrize(
    ("kind", "share"), [("mp4", 0.6), ("matroska", 0.6), ("webm", 0.6), ("avi", 0.6), ("avi", 0.1)]
)
def test_a_clip_that_was_cut_off_is_refused(kind: str, share: float) -> None:
    data = clip(24, 12, kind=kind)
    with pytest.raises(RefusedError) as caught:
        probe(data[: int(len(data) * share)])
    assert caught.value.fault == Fault.BROKEN


def test_a_clip_with_its_index_first_is_refused_when_cut_off() -> None:
    data = clip(24, 12, movflags="faststart")
    assert probe(data).frames == 24
    with pytest.raises(RefusedError, match=r"cut off|cannot be decoded: .*End of file"):
        probe(data[:-2000])


def turned(data: bytes) -> bytes:
    """The same clip with a display matrix that turns it by 90 degrees, as telephones write it."""
    place = data.index(b"tkhd") + 4 + 40
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    return data[:place] + matrix + data[place + 36 :]


def test_a_turned_clip_stands_upright() -> None:
    data = turned(clip(3, 12))
    found = probe(data)
    assert (found.width, found.height) == (48, 64)
    assert decode_clip(data, 1, 1, 0).shape == (1, 64, 48, 3)


def test_the_side_is_checked_before_frames_are_decoded() -> None:
    with pytest.raises(RefusedError, match=r"64x48 pixels, above ingest\.max_side 60"):
        probe(clip(2), 60)


def test_a_playlist_is_never_followed() -> None:
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n"
    with pytest.raises(RefusedError) as caught:
        probe(playlist)
    assert caught.value.fault == Fault.UNKNOWN


def test_corrupt_clips_are_refused_or_decoded_and_nothing_else() -> None:
    generator = np.random.default_rng(0)
    good = clip(6)
    decoded = 0
    for _ in range(40):
        data = bytearray(good)
        for place in generator.integers(12, len(data), 20):
            data[place] = generator.integers(0, 256)
        with suppress(RefusedError):
            decoded += probe(bytes(data), 20_000).frames > 0
    assert 0 < decoded < 40


def test_without_pyav_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data = clip(2)
    real = builtins.__import__

    def absent(name: str, *rest: object) -> object:
        if name == "av":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(RefusedError, match=r"install latentflow\[video\]"):
        probe(data)
