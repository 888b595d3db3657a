"""One measurement that needs a process of its own; benchmarks/train.py starts it and reads the last line.

python benchmarks/train_once.py memory SETTING PARTY STEPS    the most memory that a loop held, and held before
python benchmarks/train_once.py start SETTING FOLDER STEPS    trains on from FOLDER and is killed after STEPS steps
"""

import json
import os
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from train_parties import PARTIES, Clock, Setting, Stage, ours


def tell(**figures: float) -> None:
    print(json.dumps(figures), flush=True)


def most_memory(device: torch.device) -> int:
    """Bytes: of the device's memory that tensors took, or of this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def memory(stage: Stage, name: str, steps: int) -> None:
    party = next(party for party in PARTIES if party.name == name)
    Clock(stage.device, 0, steps).run(partial(party.train, stage))
    tell(peak=most_memory(stage.device))


def start(stage: Stage, folder: Path, steps: int) -> None:
    """Says when the first step was done and from which it went on; in the end it is as if the node went down."""
    from_step: list[int] = []
    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if stage.device.type == "cuda":
            torch.cuda.synchronize()
        if done == 1:
            tell(time=time.time(), from_step=from_step[0])
        if done == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    register_optimizer_step_post_hook(count)
    ours(stage, folder, from_step.append)


def main(words: list[str]) -> None:
    mode, setting, what, steps = words
    stage = Stage(Setting(**json.loads(setting)))
    if mode == "memory":
        memory(stage, what, int(steps))
    else:
        start(stage, Path(what), int(steps))


if __name__ == "__main__":
    main(sys.argv[1:])
