"""TREAD (Krause et al. 2025, arXiv 2501.04765): in training some tokens skip the blocks from an early to a late one.

Taken from the paper: which tokens is drawn anew for every sample and step; they come back unchanged, and the loss is
that of all tokens. With 12 blocks or more the first 2 and the last 4 see every token, about the paper's best route; 0.5
is the share there. Different here: models of fewer blocks keep the proportions of 12, down to 3 blocks; there is one
route; pictures are drawn as without the idea, where the paper can also put routed tokens in the empty caption's place.
"""

from typing import TYPE_CHECKING, Any

from latentflow.errors import LatentflowError
from latentflow.training.ideas import Idea

if TYPE_CHECKING:
    from torch import Tensor, nn

    from latentflow.denoisers import Denoiser

MODEL = "PixArtTransformer2DModel"


class Tread(Idea):
    """The number is the share of the tokens that skip blocks; one token at least never does."""

    bounds = (0.0, 1.0)

    def __init__(self, value: float, denoiser: "Denoiser", seed: int) -> None:
        super().__init__(value, denoiser, seed)
        if denoiser.family.model_class != MODEL:
            raise LatentflowError(
                f"train.ideas.tread routes the tokens of a {MODEL}, and this model is a "
                f"{denoiser.family.model_class}: leave tread out, or choose model.denoiser pixart."
            )
        model: Any = denoiser.model
        skipped = route(len(model.transformer_blocks))
        self._step, self._size = 0, 0
        self._places: Tensor | None = None
        self._staying: Tensor | None = None
        self._all: Tensor | None = None
        model.pos_embed.register_forward_hook(self._choose)
        model.transformer_blocks[skipped.start].register_forward_pre_hook(self._leave)
        model.transformer_blocks[skipped.stop - 1].register_forward_hook(self._return)

    def before(self, step: int, places: "Tensor", size: int) -> None:
        self._step, self._places, self._size = step, places, size
        self._all = None

    def _choose(self, embedding: "nn.Module", inputs: Any, tokens: "Tensor") -> None:
        """Draws once per forward pass, outside the blocks: these are compiled, or run again in the backward pass."""
        import torch

        from latentflow.devices import step_generator

        if embedding.training and self._places is not None:
            samples, count, _ = tokens.shape
            noise = torch.rand((self._size, count), generator=step_generator(self.seed, "tread", self._step))
            staying = max(1, count - round(self.value * count))
            numbers = noise[self._places].argsort(1)[:, :staying] + torch.arange(samples)[:, None] * count
            self._staying = numbers.flatten().to(tokens.device, non_blocking=True)

    def _leave(self, block: "nn.Module", inputs: Any) -> Any:
        if not block.training or self._staying is None:
            return None
        self._all, *rest = inputs
        staying = self._all.flatten(0, 1).index_select(0, self._staying)
        return staying.unflatten(0, (len(self._all), -1)), *rest

    def _return(self, block: "nn.Module", inputs: Any, output: "Tensor") -> "Tensor | None":
        if not block.training or self._staying is None or self._all is None:
            return None
        together = self._all.to(output.dtype).flatten(0, 1).index_copy(0, self._staying, output.flatten(0, 1))
        return together.view_as(self._all)


def route(blocks: int) -> range:
    """Which blocks are skipped. Raises LatentflowError where there are too few to skip any."""
    if blocks < 3:
        raise LatentflowError(
            f"train.ideas.tread needs a model of at least 3 blocks, and this one has {blocks}: raise "
            "model.pixart.layers, or leave tread out."
        )
    return range(max(1, min(2, blocks // 6)), blocks - max(1, min(4, blocks // 3)))
