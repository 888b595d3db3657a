"""A training of seconds, in this process or in others that can be killed: random latents and a tiny denoiser."""

import json
import logging
import multiprocessing
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from encoded_sets import Recipe, write_set
from encoding import build_autoencoder, build_text_encoder, inputs, make_records, write_pictures
from safetensors.torch import save_file
from torch import Tensor

from latentflow import denoisers
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import FAMILIES, Captions, Denoiser
from latentflow.diffusion import Diffusion
from latentflow.params import ModelParams, TrainInputs, TrainParams, load
from latentflow.steps import encode
from latentflow.steps import train as train_step
from latentflow.training import loop
from latentflow.training.averages import Snapshots
from latentflow.training.checkpoint import Curves, Identity
from latentflow.training.parallel import parallel
from latentflow.training.report import Observer
from latentflow.training.vault import Checkpoint, Keep, Vault

PARAMS = Path(__file__).parents[1] / "params.yaml"
SHAPE, TEXT_WIDTH = (4, 4, 4), 16
MODEL = {
    "denoiser": "pixart",
    "pretrained": "",
    "guidance": 1.0,
    "own": {},
    "unet": {"channels": [32], "attention": [True], "layers_per_block": 1, "head_dim": 8, "pooled_text": False},
    "pixart": {"layers": 3, "heads": 2, "head_dim": 16, "patch_size": 2},
    "auraflow": {"layers": 1, "single_layers": 1, "heads": 2, "head_dim": 16, "patch_size": 2},
}
FEW: dict[str, object] = {
    "steps": 8,
    "batch_size": 8,
    "learning_rate": 0.002,
    "warmup_fraction": 0.1,
    "caption_dropout": 0.25,
    "ema_decay": 0.9,
    "sigma_mean": 0.0,
    "precision": "fp32",
    "log_every": 2,
    "validate_every": 4,
    "sample_every": 8,
    "checkpoint_every": 3,
    "spike_factor": 0,
}


SMALL = {
    **{f"train.{name}": value for name, value in FEW.items()},
    "model.denoiser": "unet",
    "model.unet.channels": [32],
    "model.unet.attention": [True],
    "model.pixart.layers": 1,
    "model.pixart.heads": 2,
    "model.pixart.head_dim": 8,
    "model.pixart.patch_size": 2,
}


@dataclass
class Outcome:
    """What a training gave: averaged weights, curves, what was logged and drawn."""

    weights: dict[str, Tensor]
    curves: Curves
    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pictures: list[Tensor] = field(default_factory=list)


def params(changes: Mapping[str, object] | None = None) -> TrainParams:
    values = FEW | dict(changes or {})
    return load(PARAMS, [f"train.{name}={json.dumps(value)}" for name, value in values.items()]).train


def settings(**changes: object) -> TrainInputs:
    """What the step takes; ``changes`` are fields of train, or of another section as section__field."""
    named = {name.replace("__", ".") if "__" in name else f"train.{name}": value for name, value in changes.items()}
    values = SMALL | named
    params = load(PARAMS, [f"{name}={json.dumps(value)}" for name, value in values.items()])
    return TrainInputs(train=params.train, model=params.model, diffusion=params.diffusion)


def world(folder: Path) -> train_step.Sources:
    """An autoencoder and a set of sixty pictures that encode wrote with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTFLOW_STORE", str(folder / "store"))
        records = make_records(write_pictures(folder / "pictures", 60), folder / "records")
        vae = build_autoencoder(folder / "autoencoder")
        encode.run(inputs(build_text_encoder(folder / "text")), records, vae, folder / "encoded")
    return train_step.Sources(folder / "encoded", vae)


def model_params(family: str = "pixart") -> ModelParams:
    return ModelParams.model_validate(MODEL | {"denoiser": family})


def encoded_set(folder: Path) -> EncodedSet:
    """Twenty training records and a few held out; written once."""
    if not (folder / "manifest.json").is_file():
        shards = {"train": [(SHAPE, 20)], "validation": [(SHAPE, 4)], "test": [(SHAPE, 4)]}
        write_set(folder, Recipe(shards))
    return EncodedSet.open(folder)


def train(
    encoded: EncodedSet,
    checkpoints: Path,
    family: str = "pixart",
    named: Checkpoint | None = None,
    changes: Mapping[str, object] | None = None,
) -> Outcome:
    chosen = params(changes)
    diffusion = Diffusion()
    shape, width = encoded.manifest.latent_shape, encoded.manifest.text_width
    model = denoisers.start(model_params(family), shape, Captions(width), seed=0)
    job = loop.Job(
        params=chosen,
        diffusion=diffusion,
        denoiser=Denoiser(FAMILIES[family], model, diffusion.definition),
        encoded=encoded,
        vault=Vault(checkpoints, Keep(chosen.keep_last, chosen.keep_every)),
        snapshots=Snapshots(checkpoints.parent / "averages"),
        identity=Identity("key", {"train.steps": str(chosen.steps)}, {"encoded": "d"}),
    )
    outcome = Outcome({}, {})
    observer = Observer(
        metrics=lambda figures, step: outcome.logged.append((step, figures)),
        samples=lambda latents, step: outcome.pictures.append(latents),
        run_id=lambda: "run",
    )
    with parallel(chosen) as together:
        trained, outcome.curves = loop.train(job, together, lambda progress: observer, named)
    outcome.weights = {name: tensor.clone().contiguous() for name, tensor in trained.state_dict().items()}
    return outcome


def start(folder: Path, *changes: str, processes: int = 1, family: str = "pixart") -> "list[BaseProcess]":
    """The same in processes of their own, one thread each: ``folder/set`` is trained on, each writes ``out-<rank>``.

    A server that has imported everything forks them, so that many can be started and killed in little time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "peft"])
    # Where the server finds what it imports; it says nothing where it does not.
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join((str(here), str(here.parent), os.environ.get("PYTHONPATH", "")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        process = context.Process(target=_work, args=(folder, changes, family, environment))
        process.start()
        started.append(process)
    return started


def finished(folder: Path, *changes: str, processes: int = 1, family: str = "pixart") -> None:
    """Runs them to their end."""
    started = start(folder, *changes, processes=processes, family=family)
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * processes, said(folder)


def said(folder: Path, rank: int = 0) -> str:
    """What a process printed and logged."""
    return (folder / f"said-{rank}").read_text()


def _work(folder: Path, changes: Sequence[str], family: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    rank = environment["RANK"]
    with (folder / f"said-{rank}").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    torch.set_num_threads(1)
    values: dict[str, Any] = {name: json.loads(value) for name, value in (change.split("=", 1) for change in changes)}
    outcome = train(encoded_set(folder / "set"), folder / "checkpoints", family, changes=values)
    out = folder / f"out-{rank}"
    out.mkdir(exist_ok=True)
    save_file(outcome.weights, out / "weights.safetensors")
    (out / "curves.json").write_text(json.dumps(outcome.curves))
    exact = [[step, {k: v for k, v in figures.items() if k in EXACT}] for step, figures in outcome.logged]
    (out / "logged.json").write_text(json.dumps(exact))


EXACT = {"train/loss", "train/gradient_norm", "validation/loss"} | {
    f"train/loss_at_time/{low / 5:.1f}-{(low + 1) / 5:.1f}" for low in range(5)
}
"""The figures that do not measure time or memory."""
