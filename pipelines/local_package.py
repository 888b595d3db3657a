"""A compiled package as kfp's local runners can take it: one branch of training, and images by name."""

import re
from collections.abc import Mapping
from typing import Any

import yaml
from kfp import components

from latentflow.errors import LatentflowError
from pipelines.compile import package

_INPUT = re.compile(r"\{\{\$\.inputs\.parameters\['pipelinechannel--(\w+)'\]\}\}")


def local_pipeline(name: str, images: Mapping[str, str] | None = None) -> Any:
    """The package of a pipeline as a function of its inputs; ``images`` are its containers' and inputs', by name.

    kfp's local runners resolve neither an image that is an input nor an output that one of two branches makes. Here is
    no cluster whose nodes could train together, so it is always the branch of ``train``. Retries wait for nothing.
    """
    spec, *platform = yaml.safe_load_all(package(name))
    for graph in (spec["root"], *spec["components"].values()):
        dag = graph.get("dag", {})
        for output in dag.get("outputs", {}).get("artifacts", {}).values():
            del output["artifactSelectors"][1:]
        for task in dag.get("tasks", {}).values():
            task.get("retryPolicy", {}).pop("backoffDuration", None)
    if images is not None:
        inputs = spec["root"]["inputDefinitions"]["parameters"]
        for given in inputs.keys() & images.keys():
            inputs[given]["defaultValue"] = images[given]
        for executor in spec["deploymentSpec"]["executors"].values():
            container = executor["container"]
            container["image"] = _INPUT.sub(lambda found: _image(found[1], images), container["image"])
    return components.load_component_from_text(yaml.safe_dump_all([spec, *platform]))


def _image(name: str, images: Mapping[str, str]) -> str:
    if name not in images:
        raise LatentflowError(f"A task's image is the input {name}, which is none of {', '.join(images)}.")
    return images[name]
