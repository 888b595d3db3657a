"""What a pod of the pipeline sees to before any work: that its image fits the package, and that its GPUs are there."""

import os

from latentflow import __version__
from latentflow.errors import LatentflowError


def begin(image: str, version: str) -> None:
    """Notes the image for the lineage of what is made here, and refuses an image of another version.

    ``version`` is that of the compiled package. Raises LatentflowError.
    """
    os.environ["LATENTFLOW_IMAGE"] = image
    if version != __version__:
        raise LatentflowError(
            f"The pipeline package is of latentflow {version}, but the image {image} holds {__version__}: give images "
            "of the package's version in image_cpu and image_gpu, or upload the package of the images."
        )


def require_gpus(wanted: int) -> None:
    """Raises LatentflowError where fewer GPUs can be used than were asked for; 0 asks for none."""
    if not wanted:
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < wanted:
        build = f"torch {torch.__version__} was built for CUDA {torch.version.cuda or '(none)'}"
        raise LatentflowError(
            f"train_gpus asked for {wanted} GPU(s), but this pod can use {found} ({build}): check image_gpu and the "
            "node's driver, or set train_gpus to 0 to train on the CPU."
        )
