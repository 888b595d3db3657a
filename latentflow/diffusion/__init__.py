"""The theory: two definitions and what follows from them. Pure math on tensors; imports torch only."""

from latentflow.diffusion.definition import FLOW, Definition
from latentflow.diffusion.sampling import euler, guide, sampling_sigmas
from latentflow.diffusion.training import draw_sigmas

__all__ = ["FLOW", "Definition", "draw_sigmas", "euler", "guide", "sampling_sigmas"]
