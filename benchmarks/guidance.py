"""Which guidance scale draws best, on training captions that `evaluate` does not ask.

    python benchmarks/guidance.py [--model data/model] [--records data/records] [--captions 128] [--scales 1.5 2 3 4 5]

Choosing the scale here and judging there keeps the judged figure honest. Prints a Markdown table.
"""

import argparse
from pathlib import Path

from judged import Judge


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=Path("data/model"), help="folder that train wrote")
    options.add_argument("--records", type=Path, default=Path("data/records"), help="folder that ingest wrote")
    options.add_argument("--captions", type=int, default=128)
    options.add_argument("--scales", type=float, nargs="+", default=[1.5, 2, 3, 4, 5])
    chosen = options.parse_args()
    judge = Judge(chosen.model, chosen.records, chosen.captions)
    print("| guidance | nearest | among five nearest | median distance to the right picture |")
    print("|---|---|---|---|")
    for scale in chosen.scales:
        pictures, _ = judge.drawn(judge.settings(guidance=scale))
        nearest, five = (f"{100 * judge.ranks(pictures).top(k).mean:.1f} %" for k in (1, 5))
        print(f"| {scale:g} | {nearest} | {five} | {judge.distance(pictures):.3f} |", flush=True)


if __name__ == "__main__":
    main()
