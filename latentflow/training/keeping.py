"""When a checkpoint is made: every so many steps, when the last is too old, at the end, and when SIGTERM asks."""

import logging
import time
from typing import NoReturn

import torch

from latentflow.params import TrainParams
from latentflow.training.averages import Snapshots
from latentflow.training.body import Body, average_file
from latentflow.training.checkpoint import Progress, copied
from latentflow.training.interruption import PreemptedError, Termination
from latentflow.training.parallel import Parallel
from latentflow.training.vault import Vault

VOTE_EVERY = 10
"""Steps between questions to the other processes, each of which waits for the device."""

log = logging.getLogger(__name__)


class Keeper:
    """Saves ``body`` in ``vault``. All processes take part in a checkpoint, so they agree on its step first."""

    def __init__(
        self,
        params: TrainParams,
        parallel: Parallel,
        body: Body,
        vault: Vault,
        snapshots: Snapshots,
        termination: Termination,
    ) -> None:
        self._params, self._parallel, self._body, self._vault = params, parallel, body, vault
        self._snapshots = snapshots
        self._termination = termination
        self.asked = False
        """Whether every process knows that SIGTERM came to one of them."""
        self._saved: int | None = None
        self._clock = time.monotonic()

    def due(self, done: int) -> bool:
        """Whether a checkpoint is to be made after ``done`` steps; where ``asked`` is set, `leave` is to follow."""
        by_steps = done % self._params.checkpoint_every == 0 or done == self._params.steps
        asked, old = self._agreed(done)
        return by_steps or asked or old

    def save(self, progress: Progress) -> None:
        """Copies the state now and writes it in the background; once per step."""
        if self._saved == progress.step:
            return
        state = self._body.state.gathered(self._parallel.main)
        self._saved, self._clock = progress.step, time.monotonic()
        if self._parallel.main:
            losses = {int(step): loss for step, loss, *_ in progress.curves["validation"]}
            self._vault.save(progress.step, lambda folder: state.write(folder, progress), losses)

    def leave(self, done: int) -> NoReturn:
        """Raises PreemptedError once the checkpoint of ``done`` is written."""
        self._parallel.everywhere(self._vault.wait)
        log.warning("ended as asked; the same command goes on from the %s", self._vault.describe_newest())
        raise PreemptedError(done)

    def snapshot(self, done: int) -> None:
        """Keeps the power-function averages, ``ema_snapshots`` times over the run, the last time at its end."""
        steps, times = self._params.steps, self._params.ema_snapshots
        if not self._params.ema_lengths or done not in {-(-steps * number // times) for number in range(1, times + 1)}:
            return
        for length in self._params.ema_lengths:
            tensors = copied(self._body.state.averages[average_file(length)].averages, self._parallel.main)
            if self._parallel.main:
                self._snapshots.save(done, length, tensors)

    def _agreed(self, done: int) -> tuple[bool, bool]:
        """(whether any process was asked to end, whether the main process finds the last checkpoint too old)."""
        minutes = self._params.checkpoint_minutes
        old = bool(minutes) and self._parallel.main and time.monotonic() - self._clock > 60 * minutes
        if self._parallel.processes == 1:
            self.asked = self._termination.asked
            return self.asked, old
        if done % VOTE_EVERY:
            return False, False
        votes = torch.tensor([float(self._termination.asked), float(old)], device=self._parallel.device)
        self.asked, old = (bool(vote) for vote in self._parallel.largest(votes).tolist())
        return self.asked, old
