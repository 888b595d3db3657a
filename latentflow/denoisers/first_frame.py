"""Pipelines that go on from a clip's first frame, which stands in x_t as it is: Wan 2.2 TI2V and LTX-Video."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from latentflow.data.condition import Condition
from latentflow.denoisers.family import Family
from latentflow.denoisers.ltx import LTX
from latentflow.denoisers.wan import Wan


class LedByFrame(Family):
    """The model sees the first frame without noise, told so by a timestep of its own, and answers for the others.

    For the first frame the answer is the velocity that leads to it, so that it costs no loss and a sampler arrives at
    it. Of flow matching alone, where the timestep is σ.
    """

    led_by_frame = True

    def predict(self, model: nn.Module, xt: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.frame is not None
        frames, height, width = xt.shape[2:]
        patch = self.patch(model.config)  # type: ignore[arg-type]
        times = timestep.reshape(-1, 1, 1, 1).repeat(1, frames, height // patch, width // patch)
        times[:, 0] = 0
        seen = torch.cat([condition.frame, xt[:, :, 1:]], 2)
        answer = super().predict(model, seen, times.flatten(1), condition)  # type: ignore[safe-super]
        # Not in the model's precision, or the first frame would cost what is rounded off.
        first = (xt[:, :, :1] - condition.frame) / (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        return torch.cat([first, answer[:, :, 1:].to(first)], 2)


class WanFromFrame(LedByFrame, Wan):
    """Wan 2.2 TI2V, whose timesteps are expanded over the patches."""

    pipeline_class = "WanImageToVideoPipeline"

    def refuse(self, index: Mapping[str, Any]) -> None:
        super().refuse(index)
        if not index.get("expand_timesteps"):
            raise ValueError(
                "takes the first frame as channels and by an image encoder, as Wan 2.1 does, which is not trained here"
            )


class LTXFromFrame(LedByFrame, LTX):
    """LTX-Video, the same model as from captions alone."""

    pipeline_class = "LTXImageToVideoPipeline"
