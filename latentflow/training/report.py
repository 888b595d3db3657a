"""What a training tells on the way: figures, held-out loss and pictures, into curves and to an observer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from latentflow.params import TrainParams
from latentflow.training.body import Body
from latentflow.training.checkpoint import Curves
from latentflow.training.preview import Preview
from latentflow.training.watch import Watch


@dataclass(frozen=True)
class Observer:
    """Where reports go: figures and latents of the fixed captions, by step; and the id of the run that takes them."""

    metrics: Callable[[dict[str, float], int], None]
    samples: Callable[[Tensor, int], None]
    run_id: Callable[[], str]


@dataclass(frozen=True)
class Report:
    """``curves`` grow by rows: train (step, loss, norm, rate), validation and, of the last one, validation_by_sigma."""

    params: TrainParams
    body: Body
    watch: Watch
    preview: Preview
    observer: Observer
    curves: Curves

    def figures(self, done: int, rate: float) -> None:
        """The window's figures, every ``log_every`` steps and at the end."""
        if done % self.params.log_every and done != self.params.steps:
            return
        figures = self.watch.close(rate)
        self.curves["train"].append([done, figures["train/loss"], figures["train/gradient_norm"], rate])
        self.observer.metrics(figures, done)

    def views(self, done: int) -> None:
        """Held-out loss and pictures where they are due; a resumed run makes those that its checkpoint came before."""
        validation, last = self.curves["validation"], done == self.params.steps
        measured = bool(validation) and validation[-1][0] >= done
        validate = (done % self.params.validate_every == 0 or last) and not measured
        draw = done % self.params.sample_every == 0 or last
        if not done or not (validate or draw):
            return
        with self.watch.aside(), self.body.averaged():
            if validate:
                self._heldout(done)
            if draw:
                self.observer.samples(self.preview.pictures(), done)

    def _heldout(self, done: int) -> None:
        loss = self.preview.heldout()
        self.curves["validation"].append([done, loss.mean, loss.half_width])
        self.curves["validation_by_sigma"] = [[level.sigma, level.mean, level.half_width] for level in loss.by_sigma]
        by_sigma = {f"validation/loss_at_sigma/{level.sigma:.3g}": level.mean for level in loss.by_sigma}
        self.observer.metrics({"validation/loss": loss.mean} | by_sigma, done)
