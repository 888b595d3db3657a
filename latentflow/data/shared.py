"""An encoded set in a place that every pod reaches: its parts put their files there, and it opens as one set."""

from pathlib import Path

from pydantic import ValidationError

from latentflow.data.places import LocalPlace, open_place
from latentflow.data.remote import RemoteFolder, local_folder
from latentflow.errors import LatentflowError
from latentflow.files import atomic_file, clone_file
from latentflow.manifest import EncodedPart

AUTOENCODER = "autoencoder"
"""Where within the set a copy of its autoencoder lies."""


class SharedSet:
    """The set of one fingerprint below ``storage``, a folder or an fsspec URL."""

    def __init__(self, storage: str, fingerprint: str) -> None:
        self.place = f"{storage.rstrip('/')}/encoded/{fingerprint[:32]}"

    def part(self, number: int, of: int) -> EncodedPart | None:
        """A part that was put there whole; None where it is missing."""
        name, opened = EncodedPart.file(number, of), open_place(self.place)
        try:
            text = (opened.folder / name).read_bytes() if isinstance(opened, LocalPlace) else opened.read(name)
            return EncodedPart.model_validate_json(text)
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise LatentflowError(
                f"{self.place}/{name} is not what `latentflow encode --part` writes: {error}"
            ) from None

    def put(self, folder: Path, last: str, within: str = "") -> None:
        """Copies every file below ``folder`` to ``within`` the set; ``last``, after the others, says they are there."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        place = f"{self.place}/{within}" if within else self.place
        target, remote = local_folder(place), RemoteFolder(place)
        for name in [*(name for name in names if name != last), last]:
            if target is None:
                remote.put(folder / name, name)
            else:
                with atomic_file(target / name) as temporary:
                    clone_file(folder / name, temporary)
