"""What is trained, and what comes of it: merged weights and an adapter file that plain diffusers loads."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from native import SHAPE, SIDE, TOKENS, WIDTH, shake, sizes, text_encoder, train_params, write_pipeline
from safetensors import safe_open
from torch import Tensor, nn

from latentflow import denoisers
from latentflow.data.condition import Condition
from latentflow.denoisers import FAMILIES, Captions
from latentflow.errors import LatentflowError
from latentflow.params import TrainParams
from latentflow.training import trainable

RANK, ALPHA = 3, 7.5


def adapter(kind: str = "lora", **changes: object) -> TrainParams:
    return train_params(adapter={"kind": kind, "rank": RANK, "alpha": ALPHA} | changes)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    text = text_encoder(root / "vocab")
    return {name: write_pipeline(name, root / name, text) for name in FAMILIES}


def started(name: str, pipelines: dict[str, Path]) -> nn.Module:
    return denoisers.start(sizes(name, pretrained=pipelines[name]), SHAPE, Captions(WIDTH), seed=0)


def draw(pipeline: DiffusionPipeline, name: str, **arguments: object) -> Tensor:
    """Latents of one caption from fixed noise."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn((1, *SHAPE), generator=torch.Generator().manual_seed(2))
    call = FAMILIES[name].call_arguments(TOKENS)
    return pipeline(
        "red heart", num_inference_steps=3, height=SIDE, width=SIDE, latents=noise, output_type="latent",
        **call, **arguments,
    ).images  # fmt: skip


def opened(folder: Path) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_everything_is_trained_unless_patterns_say_less(pipelines: dict[str, Path]) -> None:
    model = started("unet", pipelines).requires_grad_(False)
    trainable.choose(model, train_params(), FAMILIES["unet"])
    assert all(parameter.requires_grad for parameter in model.parameters())
    trainable.choose(model, train_params(trainable=["*attn2*", "conv_in.bias"]), FAMILIES["unet"])
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("attn2" in name or name == "conv_in.bias"), name
    assert trainable.delivered(model) is model


def test_a_pattern_that_matches_nothing_is_refused(pipelines: dict[str, Path]) -> None:
    params = train_params(trainable=["*attn2*", "blocks.*"])
    with pytest.raises(LatentflowError, match=r"^train\.trainable: 'blocks\.\*' matches none of .* conv_in\.weight"):
        trainable.choose(started("unet", pipelines), params, FAMILIES["unet"])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("query", "'query' is the end of no layer's name; some layers are .*pos_embed.proj"),
        ("attn1", "'attn1' names transformer_blocks.0.attn1, which is no linear or convolution layer"),
        ("o_q", "'o_q' is the end of no layer's name"),
    ],
)
def test_a_target_that_names_no_layer_is_refused(target: str, words: str, pipelines: dict[str, Path]) -> None:
    model = started("pixart", pipelines)
    before = [name for name, _ in model.named_parameters()]
    with pytest.raises(LatentflowError, match=rf"^train\.adapter\.targets: {words}"):
        trainable.choose(model, adapter(targets=["to_q", target]), FAMILIES["pixart"])
    assert [name for name, _ in model.named_parameters()] == before


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_adapters_start_as_no_change_and_only_they_are_trained(
    name: str, kind: str, pipelines: dict[str, Path]
) -> None:
    family, model = FAMILIES[name], started(name, pipelines)
    pictures = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, TOKENS, dtype=torch.bool)

    def output() -> Tensor:
        return family.predict(model, pictures, torch.full((2,), 500.0), Condition(text, mask))

    before = output()
    trainable.choose(model, adapter(kind), family)
    assert torch.allclose(output(), before, atol=1e-5)
    trained = [n for n, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in n for n in trained)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    adapted = {n.rsplit(".lora_", 1)[0] for n in trained}
    linear = {n.removesuffix(".base_layer") for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    wanted = {n for n in linear if n.endswith(tuple(f".{target}" for target in family.adapter_targets))}
    assert adapted == wanted
    output().square().mean().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in model.parameters())


def test_the_first_weights_of_an_adapter_follow_the_seed_alone(pipelines: dict[str, Path]) -> None:
    def weights(seed: int, elsewhere: int) -> list[Tensor]:
        model = started("auraflow", pipelines)
        torch.manual_seed(elsewhere)
        params = TrainParams.model_validate(adapter().model_dump(mode="json") | {"seed": seed})
        trainable.choose(model, params, FAMILIES["auraflow"])
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    first, again, other = weights(0, 1), weights(0, 2), weights(1, 1)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_merged_pipeline_is_the_base_with_the_loaded_adapter(
    name: str, kind: str, pipelines: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    family, model = FAMILIES[name], started(name, pipelines)
    names = model.state_dict().keys()
    trainable.choose(model, adapter(kind), family)
    shake(model, seed=3, std=0.5)
    pipeline = opened(pipelines[name])
    plain = draw(pipeline, name)
    with caplog.at_level("INFO", "latentflow"):
        written = trainable.save_adapter(model, tmp_path, family)
    merged = opened(pipelines[name])
    setattr(merged, family.subfolder, trainable.delivered(model))
    assert model.state_dict().keys() == names
    ours = draw(merged, name)
    assert (ours - plain).abs().max() > 1e-3
    merged.save_pretrained(tmp_path / "merged")
    again = draw(opened(tmp_path / "merged"), name)
    near = 1e-5 * ours.abs().max()
    assert torch.allclose(again, ours, rtol=0, atol=near)

    assert written == family.loads_adapters == (tmp_path / trainable.ADAPTER_FILE).is_file()
    if not written:
        assert "PixArtAlphaPipeline loads no adapters" in caplog.text
        assert not hasattr(pipeline, "load_lora_weights")
        return
    pipeline.load_lora_weights(tmp_path)
    assert torch.allclose(draw(pipeline, name), ours, rtol=0, atol=near)
    pipeline.disable_lora()
    assert torch.equal(draw(pipeline, name), plain)


def test_a_copy_is_delivered_while_training_goes_on(pipelines: dict[str, Path]) -> None:
    model = started("auraflow", pipelines)
    names = list(model.state_dict())
    trainable.choose(model, adapter(), FAMILIES["auraflow"])
    copied = trainable.delivered(copy.deepcopy(model))
    assert list(copied.state_dict()) == names
    assert any("lora_" in name for name in model.state_dict())
    model.enable_gradient_checkpointing()
    text, mask = torch.randn(1, TOKENS, WIDTH), torch.ones(1, TOKENS, dtype=torch.bool)
    output = FAMILIES["auraflow"].predict(model, torch.randn(1, *SHAPE), torch.full((1,), 500.0), Condition(text, mask))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(("name", "argument"), [("unet", "cross_attention_kwargs"), ("auraflow", "attention_kwargs")])
def test_an_adapter_of_scale_zero_changes_nothing(
    name: str, argument: str, pipelines: dict[str, Path], tmp_path: Path
) -> None:
    model = started(name, pipelines)
    trainable.choose(model, adapter(), FAMILIES[name])
    shake(model, seed=3, std=0.5)
    assert trainable.save_adapter(model, tmp_path, FAMILIES[name])
    pipeline = opened(pipelines[name])
    plain = draw(pipeline, name)
    pipeline.load_lora_weights(tmp_path)
    assert torch.allclose(draw(pipeline, name, **{argument: {"scale": 0.0}}), plain, atol=1e-6)
    assert not torch.allclose(draw(pipeline, name), plain, atol=1e-3)


def test_rank_alpha_and_own_targets_are_in_the_file(pipelines: dict[str, Path], tmp_path: Path) -> None:
    model = started("unet", pipelines)
    trainable.choose(model, adapter(targets=["conv1", "to_q"]), FAMILIES["unet"])
    trainable.save_adapter(model, tmp_path, FAMILIES["unet"])
    with safe_open(tmp_path / trainable.ADAPTER_FILE, "pt") as file:
        facts = json.loads(file.metadata()["lora_adapter_metadata"])
        assert all(name.startswith("unet.") for name in file.keys())  # noqa: SIM118
    assert facts == {
        "unet.r": RANK,
        "unet.lora_alpha": ALPHA,
        "unet.target_modules": ["conv1", "to_q"],
        "unet.use_dora": False,
    }
    pipeline = opened(pipelines["unet"])
    pipeline.load_lora_weights(tmp_path)
    assert pipeline.unet.peft_config["default_0"].lora_alpha == ALPHA


def test_without_adapters_there_is_no_file(pipelines: dict[str, Path], tmp_path: Path) -> None:
    assert not trainable.save_adapter(started("unet", pipelines), tmp_path, FAMILIES["unet"])
    assert list(tmp_path.iterdir()) == []
