"""One process among many: its device, its share of every batch, and the model spread over all of them."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from latentflow import devices
from latentflow.errors import LatentflowError
from latentflow.params import TrainParams

log = logging.getLogger(__name__)

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Share:
    """What of a global batch of ``size`` this process computes: its positions, in ``passes`` forward passes."""

    positions: slice
    passes: int
    size: int
    processes: int = 1

    def __str__(self) -> str:
        parts = f"{self.processes} processes x {self.passes} passes x {self.largest_pass} samples"
        return f"global batch {self.size}: {parts}"

    @property
    def largest_pass(self) -> int:
        """The samples of a forward pass."""
        return self.size // self.processes // self.passes

    def places(self, number: int) -> Tensor:
        """The positions (n,) int64 in the global batch of forward pass ``number``."""
        return torch.arange(self.size)[self.positions].chunk(self.passes)[number]


def share(params: TrainParams, rank: int, processes: int) -> Share:
    """This process's share. Raises LatentflowError where processes and passes do not divide the batch evenly."""
    size, most = params.batch_size, params.per_device_batch_size
    if size % processes:
        raise LatentflowError(
            f"train.batch_size {size} is the global batch and is not a multiple of the {processes} processes; change "
            "one."
        )
    mine = size // processes
    if most and mine > most and mine % most:
        raise LatentflowError(
            f"train.batch_size {size} on {processes} processes is {mine} samples each, not a multiple of "
            f"train.per_device_batch_size {most}; change one."
        )
    return Share(slice(rank, None, processes), max(1, mine // most) if most else 1, size, processes)


class Parallel:
    """The processes of one training, started by torchrun or accelerate, or the only one."""

    def __init__(self, params: TrainParams, device: torch.device, rank: int, processes: int) -> None:
        self.device = device
        self.rank = rank
        self.processes = processes
        self.share = share(params, rank, processes)
        self.precision = devices.precision(params.precision)
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        self.computed_in = _AUTOCAST.get(self.precision, self.dtype)
        self._params = params

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def place(self, module: nn.Module) -> None:
        """Moves a module's weights to this process's device, in the type in which they are kept.

        What is sharded goes there part by part, when it is.
        """
        if self._params.sharding != "fsdp2":
            module.to(self.device)
        if self.dtype != torch.float32:
            module.to(self.dtype)

    def spread(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """What the loop calls instead of ``model``: the model itself, replicas in step, or shards.

        With fsdp2 ``model`` and ``blocks`` are sharded in place; its parameters are DTensors afterwards.
        """
        if self._params.sharding == "fsdp2":
            return self._sharded(model, blocks)
        if self.processes == 1:
            return model
        from torch.nn.parallel import DistributedDataParallel

        devices_of = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model, device_ids=devices_of, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def _sharded(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        mesh = init_device_mesh(self.device.type, (self.processes,))
        low = _AUTOCAST.get(self.precision)
        # Gathered in the type in which autocast computes; gradients are added up in fp32.
        # Inputs stay as they are: a timestep in bf16 is another one.
        precision = MixedPrecisionPolicy(
            param_dtype=low, reduce_dtype=self.dtype if low else None, cast_forward_inputs=False
        )
        offload = (
            CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
            if "optimizer" in self._params.offload
            else OffloadPolicy()
        )
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=offload)
        return model

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of a forward pass."""
        low = _AUTOCAST.get(self.precision)
        return torch.autocast(self.device.type, low) if low else nullcontext()

    def evaluation(self) -> AbstractContextManager[None]:
        """The same where nothing is trained: fp32, but for shards, which are gathered in the low precision."""
        return self.autocast() if self._params.sharding == "fsdp2" else nullcontext()

    def kernels(self) -> AbstractContextManager[None]:
        """The attention kernel, around forward and backward pass, which may compute the forward pass again."""
        return nullcontext() if self._params.attention == "auto" else _attention(self._params.attention)

    def activations(self) -> AbstractContextManager[None]:
        """Inside, what the backward pass needs is kept in the CPU's memory if the parameters say so."""
        if "activations" in self._params.offload and self.device.type != "cpu":
            return torch.autograd.graph.save_on_cpu(pin_memory=True)  # type: ignore[no-any-return]
        return nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """The loss scaler of fp16; for every other precision it does nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def synced(self, model: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around a forward and backward pass: gradients are exchanged in the last pass of a step only."""
        if self._params.sharding == "fsdp2":
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if last or self.processes == 1 else model.no_sync()  # type: ignore[operator,no-any-return]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the processes; in place."""
        if self.processes > 1:
            dist.all_reduce(values)
        return values

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes; in place."""
        return self.sum(values).div_(self.processes)

    def largest(self, values: Tensor) -> Tensor:
        """The largest of every element over the processes; in place."""
        if self.processes > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def any_true(self, here: bool) -> bool:
        """Whether ``here`` is true in any process."""
        return bool(self.largest(torch.tensor(float(here), device=self.device)).item())

    def everywhere(self, work: Callable[[], None]) -> None:
        """Does ``work`` in the main process; the others wait, and fail too if it fails."""
        failed: Exception | None = None
        if self.main:
            try:
                work()
            except Exception as error:  # told to the others before it is raised
                failed = error
        if self.any_true(failed is not None) and failed is None:
            raise LatentflowError("the main process failed; its log says why.")
        if failed is not None:
            raise failed


def reshard(model: nn.Module) -> None:
    """Drops what a sharded model gathered for a forward pass without a backward one, and would use again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def parallel(params: TrainParams) -> Iterator[Parallel]:
    """Joins the other processes, if torchrun or accelerate started several, for the time of the context."""
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = devices.best_device()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    share(params, rank, processes)
    ours = not dist.is_initialized() and (processes > 1 or params.sharding == "fsdp2")
    if ours:
        # A store of its own lets a single process shard without a launcher.
        store = None if processes > 1 else dist.HashStore()  # type: ignore[attr-defined]
        # What is offloaded is exchanged between CPUs.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=processes)
    try:
        with _deterministic(params.deterministic):
            yield Parallel(params, device, rank, processes)
    finally:
        if ours:
            dist.destroy_process_group()


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Inside, kernels whose result depends on their timing raise an error; as before afterwards."""
    before, tuned = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        # What cuBLAS asks for, before its first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = tuned


def _attention(name: str) -> AbstractContextManager[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = {
        "math": SDPBackend.MATH,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
    }
    return sdpa_kernel(kernels[name])  # type: ignore[no-any-return]
