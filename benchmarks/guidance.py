"""Which guidance scale draws best, on training captions that `evaluate` does not ask.

    python benchmarks/guidance.py [--model data/model] [--records data/records] [--captions 128] [--scales 1.5 2 3 4 5]

Choosing the scale here and judging there keeps the judged figure honest. Prints a Markdown table.
"""

import argparse
from pathlib import Path

import torch

from latentflow import params as parameters
from latentflow.data.records import RecordSet, spread
from latentflow.evaluation import retrieval
from latentflow.evaluation.drawing import Artist, Request, Settings

ROOT = Path(__file__).resolve().parents[1]
SEED = 1000


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=Path("data/model"), help="folder that train wrote")
    options.add_argument("--records", type=Path, default=Path("data/records"), help="folder that ingest wrote")
    options.add_argument("--captions", type=int, default=128)
    options.add_argument("--scales", type=float, nargs="+", default=[1.5, 2, 3, 4, 5])
    chosen = options.parse_args()
    params = parameters.load(ROOT / "params.yaml").evaluate
    records = RecordSet.open(chosen.records)
    judged = {record.id for record in retrieval.choose_captions(records.table, "train", params.captions)}
    asked = spread([record for record in records.split("train") if record.id not in judged], chosen.captions)
    requests = [Request(record.caption, SEED) for record in asked]
    right = retrieval.right_ones(asked, records.table)
    print("| guidance | top-1 | top-5 | median distance to the right picture |")
    print("|---|---|---|---|")
    real = None
    for scale in chosen.scales:
        artist = Artist(chosen.model / "pipeline", Settings.read(chosen.model / "pipeline", params.steps, scale))
        if real is None:
            chunks = retrieval.picture_chunks(records, artist.settings.height)
            real = torch.cat([retrieval.features(chunk) for chunk in chunks])
        drawn = retrieval.features(artist.draw(requests, params.batch_size).pictures)
        ranks = retrieval.retrieve(drawn[:, None], real, right)
        distance = (drawn - real[right.int().argmax(dim=1)]).norm(dim=1).median().item()
        shares = [f"{100 * ranks.top(k).mean:.1f} %" for k in (1, 5)]
        print(f"| {scale:g} | {shares[0]} | {shares[1]} | {distance:.3f} |", flush=True)


if __name__ == "__main__":
    main()
