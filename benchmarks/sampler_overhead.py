"""What a sampler's own arithmetic costs beside the model's, per step and under guidance.

    python benchmarks/sampler_overhead.py [--model data/model] [--encoded data/encoded] [--batch 8] [--rounds 15]

Samples with the model and, interleaved, with one that answers at once, whose time is the sampler's and guidance's own:
a difference of two runs with the model would drown in the machine's noise. Prints medians as a Markdown table; the
share is that of the model's time.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from latentflow import denoisers
from latentflow.data.encoded import EncodedSet
from latentflow.diffusion import SAMPLERS, Guidance, sample

STEPS = 24
Predict = Callable[[Tensor, Tensor, Sequence[Tensor]], Tensor]


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
    condition = first.condition.to(torch.device("cpu"), torch.float32)
    empty = split.empty.to(torch.device("cpu"), torch.float32).rows(chosen.batch)

    noise = torch.randn((chosen.batch, *split.manifest.latent_shape), generator=torch.Generator().manual_seed(0))
    sigmas = diffusion.sigmas(STEPS, denoiser.tokens(split.manifest.latent_shape))
    answer = torch.randn((2 * chosen.batch, *noise.shape[1:]), generator=torch.Generator().manual_seed(1))

    def predict(xt: Tensor, sigma: Tensor, given: Sequence[Tensor]) -> Tensor:
        return denoiser.predict(xt, sigma, condition.filled(given))

    def at_once(_xt: Tensor, _sigma: Tensor, _given: Sequence[Tensor]) -> Tensor:
        return answer

    def seconds(model: Predict, sampler: str) -> float:
        start = time.perf_counter()
        sample(diffusion.definition, Guidance(3.0)(model, condition.tensors(), empty.tensors()), noise, sigmas, sampler)
        return time.perf_counter() - start

    print("| sampler | step with the model, ms | the sampler and guidance alone, ms | share |")
    print("|---|---|---|---|")
    for sampler in SAMPLERS:
        both = [(seconds(predict, sampler), seconds(at_once, sampler)) for _ in range(chosen.rounds)]
        whole, own = (1000 * statistics.median(times) / STEPS for times in zip(*both, strict=True))
        print(f"| {sampler} | {whole:.2f} | {own:.3f} | {100 * own / (whole - own):.2f} % |", flush=True)


if __name__ == "__main__":
    main()
