"""When a checkpoint is made: every so many steps, when the last is too old, at the end, and when SIGTERM asks."""

import logging
import time

import torch

from latentflow.params import TrainParams
from latentflow.training.body import Body
from latentflow.training.checkpoint import Progress
from latentflow.training.interruption import PreemptedError, Termination
from latentflow.training.parallel import Parallel
from latentflow.training.vault import Vault

VOTE_EVERY = 10
"""Steps between questions to the other processes, each of which waits for the device."""

log = logging.getLogger(__name__)


class Keeper:
    """Saves ``body`` in ``vault``. All processes take part in a checkpoint, so they agree on its step first."""

    def __init__(self, params: TrainParams, parallel: Parallel, body: Body, vault: Vault, termination: Termination):
        self._params, self._parallel, self._body, self._vault = params, parallel, body, vault
        self._termination = termination
        self._saved: int | None = None
        self._asked = False
        self._clock = time.monotonic()

    def due(self, done: int) -> bool:
        """Whether a checkpoint is to be made after ``done`` steps; if SIGTERM came, `leave` is to follow."""
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

    def leave_if_asked(self, done: int) -> None:
        """Raises PreemptedError once the checkpoint of ``done`` is written, if every process knows of a SIGTERM."""
        if self._asked:
            self._vault.wait()
            log.warning("ended as asked; the same command goes on from the %s", self._vault.describe_newest())
            raise PreemptedError(done)

    def _agreed(self, done: int) -> tuple[bool, bool]:
        """(whether any process was asked to end, whether the main process finds the last checkpoint too old)."""
        minutes = self._params.checkpoint_minutes
        old = bool(minutes) and self._parallel.main and time.monotonic() - self._clock > 60 * minutes
        if self._parallel.processes == 1:
            self._asked = self._termination.asked
            return self._asked, old
        if done % VOTE_EVERY:
            return False, False
        votes = torch.tensor([float(self._termination.asked), float(old)], device=self._parallel.device)
        asked, old = (bool(vote) for vote in self._parallel.largest(votes).tolist())
        self._asked = asked
        return asked, old
