"""How good the pictures of a trained model are by sampler and steps; what they cost is the calls of the model.

    python benchmarks/samplers.py [--model data/model] [--records data/records] [--captions 128]

Asks training captions that `evaluate` does not ask, one seed, at the default guidance. Prints a Markdown table.
"""

import argparse
from pathlib import Path

from judged import Judge

from latentflow.diffusion import SAMPLERS

STEPS = (4, 8, 16, 24, 48)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=Path("data/model"), help="folder that train wrote")
    options.add_argument("--records", type=Path, default=Path("data/records"), help="folder that ingest wrote")
    options.add_argument("--captions", type=int, default=128)
    chosen = options.parse_args()
    judge = Judge(chosen.model, chosen.records, chosen.captions)
    print("| sampler | steps | calls of the model | nearest | among five nearest | kernel distance |")
    print("|---|---|---|---|---|---|")
    for sampler in SAMPLERS:
        for steps in STEPS:
            calls = 2 * steps - 1 if sampler == "heun" else steps
            pictures, _ = judge.drawn(judge.settings(sampler, steps))
            nearest, five = (f"{100 * judge.ranks(pictures).top(k).mean:.1f} %" for k in (1, 5))
            figures = f"{nearest} | {five} | {judge.kernel(pictures):.5f}"
            print(f"| {sampler} | {steps} | {calls} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
