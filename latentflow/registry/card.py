"""The model card: README.md in the diffusers folder, for whoever meets the folder without its registry."""

from typing import Any

from latentflow.manifest import EvaluationManifest, ModelManifest
from latentflow.registry.lineage import split_params

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags: [latent-diffusion, flow-matching]
---
# {name}

A text-to-image model: latent diffusion trained by flow matching with latentflow, as a `{pipeline_class}` that
draws {width}x{height} pixels. Nothing but the libraries below is needed to use it.

## Use

VERSION is the number under which the registry holds this model. With the command line of latentflow:

```sh
latentflow generate --model models:/{name}/VERSION --prompt "{prompt}" --out picture.png
```

With MLflow alone, from the registry that holds it:

```python
import base64, mlflow
answer = mlflow.pyfunc.load_model("models:/{name}/VERSION").predict({{"prompt": ["{prompt}"]}}, params={{"seed": 0}})
open("picture.png", "wb").write(base64.b64decode(answer["image"][0]))
```

With diffusers alone, in this folder:

```python
import torch
from diffusers import DiffusionPipeline
{imports}pipe = DiffusionPipeline.from_pretrained(".")
picture = pipe("{prompt}", {call}, generator=torch.Generator("cpu").manual_seed(0)).images[0]
```

The three give the same picture for the same seed.

## Data

{data}

## Measured

{metrics}

These hold for the sampler {sampler} with {steps} steps at guidance {guidance}, the defaults in `generation.json`.

## Limits

It draws what its data shows, at the size it was trained for, and knows the words of its captions; other prompts
give something, not necessarily what was asked. It was not tested for bias and has no filter. The figures above
compare models on the same data and are no promise about other prompts.

## Where it comes from

{lineage}
"""


# diffusers imports a scheduler of another library only where that is done already.
_CARRIED = 'import sys; sys.path.append("code"); import latentflow.scheduler  # code that came with the model\n'


def model_card(
    name: str, model: ModelManifest, evaluation: EvaluationManifest, generation: dict[str, Any], carries_code: bool
) -> str:
    """The card as Markdown; the data's licence and credit come from the lineage (data_license, data_credit)."""
    lineage = split_params(model.lineage)[0]
    data = [f"Licence: {lineage.get('data_license') or 'not stated by the source of the data.'}"]
    if credit := lineage.get("data_credit"):
        data.append(f"Credit: {credit}")
    origin = lineage | {"model digest": model.digest, "evaluation": evaluation.fingerprint}
    return _CARD.format(
        name=name,
        pipeline_class=model.pipeline_class,
        prompt="red heart",
        imports=_CARRIED if carries_code else "",
        call=_call(generation),
        data="\n\n".join(data),
        metrics=_table(("figure", "value"), {key: f"{value:.6g}" for key, value in sorted(evaluation.metrics.items())}),
        lineage=_table(("what", "value"), {key: f"`{value}`" for key, value in sorted(origin.items()) if value}),
        **{key: generation[key] for key in ("sampler", "steps", "guidance", "height", "width")},
    )


def _call(generation: dict[str, Any]) -> str:
    named = {
        "num_inference_steps": generation["steps"],
        "guidance_scale": generation["guidance"],
        "height": generation["height"],
        "width": generation["width"],
        **generation.get("call", {}),
    }
    return ", ".join(f"{key}={value!r}" for key, value in named.items())


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines)
