"""Which pictures a person is shown, chosen by rule and not by eye: the gallery, the suspects, the failures."""

from pathlib import Path

import torch
from PIL.Image import Image
from safetensors.torch import save_file

from latentflow.data.records import Record, RecordSet
from latentflow.evaluation.judge import Asked, Findings
from latentflow.files import atomic_file, write_json
from latentflow.html import Entry, Section
from latentflow.pictures import to_image

SHOWN = 18
WORST = 12
KEPT = 64
PICTURES, PICTURES_LIST = "gallery.safetensors", "gallery.json"
_FREE = 24
_SIDE_BY_SIDE = 4


def write_pictures(folder: Path, findings: Findings) -> None:
    """The gallery's drawn pictures, at most ``KEPT``: uint8 (n, 3, h, w), and a list of prompt and seed of each.

    Another model that draws the same list can be shown beside them.
    """
    free = findings.free
    named = [(prompt, free.seed, picture) for prompt, picture in zip(free.prompts, free.pictures, strict=True)]
    for asked in (findings.test, findings.train):
        for row in _shown_rows(asked):
            named.append((asked.records[row].caption, asked.captions.seed(row, 0), asked.pictures[row, 0]))
    write_json(folder / PICTURES_LIST, [{"prompt": prompt, "seed": seed} for prompt, seed, _ in named[:KEPT]])
    with atomic_file(folder / PICTURES) as path:
        save_file({"pictures": torch.stack([picture for _, _, picture in named[:KEPT]])}, path)


class Exhibits:
    """The sections of pictures; real ones are read when a section is made."""

    def __init__(self, findings: Findings, records: RecordSet) -> None:
        self.findings = findings
        self.records = records
        self.side = findings.protocol.resolution

    @property
    def gallery(self) -> list[Section]:
        """Free prompts, held-out captions and training captions; the first ones of a fixed order, first seed."""
        free, total = self.findings.free, f"{len(self.records.table):,}"
        drawn = [Entry(p, (to_image(x),)) for p, x in zip(free.prompts[:_FREE], free.pictures, strict=False)]
        beside = f"Drawn, right and nearest real picture; the rank is that of the right one among all {total}"
        return [
            Section("Free prompts", f"Drawn for captions that may be in no picture, seed {free.seed}.", drawn),
            Section(
                "Held-out captions", f"Training never reads these. {beside}. Not picked by eye.", self._asked(False)
            ),
            Section("Training captions", f"{beside}. Not picked by eye.", self._asked(True)),
        ]

    def _asked(self, train: bool) -> list[Entry]:
        asked = self.findings.train if train else self.findings.test
        return [self._looked_up(asked, row, 0) for row in _shown_rows(asked)]

    def _looked_up(self, asked: Asked, row: int, number: int) -> Entry:
        """Drawn, right, nearest."""
        rank = int(asked.retrieval.rank[row, number])
        right = asked.records[row]
        nearest = self.records.table[int(asked.retrieval.nearest[row, number])]
        pictures = (to_image(asked.pictures[row, number]), self._real(right), self._real(nearest))
        looks = "" if nearest.caption == right.caption else f", looks like “{nearest.caption}”"
        return Entry(right.caption, pictures, f"rank {rank:,}{looks}")

    @property
    def failures(self) -> Section:
        """The training captions whose right picture came last, worst seed of each."""
        asked = self.findings.train
        worst, seeds = asked.retrieval.rank.max(1)
        order = torch.argsort(worst, descending=True, stable=True)[:WORST].tolist()
        entries = [self._looked_up(asked, row, int(seeds[row])) for row in order if worst[row] > 1]
        return Section(
            "Failures, worst first",
            "Training captions whose right picture is farthest down, worst seed of each: drawn, right, nearest.",
            entries,
        )

    @property
    def suspects(self) -> Section:
        """Drawn pictures of held-out captions and free prompts, those first that are nearest to a training picture."""
        found, asked, free = self.findings.memorisation, self.findings.test, self.findings.free
        training = [record for record in self.records.table if record.split == "train"]
        ratios = torch.cat([found.test.ratio.flatten(), found.free.ratio])
        nearest = torch.cat([found.test.nearest.flatten(), found.free.nearest]).tolist()
        pictures = torch.cat([asked.pictures.flatten(0, 1), free.pictures])
        captions = [request.prompt for request in asked.captions.requests] + free.prompts
        entries = []
        for place in torch.argsort(ratios, stable=True)[:WORST].tolist():
            copied, ratio = training[nearest[place]], float(ratios[place])
            remark = f"{ratio:.2f}{', suspect' if ratio < found.threshold else ''}; beside “{copied.caption}”"
            entries.append(Entry(captions[place], (to_image(pictures[place]), self._real(copied)), remark))
        note = (
            "Drawn for a held-out caption or a free prompt, and the nearest training picture. The number is its "
            "distance over the mean distance to the 50 nearest; it is suspect below "
            f"{found.threshold:.2f}, as 5 % of the real held-out pictures are. A free prompt may be a training caption."
        )
        return Section("Nearest to training pictures", note, entries)

    @property
    def uniform(self) -> Section:
        """The held-out captions whose seeds look most alike."""
        values, asked = self.findings.diversity.by_caption.get("test", {}), self.findings.test
        row_of = {record.id: row for row, record in enumerate(asked.records)}
        entries = [
            Entry(
                asked.records[row_of[name]].caption,
                tuple(to_image(one) for one in asked.pictures[row_of[name], :_SIDE_BY_SIDE]),
                f"distance {values[name]:.2f}",
            )
            for name in sorted(values, key=values.__getitem__)[:WORST]
        ]
        reference = self.findings.diversity.reference
        note = f"Held-out captions whose seeds look most alike; real pictures are {reference:.2f} apart on average."
        return Section("Least diverse captions", note, entries)

    @property
    def reconstructions(self) -> Section:
        """Real held-out pictures and what the VAE makes of them, worst first."""
        found = self.findings.reconstruction
        note = "Held-out pictures and what the VAE returns, worst first: the model cannot draw more than the VAE can."
        if found is None:
            return Section("Autoencoder", note, [])
        values = found.values["psnr"]
        order = sorted(range(len(values)), key=values.__getitem__)[:WORST]
        entries = [
            Entry(
                found.records[row].caption,
                (self._real(found.records[row]), to_image(found.pictures[row])),
                ", ".join(f"{name.upper()} {values[row]:.3g}" for name, values in found.values.items()),
            )
            for row in order
        ]
        return Section("Autoencoder, worst reconstructions first", note, entries)

    def _real(self, record: Record) -> Image:
        return self.records.image(record, self.side, self.side)


def _shown_rows(asked: Asked) -> list[int]:
    step = max(1, len(asked.records) / SHOWN)
    return [int(number * step) for number in range(min(SHOWN, len(asked.records)))]
