"""Networks from tiny random checkpoints that the tests write: transformers' vision models, Inception, LPIPS."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentflow.errors import LatentflowError
from latentflow.evaluation import inception, lpips
from latentflow.evaluation.spaces import PIXELS16, Networks
from latentflow.evaluation.vision import VisionModel, clip_scores
from latentflow.params import WeightsParams

PICTURES = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write_processor(folder: Path, side: int) -> None:
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Dinov2Model(config).save_pretrained(folder)
    write_processor(folder, 28)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import build_tokenizer
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 8, "eos_token_id": tokenizer.sep_token_id}
    config = CLIPConfig(
        text_config=sizes | text, vision_config=sizes | {"image_size": 32, "patch_size": 16}, projection_dim=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    write_processor(folder, 32)
    return folder


def weights(**given: Path | str) -> WeightsParams:
    return WeightsParams(**dict.fromkeys(WeightsParams.model_fields, "") | {k: str(v) for k, v in given.items()})


def test_dinov2_gives_its_class_token_whatever_the_company(dinov2: Path):
    from PIL import Image
    from transformers import AutoImageProcessor, Dinov2Model

    found = VisionModel(str(dinov2), "evaluate.weights.dinov2").features(PICTURES)
    assert found.shape == (3, 16)
    processor = AutoImageProcessor.from_pretrained(dinov2, backend="pil")
    image = Image.fromarray(PICTURES[1].permute(1, 2, 0).numpy())
    with torch.no_grad():
        output = Dinov2Model.from_pretrained(dinov2).eval()(**processor(images=image, return_tensors="pt"))
    torch.testing.assert_close(found[1], output.last_hidden_state[0, 0], rtol=1e-4, atol=1e-5)


def test_clip_embeds_pictures_and_captions_in_one_space(clip: Path):
    model = VisionModel(str(clip), "evaluate.weights.clip")
    captions = ["red heart", "blue star of a moon", "a " * 30]
    text = model.text_features(captions)
    assert text.shape == (3, 8)
    torch.testing.assert_close(model.text_features(captions[1:2]), text[1:2], rtol=1e-4, atol=1e-5)
    assert model.features(PICTURES).shape == (3, 8)


def test_the_clip_score_is_torchmetrics(clip: Path):
    """torchmetrics' own computation, picture by picture, given the same embeddings as its model's."""
    from torchmetrics.functional.multimodal import clip_score

    model = VisionModel(str(clip), "evaluate.weights.clip")
    captions = ["red heart", "blue star", "moon"]
    pictures, text = model.features(PICTURES), model.text_features(captions)

    class Embedded(nn.Module):
        config = SimpleNamespace()

        def __init__(self, row: int) -> None:
            super().__init__()
            self._row = row

        def get_image_features(self, *_: torch.Tensor) -> torch.Tensor:
            return pictures[self._row : self._row + 1]

        def get_text_features(self, *_: torch.Tensor) -> torch.Tensor:
            return text[self._row : self._row + 1]

    def processor(**_: object) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(1, 4) for name in ("pixel_values", "input_ids", "attention_mask")}

    mine = clip_scores(pictures[:, None], text)[:, 0].tolist()
    for row, caption in enumerate(captions):
        wanted = clip_score(PICTURES[row], caption, model_name_or_path=lambda row=row: (Embedded(row), processor))
        assert mine[row] == pytest.approx(wanted.item(), rel=1e-3)
    assert max(mine) > 0


@pytest.mark.parametrize("field", ["dinov2", "clip", "inception", "lpips"])
def test_weights_that_are_not_there_are_named(field: str, tmp_path: Path):
    with pytest.raises(LatentflowError, match=f"evaluate\\.weights\\.{field}"):
        Networks.load(weights(**{field: tmp_path}))


def test_pickled_weights_are_refused(dinov2: Path, tmp_path: Path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((dinov2 / name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(LatentflowError, match="cannot be loaded from safetensors"):
        VisionModel(str(tmp_path), "evaluate.weights.dinov2")


def test_a_model_that_reads_no_captions_is_no_clip(dinov2: Path):
    with pytest.raises(LatentflowError, match="reads no captions"):
        Networks.load(weights(clip=dinov2))


def test_the_best_network_judges_likeness(dinov2: Path):
    assert Networks.load(weights()).eyes is PIXELS16
    networks = Networks.load(weights(dinov2=dinov2))
    assert networks.eyes.name == "dinov2"
    assert [space.frechet for space in networks.spaces] == ["frechet_pixels8", "fd_dinov2"]


def random_inception() -> inception.Inception:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = inception.Inception().eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def test_inception_reads_the_documented_layout(tmp_path: Path):
    model = random_inception()
    classifier = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    kept = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    save_file(kept | classifier, tmp_path / "model.safetensors")
    loaded = inception.load(tmp_path, "evaluate.weights.inception")
    found = inception.features(loaded, PICTURES[:1], batch_size=1)
    assert found.shape == (1, 2048)
    torch.testing.assert_close(found, inception.features(model, PICTURES[:1], batch_size=1))
    save_file({"fc.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(LatentflowError, match="is not the Inception network of FID"):
        inception.load(tmp_path, "evaluate.weights.inception")


def test_pictures_are_resized_as_tensorflow_1_did():
    """Output pixel i lies at i·in/out: the first one is the first pixel, and none is mixed with pixels before it."""
    line = torch.arange(4, dtype=torch.float32)[None, None, None].expand(1, 1, 4, 4)
    found = inception.resize(line)[0, 0, 0]
    assert found[0] == 0
    assert found[150].item() == pytest.approx(150 * 4 / 299)
    assert found[-1] == 3


def random_lpips() -> lpips.Lpips:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lpips.Lpips().eval()
        for number in range(5):
            getattr(model, f"lin{number}").model[1].weight.data.abs_()
    return model


def test_lpips_is_torchmetrics(monkeypatch: pytest.MonkeyPatch):
    """torchmetrics' own computation on the same weights; its AlexNet comes from torchvision, so this one is put in."""
    from torchmetrics.functional.image import lpips as theirs

    mine = random_lpips()

    class Layers(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            found = []
            for layer in mine.features:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    found.append(x)
            return found

    monkeypatch.setattr(theirs, "Alexnet", lambda **_: Layers())
    other = theirs._LPIPS(pretrained=False, net="alex", pnet_rand=True)
    for number, lin in enumerate(other.lins):
        lin.model[-1].weight.data.copy_(getattr(mine, f"lin{number}").model[1].weight)
    first, second = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in (1, 2))
    with torch.no_grad():
        wanted = other.eval()(first, second).reshape(-1)
    torch.testing.assert_close(mine(first, second), wanted, rtol=1e-4, atol=1e-6)
    assert mine(first, first).abs().max() == 0


def test_lpips_reads_the_documented_layout(tmp_path: Path):
    model = random_lpips()
    names = model.state_dict().keys()
    assert {"features.0.weight", "features.10.bias", "lin0.model.1.weight", "lin4.model.1.weight"} <= set(names)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    look = Networks.load(weights(lpips=tmp_path)).lpips
    assert look is not None
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(look(pixels, -pixels), model(pixels, -pixels))
