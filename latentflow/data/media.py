"""Bytes to pixels: what a picture or clip is, and its pixels upright, over white, in 8-bit RGB."""

import io
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from latentflow.data.clips import decode_clip, is_clip, probe_clip
from latentflow.data.refusal import Fault, RefusedError, refuse_large

__all__ = ["Probe", "decode_clip", "decode_picture", "fit", "is_clip", "probe", "still"]

SMALL = 32
_DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class Probe:
    """What decoding found: the upright size in pixels, frames and rate (1 and 0 for a picture).

    ``small`` is the picture, or the clip's middle frame, as (32, 32, 3) uint8. ``animated`` says that a picture has
    more frames, of which only the first is read.
    """

    kind: Literal["picture", "video"]
    width: int
    height: int
    frames: int
    fps: float
    small: NDArray[np.uint8]
    animated: bool = False


def probe(data: bytes, max_side: int = sys.maxsize) -> Probe:
    """Decodes everything once. Content decides what it is, not a name. Raises RefusedError with the reason."""
    if not data:
        raise RefusedError(Fault.EMPTY, "the file has no bytes")
    if is_clip(data):
        clip = probe_clip(data, SMALL, max_side)
        return Probe("video", clip.width, clip.height, clip.frames, clip.fps, clip.small)
    with _opened(data, max_side) as image:
        animated = getattr(image, "n_frames", 1) > 1
        rgb = _upright_rgb(image)
    small = np.asarray(rgb.resize((SMALL, SMALL), Image.Resampling.BOX, reducing_gap=2.0))
    return Probe("picture", rgb.width, rgb.height, 1, 0.0, small, animated)


def decode_picture(data: bytes) -> Image.Image:
    """The (first) picture in RGB, upright by EXIF, alpha over white, more than 8 bits scaled down.

    Raises RefusedError when it cannot be decoded.
    """
    with _opened(data) as image:
        return _upright_rgb(image)


@contextmanager
def _opened(data: bytes, max_side: int = sys.maxsize) -> Iterator[Image.Image]:
    """An opened picture; whatever goes wrong while it is used becomes a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                refuse_large(image.width, image.height, max_side)
                yield image
    except RefusedError:
        raise
    except UnidentifiedImageError:
        raise RefusedError(Fault.UNKNOWN, "the file is of no format that Pillow reads, and no clip") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RefusedError(Fault.BOMB, "the picture has too many pixels to decode safely") from None
    except Exception as error:
        # Pillow's readers raise whatever corrupt bytes lead them to: OSError, struct.error, KeyError, ...
        raise RefusedError(Fault.BROKEN, f"the picture cannot be decoded: {error or type(error).__name__}") from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in _DEEP or upright.mode == "F":
        return _eight_bits(upright).convert("RGB")
    if not upright.has_transparency_data:
        return upright.convert("RGB")
    over = Image.new("RGBA", upright.size, "white")
    over.alpha_composite(upright.convert("RGBA"))
    return over.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (also where Pillow holds it in 32) or of floats in [0, 1], scaled; Pillow's own would clip."""
    values = np.asarray(image).astype(np.float64)
    values *= 255 if image.mode == "F" else 255 / 65535
    return Image.fromarray(np.nan_to_num(values).round().clip(0, 255).astype(np.uint8))


def still(data: bytes, kind: str) -> Image.Image:
    """What stands for a picture or a clip where one picture is wanted: itself, or the first frame."""
    return Image.fromarray(decode_clip(data, 1, 1, 0)[0]) if kind == "video" else decode_picture(data)


def fit(image: Image.Image, height: int, width: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Scales to cover (Lanczos) and cuts out the centre.

    Returns (height, width, 3) uint8 and the cut's (top, left) in the scaled picture.
    """
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    scale = max(height / image.height, width / image.width)
    top, left = (
        math.floor((side * scale - cut) / 2 + 0.5) for side, cut in ((image.height, height), (image.width, width))
    )
    return np.asarray(fitted), (top, left)
