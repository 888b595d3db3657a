"""The training loops that benchmarks/train.py compares, all on one body, and the clock that times each alike.

Every loop trains until the clock stops it. What a loop does not do by itself (a fused AdamW, clipping, an average of
the weights) is done for it around the optimizer's step, so that all compute the same.
"""

import copy
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from encoded_files import write_encoded
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Dataset

from latentflow import denoisers
from latentflow import params as parameters
from latentflow.data.condition import Condition
from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import FAMILIES, Denoiser, Family
from latentflow.devices import best_device
from latentflow.diffusion import Diffusion
from latentflow.training import loader, loop
from latentflow.training.averages import Snapshots
from latentflow.training.checkpoint import Identity, Progress
from latentflow.training.parallel import parallel
from latentflow.training.report import Observer
from latentflow.training.vault import Keep, Vault

PARAMS = Path(__file__).resolve().parents[1] / "params.yaml"
DITS = "model.pixart"


@dataclass(frozen=True)
class Size:
    """A DiT by its parameters, with the shapes of one sample's latents and text."""

    latents: tuple[int, int, int]
    text: tuple[int, int]
    overrides: tuple[str, ...] = ()


SIZES = {
    "demo": Size((4, 8, 8), (12, 384)),
    # DiT-XL/2's width, heads and patches. Its blocks have their own adaLN where these have cross-attention: with 31 of
    # these instead of 28 there are as many parameters.
    "xl2": Size(
        (4, 32, 32), (12, 384), (f"{DITS}.layers=31", f"{DITS}.heads=16", f"{DITS}.head_dim=72", f"{DITS}.patch_size=2")
    ),
    "small": Size((4, 8, 8), (4, 32), (f"{DITS}.layers=1", f"{DITS}.heads=2", f"{DITS}.head_dim=8")),
}


@dataclass(frozen=True)
class Setting:
    """What all loops train: a size of SIZES, samples per step, records, precision, our set and steps of checkpoints."""

    size: str
    batch: int
    records: int
    precision: str
    encoded: str
    checkpoint_every: int = 10**6

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, text and mask of all records, on the CPU: the same wherever they are asked for."""
        size, generator = SIZES[self.size], torch.Generator().manual_seed(0)
        latents, text = (torch.randn(self.records, *shape, generator=generator) for shape in (size.latents, size.text))
        return latents, text, torch.ones(text.shape[:2], dtype=torch.bool)

    def write(self) -> None:
        """The same records as an encoded set, with a few to validate on."""
        latents, text, _ = self.tensors()
        few = slice(0, 8)
        parts = (("train", latents, text), ("validation", latents[few], text[few]), ("test", latents[few], text[few]))
        write_encoded(Path(self.encoded), parts)


class Body(nn.Module):
    """The denoiser as a plain module that is told σ in [0, 1]: what every loop but ours trains."""

    def __init__(self, family: Family, model: nn.Module) -> None:
        super().__init__()
        self.family = family
        self.model = model

    def forward(self, xt: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return self.family.predict(self.model, xt, 1000 * sigma, Condition(text, mask))


def flow_loss(body: nn.Module, x0: Tensor, text: Tensor, mask: Tensor) -> Tensor:
    """One flow matching loss with noise and σ drawn on the device, as plain as can be."""
    sigma, noise = torch.sigmoid(1.2 + torch.randn(len(x0), device=x0.device)), torch.randn_like(x0)
    share = sigma[:, None, None, None]
    return F.mse_loss(body((1 - share) * x0 + share * noise, sigma, text, mask).float(), noise - x0)


class Average:
    """The averaged weights, moved by one call for all tensors."""

    def __init__(self, body: nn.Module, decay: float) -> None:
        self.current = list(body.parameters())
        self.tensors = [tensor.detach().clone() for tensor in self.current]
        self.decay = decay

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self.tensors, self.current, 1 - self.decay)


class Rows(Dataset[Any]):
    """Records one by one as (latents, (text, mask))."""

    def __init__(self, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, row: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        latents, text, mask = (tensor[row] for tensor in self.tensors)
        return latents, (text, mask)


class Stage:
    """One setting, made ready: the same weights and records for whoever comes."""

    def __init__(self, setting: Setting) -> None:
        size = SIZES[setting.size]
        train = {
            # More than any turn takes.
            "steps": 10**5,
            "batch_size": setting.batch,
            "precision": setting.precision,
            "checkpoint_every": setting.checkpoint_every,
            # Neither is part of a step, nor of any other loop.
            "validate_every": 10**6,
            "sample_every": 10**6,
        }
        overrides = [*size.overrides, *(f"train.{name}={value}" for name, value in train.items())]
        params = parameters.load(PARAMS, overrides)
        self.setting = setting
        self.train = params.train
        self.diffusion = Diffusion()
        self.device = best_device()
        self.family = FAMILIES[params.model.denoiser]
        self._weights = denoisers.build(params.model, list(size.latents), size.text[1], 0)

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The records in memory, for those who ask."""
        return self.setting.tensors()

    def denoiser(self) -> Denoiser:
        """A denoiser that nobody has trained, on the CPU."""
        return Denoiser(self.family, copy.deepcopy(self._weights), self.diffusion.definition)

    def body(self) -> Body:
        """The same as a plain module on the device."""
        return Body(self.family, self.denoiser().model).to(self.device).train()

    @property
    def mixed(self) -> str:
        """The precision in accelerate's words."""
        return "no" if self.setting.precision == "fp32" else self.setting.precision

    @property
    def adamw(self) -> dict[str, Any]:
        train = self.train
        return {
            "lr": train.learning_rate,
            "betas": (0.9, train.beta2),
            "weight_decay": train.weight_decay,
            "fused": True,
        }

    def rows(self) -> DataLoader[Any]:
        return DataLoader(Rows(self.tensors), self.setting.batch, shuffle=True, drop_last=True)

    @contextmanager
    def completed(self, body: nn.Module) -> Iterator[None]:
        """Inside, a loop that makes a plain AdamW gets a fused one, clipped gradients and an average."""
        average = Average(body, self.train.ema_decay)

        def clip(*_: object) -> None:
            nn.utils.clip_grad_norm_(body.parameters(), self.train.clip_norm)

        hooks = (
            register_optimizer_step_pre_hook(clip),
            register_optimizer_step_post_hook(lambda *_: average.update()),
        )
        own = {name: value for name, value in self.adamw.items() if name in ("betas", "fused")}
        try:
            with patch.object(torch.optim, "AdamW", partial(torch.optim.AdamW, **own)):
                yield
        finally:
            for hook in hooks:
                hook.remove()


class EnoughError(Exception):
    """Stops a loop that has taken its steps."""


@dataclass(frozen=True)
class Turn:
    """Seconds of each counted step, and of these the share for which our loop waited for its batch."""

    steps: list[float]
    waiting: float

    @property
    def median(self) -> float:
        return statistics.median(self.steps)


@dataclass
class Clock:
    """Times ``count`` steps after ``skip`` others, by a hook that is called after every optimizer's step.

    On a GPU the hook records events, so that nothing waits for the device that would not anyway. A turn that takes more
    than ``seconds`` ends with what it has, two counted steps at least.
    """

    device: torch.device
    skip: int
    count: int
    seconds: float = float("inf")
    _marks: list[Any] = field(default_factory=list)
    _waits: list[float] = field(default_factory=list)
    _began: float = 0.0

    def run(self, train: Callable[[], None]) -> Turn:
        """Lets a loop train until it has taken its steps."""
        self._marks, self._waits, self._began = [], [], time.perf_counter()
        hook = register_optimizer_step_post_hook(self._mark)
        try:
            train()
        except EnoughError:
            pass
        finally:
            hook.remove()
        steps = self._steps()[self.skip :]
        return Turn(steps, sum(self._waits[-len(steps) :]) / sum(steps))

    def _mark(self, *_: object) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())
        counted = len(self._marks) - 1 - self.skip
        late = time.perf_counter() - self._began > self.seconds
        if counted >= self.count or (late and counted >= 2):
            raise EnoughError

    def _steps(self) -> list[float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            pairs = zip(self._marks, self._marks[1:], strict=False)
            return [before.elapsed_time(after) / 1000 for before, after in pairs]
        return [after - before for before, after in zip(self._marks, self._marks[1:], strict=False)]

    def listen(self) -> AbstractContextManager[Any]:
        """Inside, the time for which our loop waits for batches is taken down."""
        original = loader.ahead

        @contextmanager
        def ahead(*given: Any) -> Iterator[Iterator[Any]]:
            with original(*given) as ready:
                yield self._timed(ready)

        return patch.object(loader, "ahead", ahead)

    def _timed(self, ready: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.perf_counter()
            try:
                batch = next(ready)
            except StopIteration:
                return
            self._waits.append(time.perf_counter() - start)
            yield batch


@dataclass(frozen=True)
class Party:
    """A loop, and what it is and does besides the steps that all take."""

    name: str
    train: Callable[[Stage], None]
    besides: str


def ours(stage: Stage, checkpoints: Path, told: Callable[[int], None]) -> None:
    """latentflow's loop; ``told`` hears from which step it goes on."""

    def start(progress: Progress | None) -> Observer:
        told(progress.step if progress else 0)
        return Observer(metrics=lambda *_: None, samples=lambda *_: None, run_id=lambda: "")

    job = loop.Job(
        params=stage.train,
        diffusion=stage.diffusion,
        denoiser=stage.denoiser(),
        encoded=EncodedSet.open(stage.setting.encoded),
        vault=Vault(checkpoints, Keep(stage.train.keep_last, stage.train.keep_every)),
        snapshots=Snapshots(checkpoints.parent / "averages"),
        identity=Identity("benchmark", {}, {}),
    )
    with parallel(stage.train) as alone:
        try:
            loop.train(job, alone, start)
        finally:
            job.vault.wait()  # the clock stops the loop while a checkpoint may be on its way


def train_ours(stage: Stage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours(stage, Path(folder) / "checkpoints", lambda _: None)


def train_bare(stage: Stage) -> None:
    body, tensors = stage.body(), [tensor.to(stage.device) for tensor in stage.tensors]
    optimizer = torch.optim.AdamW(body.parameters(), **stage.adamw)
    average = Average(body, stage.train.ema_decay)
    while True:
        rows = torch.randint(len(tensors[0]), (stage.setting.batch,), device=stage.device)
        with torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.mixed == "bf16"):
            loss = flow_loss(body, *(tensor[rows] for tensor in tensors))
        loss.backward()
        nn.utils.clip_grad_norm_(body.parameters(), stage.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()


def train_script(stage: Stage) -> None:
    """What diffusers' example scripts do in every step, without their evaluation and saving."""
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator, body = Accelerator(mixed_precision=stage.mixed), stage.body()
    average = EMAModel(body.parameters(), decay=stage.train.ema_decay, foreach=True)
    average.to(accelerator.device)
    optimizer = torch.optim.AdamW(body.parameters(), **stage.adamw)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=10, num_training_steps=stage.train.steps)
    body, optimizer, rows, rate = accelerator.prepare(body, optimizer, stage.rows(), rate)
    while True:
        for latents, (text, mask) in rows:
            with accelerator.accumulate(body):
                loss = flow_loss(body, latents, text, mask)
                logged = accelerator.gather(loss.repeat(len(latents))).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(body.parameters(), stage.train.clip_norm)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                average.step(body.parameters())
            logged.item()  # the scripts log every step's loss


class SmallBody(nn.Module):
    """The body as smalldiffusion's loop calls it: σ (n, 1, 1, 1), text and mask as one condition."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, xt: Tensor, sigma: Tensor, cond: tuple[Tensor, Tensor]) -> Tensor:
        output: Tensor = self.body(xt, sigma.flatten(), *cond)
        return output

    def get_loss(self, x0: Tensor, sigma: Tensor, eps: Tensor, cond: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(self((1 - sigma) * x0 + sigma * eps, sigma, cond).float(), eps - x0)


def smalldiffusion_alone() -> ModuleType:
    """Its file of schedules and the loop: the package as a whole imports torchvision and einops."""
    package = importlib.util.find_spec("smalldiffusion")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'smalldiffusion'")
    spec = importlib.util.spec_from_file_location("loop_alone", Path(package.origin).with_name("diffusion.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_smalldiffusion(stage: Stage) -> None:
    from accelerate import Accelerator

    library, body = smalldiffusion_alone(), stage.body()
    accelerator, rate = Accelerator(mixed_precision=stage.mixed), stage.train.learning_rate
    schedule = library.ScheduleLogNormalFlow()
    with stage.completed(body):
        steps = library.training_loop(stage.rows(), SmallBody(body), schedule, accelerator, lr=rate, conditional=True)
        for _ in steps:
            pass


class OneByOne(Rows):
    """Records as DiffSynth-Studio's loop takes them: each a batch of its own, without what it kept in its cache."""

    load_from_cache = False

    def __getitem__(self, row: int) -> Any:
        return [tensor[row, None] for tensor in self.tensors]


def train_diffsynth(stage: Stage) -> None:
    from accelerate import Accelerator
    from diffsynth.diffusion.logger import ModelLogger
    from diffsynth.diffusion.runner import launch_training_task
    from diffsynth.diffusion.training_module import DiffusionTrainingModule

    class Task(DiffusionTrainingModule):  # type: ignore[misc]
        def __init__(self, body: Body) -> None:
            super().__init__()
            self.body = body

        def forward(self, data: list[Tensor]) -> Tensor:
            return flow_loss(self.body, *data)

    # It takes samples one by one, and a larger batch as so many accumulated.
    accelerator = Accelerator(mixed_precision=stage.mixed, gradient_accumulation_steps=stage.setting.batch)
    task = Task(stage.body())
    with stage.completed(task), tempfile.TemporaryDirectory() as folder:
        launch_training_task(
            accelerator,
            OneByOne(stage.tensors),
            task,
            ModelLogger(folder),
            learning_rate=stage.train.learning_rate,
            weight_decay=stage.train.weight_decay,
            num_workers=0,
            save_steps=10**6,
            num_epochs=10**6,
        )


OURS = Party("latentflow", train_ours, "reads its set from disk, noise by (seed, step, position), logs, can resume")
BARE = Party("a bare loop", train_bare, "nothing: tensors on the device, noise drawn there")
PARTIES = (
    OURS,
    BARE,
    Party("diffusers script", train_script, "accelerate, DataLoader, EMAModel, logs every step's loss"),
    Party("smalldiffusion", train_smalldiffusion, "accelerate, DataLoader; clipping and average are lent to it"),
    Party("DiffSynth-Studio", train_diffsynth, "accelerate, DataLoader, one sample at a time; the same is lent to it"),
)
