"""Which pictures a person is shown, chosen by rule and not by eye: the gallery's sections and the failures."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from latentflow.data.records import RecordSet
from latentflow.evaluation.judge import Asked, Findings
from latentflow.files import atomic_file, write_json
from latentflow.html import Entry, Section
from latentflow.pictures import to_image

SHOWN = 18
KEPT = 64
PICTURES, PICTURES_LIST = "gallery.safetensors", "gallery.json"


def sections(findings: Findings, records: RecordSet) -> list[Section]:
    """Free prompts, held-out captions and training captions; the first ones of a fixed order, first seed."""
    free = [Entry(p, (to_image(x),)) for p, x in zip(findings.free_prompts, findings.free_pictures, strict=True)]
    beside = f"left: drawn, right: real, which comes at this rank among all {len(records.table):,}; not picked by eye"
    return [
        Section("Free prompts", "drawn for captions that may be in no picture", free),
        Section("Held-out captions", f"training never reads this split; {beside}", _pairs(findings.test, records)),
        Section("Training captions", beside, _pairs(findings.train, records)),
    ]


def write_pictures(folder: Path, findings: Findings) -> None:
    """The gallery's drawn pictures, at most ``KEPT``: uint8 (n, 3, h, w), and a list of prompt and seed of each.

    Another model that draws the same list can be shown beside them.
    """
    seed = findings.protocol.seeds[0]
    named = list(zip(findings.free_prompts, findings.free_pictures, strict=True))
    for asked in (findings.test, findings.train):
        named += [(asked.records[row].caption, asked.pictures[row, 0]) for row in _shown_rows(asked)]
    write_json(folder / PICTURES_LIST, [{"prompt": prompt, "seed": seed} for prompt, _ in named[:KEPT]])
    with atomic_file(folder / PICTURES) as path:
        save_file({"pictures": torch.stack([picture for _, picture in named[:KEPT]])}, path)


def failures(findings: Findings, records: RecordSet, count: int = 12) -> Section:
    """The training captions whose right picture came last, worst seed of each: drawn, nearest real, right."""
    asked, side = findings.train, findings.protocol.resolution
    worst, seeds = asked.retrieval.rank.max(1)
    order = torch.argsort(worst, descending=True, stable=True)[:count].tolist()
    entries = []
    for row in (row for row in order if worst[row] > 1):
        seed = int(seeds[row])
        nearest = records.table[int(asked.retrieval.nearest[row, seed])]
        pictures = (
            to_image(asked.pictures[row, seed]),
            records.image(nearest, side, side),
            records.image(asked.records[row], side, side),
        )
        remark = f"rank {int(worst[row]):,}; looks like “{nearest.caption}”"
        entries.append(Entry(asked.records[row].caption, pictures, remark))
    return Section("Worst failures", "training captions; drawn, nearest real picture, right picture", entries)


def _pairs(asked: Asked, records: RecordSet) -> list[Entry]:
    resolution = asked.pictures.shape[-1]
    return [
        Entry(
            asked.records[row].caption,
            (to_image(asked.pictures[row, 0]), records.image(asked.records[row], resolution, resolution)),
            f"rank {int(asked.retrieval.rank[row, 0]):,}",
        )
        for row in _shown_rows(asked)
    ]


def _shown_rows(asked: Asked) -> list[int]:
    step = max(1, len(asked.records) / SHOWN)
    return [int(number * step) for number in range(min(SHOWN, len(asked.records)))]
