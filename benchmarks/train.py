"""Our training loop against others on the same body, and what it costs in memory, checkpoints, resuming and waiting.

    python benchmarks/train.py [--small] [--model xl2] [--batch 64] [--rounds 3] [--steps 20] [--parts loops memory ...]

All loops train the same DiT (the demo's, or with `--model xl2` one of DiT-XL/2's size) on the same random latents and
text with the same loss, fused AdamW, clipping, average and precision, in one process and in turns: a round lets each
take `--steps` steps after three that are not counted. A figure is the median step of a turn, and of these the median
over rounds; the spread is that between rounds. The mean also holds what only some steps do, such as logging. Batches
are of 1 and of the largest power of two with which the bare loop takes up to 85 % of a GPU's memory (1024 at most), or
of 64 on a CPU.

A peer that cannot be imported or fails is named with its error and left out. DiffSynth-Studio pins other versions than
the project and needs an environment of its own, which sees the project's:

    python -m venv /tmp/peers
    echo <the project's site-packages> > /tmp/peers/lib/python3.11/site-packages/project.pth
    /tmp/peers/bin/pip install --no-deps diffsynth     and what its import still asks for
"""

import argparse
import gc
import io
import json
import logging
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from train_parties import BARE, OURS, PARAMS, PARTIES, SIZES, Clock, Party, Setting, Stage, Turn

from latentflow import params as parameters
from latentflow.data.condition import Condition
from latentflow.devices import best_device
from latentflow.training.flops import FORWARDS_PER_STEP, forward_flops, measured_peak

ONCE = Path(__file__).with_name("train_once.py")
LARGEST = 1024
SKIPPED = 3
CHECKPOINTS = 3
PARTS = ["loops", "memory", "checkpoints", "resume"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Figures:
    """Every loop's turns, and what went wrong instead."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def of(self, party: Party, one: Callable[[Turn], float]) -> float:
        return statistics.median(map(one, self.turns[party.name]))

    def step(self, party: Party) -> float:
        return self.of(party, lambda turn: turn.median)

    def spread(self, party: Party) -> float:
        """How far the rounds' medians lie apart, as a share of theirs."""
        medians = [turn.median for turn in self.turns[party.name]]
        return (max(medians) - min(medians)) / statistics.median(medians)


def clear() -> None:
    """Leaves no loop anything of those before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def take_turns(parties: Sequence[Party], rounds: int, stage: Stage, clock: Clock) -> Figures:
    figures = Figures()
    for number in range(rounds):
        first = number % len(parties)
        for party in (*parties[first:], *parties[:first]):
            if party.name in figures.failed:
                continue
            try:
                # Their progress bars.
                with clock.listen(), redirect_stderr(io.StringIO()):
                    turn = clock.run(partial(party.train, stage))
                figures.turns.setdefault(party.name, []).append(turn)
                print(f"{party.name}: {1000 * turn.median:.1f} ms", file=sys.stderr, flush=True)
            except Exception as error:  # whatever a foreign package raises is its reason
                if party in (OURS, BARE):
                    raise
                figures.failed[party.name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            clear()
    return figures


def show(figures: Figures, stage: Stage, peak: float) -> None:
    batch, there = stage.setting.batch, [party for party in PARTIES if party.name in figures.turns]
    bare = figures.step(BARE) if BARE in there else float("nan")
    titles = ["loop", "ms/step", "mean", "times the bare loop", "spread", "images/s"]
    titles += ["MFU", "besides"] if peak else ["besides"]
    print(f"\nBatch {batch}\n\n| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    flop = FORWARDS_PER_STEP * batch * sample_flops(stage) if peak else 0
    for party in there:
        median, mean = figures.step(party), figures.of(party, lambda turn: statistics.mean(turn.steps))
        cells = [party.name, f"{1000 * median:.2f}", f"{1000 * mean:.2f}", f"{median / bare:.3f}"]
        cells += [f"{100 * figures.spread(party):.1f} %", f"{batch / median:,.1f}"]
        cells += [f"{100 * flop / median / peak:.1f} %"] if peak else []
        print(f"| {' | '.join([*cells, party.besides])} |")
    for name, error in figures.failed.items():
        print(f"\n{name} is left out: {error}")


def sample_flops(stage: Stage) -> int:
    size = SIZES[stage.setting.size]
    tokens, width = size.text
    caption = Condition(torch.zeros(1, tokens, width), torch.ones(1, tokens, dtype=torch.bool))
    return forward_flops(stage.denoiser(), size.latents, caption)


def largest_batch(setting: Setting) -> int:
    """The largest power of two with which the bare loop leaves some of the GPU's memory free."""
    device, fits, batch = best_device(), 1, 2
    room = 0.85 * torch.cuda.get_device_properties(device).total_memory
    while batch <= LARGEST:
        clear()
        torch.cuda.reset_peak_memory_stats()
        try:
            Clock(device, 0, 2).run(partial(BARE.train, Stage(replace(setting, batch=batch))))
        except torch.OutOfMemoryError:
            break
        if torch.cuda.max_memory_allocated() > room:
            break
        fits, batch = batch, 2 * batch
    clear()
    return fits


def once(mode: str, setting: Setting, what: str, steps: int) -> dict[str, float]:
    """One measurement in a process of its own. Raises RuntimeError with the last thing that it said."""
    command = [sys.executable, str(ONCE), mode, json.dumps(asdict(setting)), what, str(steps)]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, -signal.SIGKILL) or not done.stdout:
        raise RuntimeError(" ".join((done.stderr.strip() or "ended without a word").split())[-300:])
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"seconds": figures.get("time", began) - began}


def memory_rows(setting: Setting) -> list[tuple[str, str]]:
    """The most memory of our loop against the bare loop's, without checkpoints and with the copies that one takes.

    Those are in the CPU's memory, which on a GPU is another than what is measured.
    """
    bare = once("memory", setting, BARE.name, 6)["peak"]
    rows = []
    for name, every in (("", setting.checkpoint_every), (" with its checkpoints", 3)):
        ours = once("memory", replace(setting, checkpoint_every=every), OURS.name, 6)["peak"]
        title = f"memory at batch {setting.batch}, latentflow{name} and the bare loop"
        rows.append((title, f"{ours / 2**20:,.0f} MiB and {bare / 2**20:,.0f} MiB, {ours / bare:.3f} times"))
    return rows


def checkpoint_rows(setting: Setting) -> list[tuple[str, str]]:
    """What a checkpoint takes of the step after which it is made, and of those beside which it is written.

    Between two checkpoints the first half of the steps is held against the second, in which nothing is written.
    """
    every, half = setting.checkpoint_every, setting.checkpoint_every // 2
    turn = Clock(best_device(), 0, CHECKPOINTS * every + 2 * half).run(partial(OURS.train, Stage(setting)))
    starts = range(every - 1, CHECKPOINTS * every, every)
    calm = statistics.median(step for start in starts for step in turn.steps[start + half : start + 2 * half])
    blocked = statistics.median(turn.steps[start] for start in starts) - calm
    halves = [(turn.steps[start : start + half], turn.steps[start + half : start + 2 * half]) for start in starts]
    whole = statistics.median(sum(first) - sum(second) for first, second in halves)
    usual = parameters.load(PARAMS).train.checkpoint_every

    def row(name: str, seconds: float) -> tuple[str, str]:
        share = seconds / (seconds + usual * calm)
        return name, f"{seconds:.3f} s, {100 * share:.2f} % of the time if every {usual} steps"

    return [row("a checkpoint blocks training for", blocked), row("and with the steps that it slows costs", whole)]


def resume_rows(setting: Setting, folder: Path, rounds: int) -> list[tuple[str, str]]:
    """From the start of a process to its first new step, anew and after a kill half-way between two checkpoints."""
    killed = setting.checkpoint_every + (setting.checkpoint_every + 1) // 2
    fresh, resumed = [], []
    for number in range(rounds):
        place = folder / f"checkpoints-{number}"
        fresh.append(once("start", setting, str(place), killed))
        resumed.append(once("start", setting, str(place), 1))
        shutil.rmtree(place)
    anew, after = (statistics.median(one["seconds"] for one in ones) for ones in (fresh, resumed))
    rework = max(killed - one["from_step"] for one in resumed)
    return [
        ("from a process's start to its first step, resumed and anew", f"{after:.2f} s and {anew:.2f} s"),
        (f"steps done again, killed after {killed} with checkpoints every {setting.checkpoint_every}", f"{rework:.0f}"),
    ]


def wait_row(figures: Figures, setting: Setting) -> tuple[str, str]:
    share = figures.of(OURS, lambda turn: turn.waiting)
    return f"share of the time for which latentflow waits for data at batch {setting.batch}", f"{100 * share:.2f} %"


def compare(parties: list[Party], settings: list[Setting], chosen: argparse.Namespace) -> list[tuple[str, str]]:
    """Prints the table of every batch size; returns how long ours waited for data."""
    device, waits = best_device(), []
    peak = 0.0
    if device.type == "cuda":
        peak = measured_peak(device, DTYPES[chosen.precision])
        name = torch.cuda.get_device_name(device)
        print(f"{name}, {chosen.precision}, {peak / 1e12:,.0f} TFLOP/s in a matrix product")
    for setting in settings:
        stage, clock = Stage(setting), Clock(device, chosen.skip, chosen.steps, chosen.seconds)
        figures = take_turns(parties, chosen.rounds, stage, clock)
        show(figures, stage, peak)
        if OURS.name in figures.turns:
            waits.append(wait_row(figures, setting))
    return waits


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--small", action="store_true", help="a tiny model, a few steps: shows that everything runs")
    options.add_argument("--model", choices=["demo", "xl2"], default="demo")
    options.add_argument("--batch", type=int, nargs="*", help="batch sizes; 1 and the largest that fits if not given")
    options.add_argument("--precision", choices=list(DTYPES), help="bf16 on a GPU, fp32 on a CPU if not given")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=20, help="counted steps of a turn")
    options.add_argument("--seconds", type=float, default=60, help="after which a turn ends with what it has")
    options.add_argument("--checkpoint-every", type=int, default=25, help="steps, where checkpoints are measured")
    options.add_argument("--only", nargs="*", default=[], help="names of loops; all that are there if not given")
    options.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    chosen = options.parse_args()
    chosen.skip = SKIPPED
    chosen.precision = chosen.precision or ("bf16" if torch.cuda.is_available() else "fp32")
    if chosen.small:
        chosen.model, chosen.batch, chosen.rounds, chosen.steps, chosen.skip = "small", [1, 4], 1, 3, 1
        chosen.checkpoint_every = 4
    return chosen


def main() -> None:
    chosen = parse()
    logging.disable(logging.WARNING)
    parties = [party for party in PARTIES if not chosen.only or party.name in chosen.only]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = Setting(chosen.model, 1, 2 * LARGEST, chosen.precision, str(folder / "encoded"))
        plain.write()
        largest = largest_batch(plain) if torch.cuda.is_available() and not chosen.batch else 64
        settings = [replace(plain, batch=batch) for batch in chosen.batch or (1, largest)]
        large = max(settings, key=lambda setting: setting.batch)
        often = replace(large, checkpoint_every=chosen.checkpoint_every)
        costs = compare(parties, settings, chosen) if "loops" in chosen.parts else []
        costs += memory_rows(large) if "memory" in chosen.parts else []
        costs += checkpoint_rows(often) if "checkpoints" in chosen.parts else []
        costs += resume_rows(often, folder, chosen.rounds) if "resume" in chosen.parts else []
    if costs:
        print("\n| what | latentflow |\n|---|---|")
        print("\n".join(f"| {what} | {figure} |" for what, figure in costs))


if __name__ == "__main__":
    main()
