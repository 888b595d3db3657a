"""One measurement of one reader in a process of its own; benchmarks/reader.py starts it and reads the last line.

python benchmarks/reader_once.py PARTY WORKERS RECORDS SHARD FOLDER
python benchmarks/reader_once.py PARTY WORKERS RECORDS SHARD BUCKET PREFIX ENDPOINT CACHE
"""

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from reader_parties import LATENTS, PARTIES, TEXT, Ask, Data, Pair, Remote

COUNTED = 2


def epochs_of(batches: Iterator[Pair], records: int) -> Iterator[float]:
    """The time at which each epoch is complete. Stops the program on a batch or an epoch that is not as agreed."""
    seen, keys = 0, set()
    for latents, text in batches:
        assert (latents.dtype, text.dtype) == (torch.float32, torch.float16)
        assert (latents.shape[1:], text.shape[1:], len(latents)) == (LATENTS, TEXT, len(text))
        seen += len(latents)
        keys.update(map(tuple, latents[:, 0, 0, :2].tolist()))
        if seen >= records:
            if len(keys) != records or seen != records:
                raise SystemExit(f"an epoch of {seen} samples has {len(keys)} different ones instead of {records}")
            yield time.perf_counter()
            seen, keys = 0, set()


def main(words: list[str]) -> None:
    party = next(party for party in PARTIES if party.name == words[0])
    if reason := party.absent():
        raise SystemExit(reason)
    workers, records, shard = map(int, words[1:4])
    data = Data(records, shard)
    if len(words) == 5:
        first, *_, last = epochs_of(party.read(Ask(Path(words[4]), data, workers, 1 + COUNTED)), records)
        figure = COUNTED * records / (last - first)
    else:
        # Every reader but one speaks to S3 through one of these.
        for name in ("boto3", "s3fs", *party.also):
            importlib.import_module(name)
        place = Remote(words[4], words[5], words[6], Path(words[7]))
        start = time.perf_counter()
        (end,) = epochs_of(party.read(Ask(place, data, workers, 1)), records)
        figure = records / (end - start)
    print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
