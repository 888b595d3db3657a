"""What is trained: the denoiser spread over the processes, with its optimizers, averages and ideas."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from latentflow import devices
from latentflow.denoisers import Denoiser
from latentflow.diffusion import Definition, weights
from latentflow.errors import LatentflowError
from latentflow.params import TrainParams
from latentflow.training import ideas as ideas_room
from latentflow.training import optimizers, trainable
from latentflow.training.batches import Batch
from latentflow.training.checkpoint import State, whole
from latentflow.training.ema import EMA, power, warmed_up
from latentflow.training.flops import on_meta
from latentflow.training.ideas import Forward, Idea
from latentflow.training.parallel import Parallel, reshard

EMA_FILE = "ema"


@dataclass(frozen=True)
class Body:
    """``denoiser`` computes with the whole model wherever it lies; ``trained`` is what the loop calls."""

    params: TrainParams
    parallel: Parallel
    denoiser: Denoiser
    trained: Denoiser
    ideas: list[Idea]
    ema: EMA
    state: State
    _empty: nn.Module | None = field(repr=False, default=None)

    @classmethod
    def build(cls, params: TrainParams, denoiser: Denoiser, parallel: Parallel) -> "Body":
        """Takes over ``denoiser.model``: what is to be trained of it is chosen, and it goes to its device."""
        family, model = denoiser.family, denoiser.model.train()
        trainable.choose(model, params, family)
        if params.gradient_checkpointing:
            model.enable_gradient_checkpointing()  # type: ignore[operator]
        blocks = family.blocks(model)
        inside = {id(tensor) for block in blocks for tensor in block.parameters()}
        within = {name for name, tensor in model.named_parameters() if id(tensor) in inside}
        empty = on_meta(model) if params.sharding == "fsdp2" else None
        parallel.place(model)
        with devices.seeded_weights(params.seed):
            ideas = ideas_room.build(params.ideas, denoiser, params.seed)
        along = {f"ideas.{n}.": idea.module for n, idea in enumerate(ideas) if idea.module is not None}
        if empty is not None and along:
            own = next(idea for idea in ideas if idea.module is not None)
            raise LatentflowError(f"train.sharding fsdp2 does not shard what {own} trains along; use replicate.")
        for module in along.values():
            parallel.place(module)
        if params.compile:
            for block in blocks:
                block.compile()
        spread = parallel.spread(model, blocks)
        averaged = _trained("", model)
        parameters = averaged | {k: v for prefix, module in along.items() for k, v in _trained(prefix, module).items()}
        averages = {EMA_FILE: EMA(averaged, warmed_up(params.ema_decay))}
        averages |= {average_file(length): EMA(averaged, power(length)) for length in params.ema_lengths}
        state = State(
            modules={"": model} | along,
            parameters=parameters,
            averages=averages,
            optimizers=optimizers.build(params, parameters, within),
            scaler=parallel.scaler(),
        )
        trained = replace(denoiser, model=spread)
        return cls(params, parallel, denoiser, trained, ideas, averages[EMA_FILE], state, empty)

    def begin(self, step: int, rate: float) -> None:
        """Before the passes of a step: seeds what a model may draw by itself, such as dropout, and sets the rate."""
        torch.manual_seed(devices.step_seed(self.params.seed, f"model/{self.parallel.rank}", step))
        optimizers.set_rate(self.state.optimizers, rate)

    def forward(self, batch: Batch, step: int, places: Tensor) -> tuple[Tensor, Tensor]:
        """The loss () and each sample's squared error (n,) of one forward pass."""
        definition = self.denoiser.definition
        for idea in self.ideas:
            idea.before(step, places, self.params.batch_size)
        xt = definition.add_noise(batch.x0, batch.xT, batch.sigma)
        with self.parallel.autocast():
            output = self.trained.predict(xt, batch.sigma, batch.condition).to(batch.x0.dtype)
        target = definition.target(batch.x0, batch.xT, batch.sigma)
        errors = (output - target).square().flatten(1).mean(1)
        loss = (self._weights(definition, batch.sigma) * errors).mean()
        for idea in self.ideas:
            if (extra := idea.loss(Forward(step, batch, output, target))) is not None:
                loss = loss + extra
        return loss, errors.detach()

    def update(self, step: int) -> Tensor:
        """Clips the gathered gradients, moves the weights and their averages; returns the gradient's norm ()."""
        scaler, parameters = self.state.scaler, list(self.state.parameters.values())
        self._exchange_ideas()
        for optimizer in self.state.optimizers:
            scaler.unscale_(optimizer)
        norm = whole(nn.utils.clip_grad_norm_(parameters, self.params.clip_norm, foreach=True))
        for optimizer in self.state.optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        scaler.update()
        for ema in self.state.averages.values():
            ema.update(step)
        return norm

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the denoiser has the averaged weights and is evaluated."""
        model = self.denoiser.model.eval()
        try:
            with self.ema.applied():
                yield
        finally:
            reshard(model.train())

    def delivered(self) -> nn.Module:
        """The finished model with averaged weights, whole, on the CPU, adapters merged; the training is over."""
        self.ema.swap()
        model = self.denoiser.model.eval()
        if self._empty is not None:
            model = _unsharded(model, self._empty.eval())
        return model.cpu() if self.parallel.dtype == torch.float32 else model.cpu().float()

    def _weights(self, definition: Definition, sigma: Tensor) -> Tensor:
        return weights(self.params.loss_weighting, definition, sigma, self.params.min_snr_gamma)

    def _exchange_ideas(self) -> None:
        """Their modules are not inside what DDP and FSDP keep in step."""
        if self.parallel.processes == 1:
            return
        for parameter in (
            p for idea in self.ideas if idea.module is not None for p in _trained("", idea.module).values()
        ):
            # In this process there may have been nothing to learn from.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.parallel.mean(parameter.grad)


def average_file(length: float) -> str:
    """The name, in a checkpoint, of the power-function average of that length."""
    return f"average-{length:g}"


def _trained(prefix: str, module: nn.Module) -> dict[str, nn.Parameter]:
    """A module's parameters that are trained, by name."""
    return {f"{prefix}{name}": tensor for name, tensor in module.named_parameters() if tensor.requires_grad}


def _unsharded(model: nn.Module, empty: nn.Module) -> nn.Module:
    """``empty``, a copy without values from before ``model`` was sharded, with all of its values on the CPU."""
    tensors = {name: whole(tensor).cpu() for name, tensor in model.state_dict().items()}
    empty.load_state_dict(tensors, assign=True)
    # Buffers that are in no state dict, such as tables of positions.
    for source, target in zip(model.modules(), empty.modules(), strict=True):
        for name, buffer in source.named_buffers(recurse=False):
            setattr(target, name, buffer.cpu())
    return empty
