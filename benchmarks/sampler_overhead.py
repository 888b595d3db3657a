"""What a sampler's own arithmetic costs beside the model's, per step and under guidance.

    python benchmarks/sampler_overhead.py [--model data/model] [--encoded data/encoded] [--batch 8] [--rounds 15]

Runs, interleaved, the guided model alone as often as a sampler calls it, and the sampler around it; prints the median
of the rounds and the ratio as a Markdown table.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from latentflow import denoisers
from latentflow.data.encoded import EncodedSet
from latentflow.diffusion import SAMPLERS, Guidance, sample

STEPS = 24


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=Path("data/model"), help="folder that train wrote")
    options.add_argument("--encoded", type=Path, default=Path("data/encoded"), help="folder that encode wrote")
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--rounds", type=int, default=15)
    chosen = options.parse_args()
    folder = chosen.model / "pipeline"
    denoiser, diffusion = denoisers.load(folder), denoisers.read_diffusion(folder)
    split = EncodedSet.open(chosen.encoded)
    first = split.split("train").samples(0, torch.arange(chosen.batch))
    condition = first.text.float(), first.text_mask
    empty = split.empty_text.float().expand_as(condition[0]), split.empty_mask.expand_as(condition[1])

    def predict(xt: Tensor, sigma: Tensor, given: Sequence[Tensor]) -> Tensor:
        return denoiser.predict(xt, sigma, *given)

    guided = Guidance(3.0)(predict, condition, empty)
    noise = torch.randn((chosen.batch, *split.manifest.latent_shape), generator=torch.Generator().manual_seed(0))
    sigmas = diffusion.sigmas(STEPS, denoiser.tokens(split.manifest.latent_shape))

    @torch.no_grad()
    def alone(calls: int) -> None:
        for call in range(calls):
            guided(noise, sigmas[call % STEPS])

    print("| sampler | model alone, ms | with the sampler, ms | ratio |")
    print("|---|---|---|---|")
    for sampler in SAMPLERS:
        calls = 2 * STEPS - 1 if sampler == "heun" else STEPS
        both: list[tuple[float, float]] = []
        for _ in range(chosen.rounds):
            start = time.perf_counter()
            alone(calls)
            between = time.perf_counter()
            sample(diffusion.definition, guided, noise, sigmas, sampler)
            both.append((between - start, time.perf_counter() - between))
        model, whole = (1000 * statistics.median(times) / STEPS for times in zip(*both, strict=True))
        ratio = statistics.median(with_sampler / bare for bare, with_sampler in both)
        print(f"| {sampler} | {model:.2f} | {whole:.2f} | {ratio:.4f} |", flush=True)


if __name__ == "__main__":
    main()
