"""The model card: README.md in the diffusers folder, for whoever meets the folder without its registry.

Its summary is the description of the version in the registry, with what the gate said.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latentflow.registry.lineage import split_params
from latentflow.registry.verdict_text import sentence

if TYPE_CHECKING:
    from latentflow.registry.gate import Verdict
    from latentflow.registry.packaging import Package

_CARD = """\
---
library_name: diffusers
pipeline_tag: text-to-image
tags: [latent-diffusion, flow-matching]
---
# {name}

{what} Nothing but the libraries below is needed to use it.

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
{imports}pipe = {pipeline}.from_pretrained(".")
picture = pipe("{prompt}", {call}, generator=torch.Generator("cpu").manual_seed(0)).{drawn}
```

The three give the same picture for the same seed.

## Data

{data}

## Measured

{metrics}

They were measured like this; only figures of an equal protocol compare.

{protocol}

`_low` and `_high` are the bounds of a figure's 95 % interval, `_half_width` is half of it.

## Limits

It draws what its data shows, at the size it was trained for, and knows the words of its captions; other prompts
give something, not necessarily what was asked. It was not tested for bias and has no filter. The figures above
compare models on the same data and are no promise about other prompts. It may come near to pictures that it was
trained on: whoever publishes pictures looks for that, and keeps to the data's licence.

## Where it comes from

{lineage}
"""


_DIFFUSERS = "from diffusers import DiffusionPipeline\n"
# diffusers imports a scheduler of another library only where that is done already.
_CARRIED = 'import sys; sys.path.append("code"); import latentflow.scheduler  # code that came with the model\n'
_OWN = "OwnDenoiserPipeline"
_OWN_PIPELINE = f"from latentflow.own_pipeline import {_OWN}\n"


def model_card(package: "Package", carries_code: bool) -> str:
    """The card as Markdown; the data's licence and credit come from the lineage (data_license, data_credit)."""
    model, evaluation, generation = package.model, package.evaluation, package.generation
    lineage = split_params(model.lineage)[0]
    origin = lineage | {"model digest": model.digest, "evaluation": evaluation.fingerprint}
    return _CARD.format(
        name=package.name,
        what=_what(package),
        prompt="red heart",
        imports=_imports(model.pipeline_class, carries_code),
        pipeline=_OWN if model.pipeline_class == _OWN else "DiffusionPipeline",
        call=_call(generation, model.pipeline_class),
        drawn="frames[0]" if "num_frames" in generation.get("call", {}) else "images[0]",
        data=_data(lineage, "\n\n"),
        metrics=_table(("figure", "value"), {key: f"{value:.6g}" for key, value in sorted(evaluation.metrics.items())}),
        protocol=_table(("protocol", ""), {key: _cell(value) for key, value in package.protocol.items()}),
        lineage=_table(("what", "value"), {key: f"`{value}`" for key, value in sorted(origin.items()) if value}),
    )


def summary(package: "Package", verdict: "Verdict") -> str:
    """The card in a few lines of Markdown: what it is, how good it was found, what the gate said, whose data it is."""
    protocol = package.protocol
    figures = [_figure(name, package.evaluation.metrics) for name in HEADLINES if name in package.evaluation.metrics]
    measured = f"Measured: {', '.join(figures)}" if figures else "Measured: see the tags latentflow.metric"
    reference = str(protocol.get("reference_digest", ""))
    asked = f"{protocol.get('train_captions', 0):,} training and {protocol.get('test_captions', 0):,} held-out captions"
    how = f"({asked}, {protocol.get('real_pictures', 0):,} real pictures of digest {reference[:12]})"
    data = _data(split_params(package.model.lineage)[0], " ")
    return "\n\n".join([_what(package), f"{measured} {how}.", sentence(verdict), f"Data: {data}"])


def _imports(pipeline: str, carries_code: bool) -> str:
    if pipeline == _OWN:
        return _CARRIED + _OWN_PIPELINE
    return _DIFFUSERS + (_CARRIED if carries_code else "")


HEADLINES = ("retrieval/train/top5", "retrieval/test/top5", "heldout_loss")
"""Figures that a line about a model shows."""


def _what(package: "Package") -> str:
    generation, kind = package.generation, package.model.pipeline_class
    how = f"{generation['sampler']}, {generation['steps']} steps, guidance {generation['guidance']:g}"
    size = f"{generation['width']}x{generation['height']}"
    parent = package.model.lineage.get("parent_model")
    began = f" It was fine-tuned from {parent}." if parent else ""
    return (
        "A text-to-image model: latent diffusion trained by flow matching with latentflow, as a "
        f"`{kind}` that draws {size} pixels by {how} unless told otherwise.{began}"
    )


def _figure(name: str, metrics: Mapping[str, float]) -> str:
    value = f"{name} {metrics[name]:.4g}"
    if f"{name}_low" in metrics:
        return f"{value} ({metrics[f'{name}_low']:.4g} to {metrics[f'{name}_high']:.4g})"
    return f"{value} ± {metrics[f'{name}_half_width']:.2g}" if f"{name}_half_width" in metrics else value


def _data(lineage: Mapping[str, str], between: str) -> str:
    known = (
        [f"Source: {lineage['data_source']} {lineage.get('data_revision', '')}".strip()]
        if "data_source" in lineage
        else []
    )
    known.append(f"Licence: {lineage.get('data_license') or 'not stated by the source of the data.'}")
    if credit := lineage.get("data_credit"):
        known.append(f"Credit: {credit}")
    return between.join(known)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        value = [f"{name} {one}" for name, one in value.items()] or "none"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _call(generation: dict[str, Any], pipeline: str) -> str:
    from latentflow.registry.pyfunc_model import guided

    named = {
        "num_inference_steps": generation["steps"],
        **guided(pipeline, generation["guidance"], prompts=1),
        "height": generation["height"],
        "width": generation["width"],
        **generation.get("call", {}),
    }
    return ", ".join(f"{key}={value!r}" for key, value in named.items())


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines)
