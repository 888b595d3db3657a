"""The training loop of the seed: noise a sample, predict, regress on the target. Reads top to bottom."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from latentflow.data.encoded import EncodedSet
from latentflow.denoisers import Denoiser
from latentflow.diffusion import Diffusion
from latentflow.errors import LatentflowError
from latentflow.params import TrainParams
from latentflow.progress import track
from latentflow.training import flops, loader
from latentflow.training.averages import Snapshots
from latentflow.training.batches import Batch, Batches
from latentflow.training.body import Body
from latentflow.training.checkpoint import Curves, Identity, Progress
from latentflow.training.interruption import Interrupted, Termination
from latentflow.training.keeping import Keeper
from latentflow.training.parallel import Parallel
from latentflow.training.preview import Preview
from latentflow.training.report import Observer, Report
from latentflow.training.vault import Checkpoint, Vault
from latentflow.training.watch import Seen, Speed, Watch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is trained, on what, and where its checkpoints and the snapshots of its averages lie."""

    params: TrainParams
    diffusion: Diffusion
    denoiser: Denoiser
    encoded: EncodedSet
    vault: Vault
    snapshots: Snapshots
    identity: Identity


def learning_rate(params: TrainParams, step: int) -> float:
    """The learning rate of ``step``, from 0: a linear rise, then cosine, one-cycle or constant.

    ``one_cycle`` rises along a cosine, as PyTorch's OneCycleLR; ``cosine`` rises along a line.
    """
    done = (step + 1) / params.steps
    if done < params.warmup_fraction:
        rise = done / params.warmup_fraction
        return params.learning_rate * (rise if params.schedule != "one_cycle" else (1 - math.cos(math.pi * rise)) / 2)
    if params.schedule == "constant":
        return params.learning_rate
    fall = (step / params.steps - params.warmup_fraction) / max(1e-9, 1 - params.warmup_fraction)
    return params.learning_rate * (1 + math.cos(math.pi * max(0.0, fall))) / 2


def train(
    job: Job, parallel: Parallel, start: Callable[[Progress | None], Observer], named: Checkpoint | None = None
) -> tuple[nn.Module, Curves]:
    """Trains ``job.denoiser.model`` from ``named``, else from its newest checkpoint, else from the beginning.

    Returns the averaged model and the curves (train, validation, validation_by_sigma). ``start`` is told
    the progress that was restored and answers where to report. Raises LatentflowError when the loss is no longer
    finite or leaps, PreemptedError after SIGTERM and a checkpoint.
    """
    params, definition, share = job.params, job.denoiser.definition, parallel.share
    log.info("%s, in %s on %s", share, parallel.precision, parallel.device)
    speed = _speed(job, parallel)
    body = Body.build(params, job.denoiser, parallel)
    progress = _restored(job, body, parallel, named)
    observer = start(progress)
    curves: Curves = progress.curves if progress else {"train": [], "validation": [], "validation_by_sigma": []}
    batches = Batches(params, definition, job.encoded, share.positions, body.ideas)
    watch = Watch(params, definition, parallel, speed, batches.ids, job.vault.describe_newest)
    if progress:
        watch.restore(progress.watch)

    def now(done: int) -> Progress:
        # A copy, because it is written while the curves grow.
        return Progress(done, job.identity, observer.run_id(), deepcopy(curves), watch.state())

    with Termination() as termination, torch.random.fork_rng():
        # Among several processes none may leave alone: they agree between steps.
        look = termination.look if parallel.processes == 1 else _never
        preview = Preview(params, parallel, job.diffusion, job.denoiser, job.encoded, look)
        report = Report(params, body, watch, preview, observer, curves)
        keeper = Keeper(params, parallel, body, job.vault, job.snapshots, termination)
        steps = range(progress.step if progress else 0, params.steps)
        try:
            report.views(steps.start)
        except Interrupted:
            keeper.leave(steps.start)
        with loader.ahead(batches, steps, loader.ready_for(parallel.device)) as ready:
            timed = zip(steps, _timed(ready), strict=True)
            for step, (batch, waited) in track(timed, "train", len(steps), "steps", lambda: watch.line):
                rate = learning_rate(params, step)
                body.begin(step, rate)
                batch = batch.to(parallel.device, parallel.dtype)
                losses, errors = [], []
                for number, part in enumerate(batch.parts(share.passes)):
                    last = number == share.passes - 1
                    with parallel.synced(body.trained.model, last), parallel.activations(), parallel.kernels():
                        loss, error = body.forward(part, step, share.places(number))
                        body.state.scaler.scale(loss / share.passes).backward()
                    losses.append(loss.detach())
                    errors.append(error)
                norm = body.update(step)
                watch.add(Seen(step, torch.stack(losses).mean(), norm, torch.cat(errors), batch.sigma), waited)

                done = step + 1
                report.figures(done, rate)
                with watch.aside():
                    keeper.snapshot(done)
                if keeper.due(done):
                    with watch.aside():
                        keeper.save(now(done))
                    if keeper.asked:
                        keeper.leave(done)
                try:
                    report.views(done)
                except Interrupted:
                    keeper.save(now(done))
                    keeper.leave(done)
        model = body.delivered()
        try:
            parallel.everywhere(job.vault.wait)
        except LatentflowError as error:
            # The model itself is whole.
            log.warning("%s", error)
    return model, curves


def _restored(job: Job, body: Body, parallel: Parallel, named: Checkpoint | None) -> Progress | None:
    """Puts the state of the newest checkpoint, if later, or the named one into ``body``; None where there is none."""
    newest = job.vault.newest()
    checkpoint = newest if named is None or (newest and newest.step > named.step) else named
    if named and checkpoint is not named:
        log.warning("of this training there is a later checkpoint than the named one, which is taken")
    step = checkpoint.step if checkpoint else 0
    if parallel.largest(torch.tensor([step, -step], device=parallel.device)).sum().item():
        raise LatentflowError(
            f"this process finds a checkpoint of step {step} in {job.vault} and another process another one: keep "
            "checkpoints (LATENTFLOW_CHECKPOINTS) where all nodes see them, on a shared volume or in a bucket."
        )
    if checkpoint is None:
        return None
    body.state.restore(checkpoint.folder)
    log.info("going on from step %d of %s", checkpoint.step, checkpoint.folder)
    return Progress.read(checkpoint.folder)


def _speed(job: Job, parallel: Parallel) -> Speed:
    cost = flops.forward_flops(job.denoiser, job.encoded.manifest.latent_shape, job.encoded.empty)
    return Speed(cost, flops.measured_peak(parallel.device, parallel.computed_in) if cost else 0.0)


def _timed(ready: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch and the seconds for which the loop waited for it."""
    iterator = iter(ready)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - start


def _never() -> None:
    """Looks for nothing."""
