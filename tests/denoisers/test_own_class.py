"""A denoiser of the user's own class: what docs/denoisers.md shows goes through every step; what cannot is refused."""

import base64
import csv
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from encoding import PARAMS, build_autoencoder, build_text_encoder
from encoding import inputs as encode_inputs
from native import TOKENS, sizes, text_encoder
from PIL import Image
from trainings import settings

from latentflow import denoisers
from latentflow.denoisers import Captions
from latentflow.denoisers.preflight import faults
from latentflow.encoders import vae as vae_room
from latentflow.errors import LatentflowError, ParamsError
from latentflow.generation.drawing import draw
from latentflow.generation.orders import Dials
from latentflow.own_pipeline import OwnDenoiserPipeline
from latentflow.params import EvaluateInputs, IngestInputs, ModelParams, RegisterInputs, TrainInputs, load
from latentflow.registry import pyfunc_model
from latentflow.registry.pulling import pull
from latentflow.steps import encode, evaluate, ingest, register, train

PAGE = Path(__file__).parents[2] / "docs" / "denoisers.md"
CLASS, OWN = "my_denoiser:TokenMixer", {"width": 16, "layers": 2, "heads": 2}
SHAPE, WIDTH = [4, 8, 8], 16
QUICK = Dials(steps=2, guidance=2.0)


def example() -> str:
    (code,) = re.findall(r"```python\n(# my_denoiser.py.*?)```", PAGE.read_text(), re.DOTALL)
    return str(code)


def teach(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> Path:
    """Puts a module my_denoiser into reach, whatever was there before; returns its file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "my_denoiser.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_denoiser", raising=False)
    return folder / "my_denoiser.py"


def model(name: str = CLASS, **own: object) -> ModelParams:
    return ModelParams.model_validate(sizes("unet").model_dump() | {"denoiser": name, "own": own})


def check(params: ModelParams, *shapes: list[int]) -> None:
    denoisers.check(params, shapes or [SHAPE], Captions(WIDTH))


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    shutil.copy2(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("LATENTFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def sources() -> train.Sources:
    """Forty emoji, encoded."""
    fields = ("source=emoji", "limit=40", "validation_fraction=0.2", "test_fraction=0.2", "workers=1")
    chosen = load(PARAMS, [f"ingest.{field}" for field in fields]).ingest
    ingest.run(IngestInputs(ingest=chosen), Path("records"))
    autoencoder, text = build_autoencoder(Path("autoencoder")), build_text_encoder(Path("text"))
    encode.run(encode_inputs(text), Path("records"), autoencoder, Path("encoded"))
    return train.Sources(Path("encoded"), autoencoder)


def training() -> TrainInputs:
    few = {"steps": 60, "log_every": 15, "checkpoint_every": 20, "validate_every": 30, "sample_every": 60}
    return settings(model__denoiser=CLASS, model__own=OWN, **few)


def judge(trained: Path) -> None:
    small = {
        "captions": 3,
        "seeds": 1,
        "steps": 2,
        "batch_size": 4,
        "reconstructions": 2,
        "gallery_prompts": "[red heart]",
    }
    small |= {"grid.prompts": 1, "grid.guidance": "[1.0]", "grid.steps": "[1]"}
    params = load(PARAMS, [*(f"evaluate.{name}={value}" for name, value in small.items()), "register.name=own"])
    evaluate.run(EvaluateInputs(evaluate=params.evaluate), trained, Path("encoded"), Path("records"), Path("judged"))
    chosen = RegisterInputs.model_validate({"register": params.register_, "evaluate": params.evaluate})
    register.run(chosen, trained, Path("judged"), Path("registered"))


def test_the_page_s_class_goes_through_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as known:
        source = teach(known, tmp_path / "source", example())
        trained = train.run(training(), sources(), Path("model"))
        assert trained
        first, *_, last = csv.DictReader(Path("model/plots/train.csv").read_text().splitlines())
        assert float(last["loss"]) < 0.95 * float(first["loss"])
        assert trained.pipeline_class == "OwnDenoiserPipeline"
        assert (tmp_path / "model/pipeline/code/my_denoiser.py").read_text() == source.read_text()
        goes_on_where_it_was(trained.digest)
        judge(Path("model"))
        here = draw(Path("model/pipeline"), ["red heart"], 3, QUICK)[0]

    sys.modules.pop("my_denoiser")
    shutil.rmtree(tmp_path / "source")
    folder = pull("models:/own/1", Path("pulled"))
    with pytest.raises(LatentflowError, match=r"No module named 'my_denoiser'.* --trust-code"):
        draw(folder, ["red heart"], 3, QUICK)
    there = draw(folder, ["red heart"], 3, QUICK, trust_code=True)[0]
    assert there.tobytes() == here.tobytes()
    assert through_mlflow().tobytes() == here.tobytes()
    assert "from latentflow.own_pipeline import OwnDenoiserPipeline" in (folder / "README.md").read_text()
    sys.modules.pop("my_denoiser")


def goes_on_where_it_was(digest: str) -> None:
    """A training that lost its end goes on from a checkpoint to the same model."""
    (work,) = (path for path in Path("store/train").iterdir() if path.is_dir())
    shutil.rmtree(work / "done")
    shutil.rmtree(max((work / "checkpoints").glob("step-*")))
    again = train.run(training(), train.Sources("encoded", "autoencoder"), "again")
    assert again
    assert again.digest == digest


def through_mlflow() -> Image.Image:
    import mlflow

    params = {"seed": 3, "steps": 2, "guidance": 2.0}
    answer = mlflow.pyfunc.load_model("models:/own/1").predict({"prompt": ["red heart"]}, params=params)
    return Image.open(io.BytesIO(base64.b64decode(answer["image"][0]))).convert("RGB")


def test_the_pipeline_draws_what_our_own_sampler_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from native import shake

    from latentflow.denoisers.schedulers import scheduler_for
    from latentflow.diffusion import FLOW, Diffusion

    teach(monkeypatch, tmp_path / "source", example())
    text, family = text_encoder(tmp_path / "vocab"), denoisers.family_for(model(**OWN))
    made = denoisers.build(model(**OWN), SHAPE, WIDTH, seed=0)
    shake(made, seed=1)
    vae = vae_room.build(32, [8, 8, 8], 4, 1, seed=0).eval()
    family.pipeline(made, vae, text, scheduler_for(Diffusion(), "euler", 16)).save_pretrained("pipeline")
    Path("pipeline/diffusion.json").write_text(json.dumps(Diffusion().to_json()))

    pipeline = OwnDenoiserPipeline.from_pretrained("pipeline")
    latents = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(2))
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "latents": latents.clone(), "output_type": "latent"}
    theirs = pipeline(["red heart", "a cat"], **call).images
    denoiser = denoisers.load(Path("pipeline"))
    empty, asked = text.encode([""] * 2), text.encode(["red heart", "a cat"])
    assert asked.text.shape[1] == TOKENS
    xt, sigmas = latents.double(), pipeline.scheduler.sigmas.double()
    for index, timestep in enumerate(pipeline.scheduler.timesteps):
        at = timestep.double() / 1000
        with torch.no_grad():
            without, told = (denoiser.predict(xt.float(), at, condition).double() for condition in (empty, asked))
        xt = FLOW.step(xt, without + 3 * (told - without), sigmas[index], sigmas[index + 1])
    assert (xt - theirs.double()).abs().max() < 1e-4 * theirs.abs().max()
    with pytest.raises(ValueError, match="height 30 and width None must be multiples of 4"):
        pipeline("a cat", height=30)
    halved = pipeline.to(dtype=torch.bfloat16)("a cat", "red", num_inference_steps=1, output_type="pt").images
    assert halved.shape == (1, 3, 32, 32)
    assert halved.isfinite().all()


def test_other_code_under_the_same_name_is_not_taken_for_the_model_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teach(monkeypatch, tmp_path / "first", example())
    denoisers.build(model(**OWN), SHAPE, WIDTH, seed=0).save_pretrained("pipeline/transformer")
    index = {"_class_name": "OwnDenoiserPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}
    index["transformer"] = ["latentflow.own_denoiser", "OwnDenoiser"]
    Path("pipeline/model_index.json").write_text(json.dumps(index))
    DDIMScheduler().save_pretrained("pipeline/scheduler")
    teach(monkeypatch, tmp_path / "second", example() + "# changed\n")
    words = r"my_denoiser:TokenMixer: the code in .*second/my_denoiser.py is not that with which this model was trained"
    with pytest.raises(LatentflowError, match=words):
        denoisers.load(Path("pipeline"))
    with pytest.raises(ValueError, match=words):
        pyfunc_model.open_pipeline(Path("pipeline"))


HEAD = "from torch import nn\nclass Own(nn.Module):\n    def __init__(self, latent_shape, text_width, depth=1):\n"
HEAD += "        super().__init__()\n        self.one = nn.Conv2d(latent_shape[0], latent_shape[0], 1)\n"
FORWARD = "    def forward(self, xt, timestep, text, text_mask):\n        "
GOOD = HEAD + FORWARD + "return self.one(xt)\n"
REFUSED = {
    "no class": ("Own = 1\n", {}, r"my_denoiser:Own is no subclass of torch\.nn\.Module"),
    "not there": ("", {}, "my_denoiser:Own: the module my_denoiser has no Own"),
    "broken": ("import nowhere\n", {}, "the module cannot be imported .*nowhere"),
    "constructor": (
        GOOD.replace("text_width, ", ""),
        {},
        r"model\.denoiser: .* and its __init__ takes no text_width",
    ),
    "unknown": (GOOD, {"width": 3}, r"model\.own: my_denoiser:Own takes no width; it takes depth\."),
    "told": (GOOD, {"text_width": 3}, r"model\.own: text_width is told by the encoded set"),
    "lacking": (GOOD.replace("depth=1", "depth"), {}, r"model\.own: my_denoiser:Own needs depth; give a value"),
    "call": (GOOD.replace(", text_mask", ""), {}, r"is called as forward\(xt, timestep, text, text_mask\), and it has"),
    "fails": (HEAD + FORWARD + "return self.one(text)\n", {}, r"fails on latents of \(2, 4, 8, 8\): RuntimeError"),
    "making": (HEAD + "        depth.x\n" + FORWARD + "return xt\n", {}, "cannot be made for .*: AttributeError"),
    "tuple": (HEAD + FORWARD + "return (xt,)\n", {}, r"gives a tuple; it must give a tensor of x_t's shape"),
    "shape": (HEAD + FORWARD + "return xt[:, :, 1:]\n", {}, r"gives \(2, 4, 7, 8\) for latents of \(2, 4, 8, 8\)"),
    "nothing": (
        "from torch import nn\nclass Own(nn.Module):\n    def __init__(self, latent_shape, text_width):\n"
        "        super().__init__()\n" + FORWARD + "return xt\n",
        {},
        "has no parameters, so there is nothing to train",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_class_that_cannot_be_trained_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, own, words = REFUSED[name]
    teach(monkeypatch, tmp_path / "source", code)
    with pytest.raises(LatentflowError, match=words):
        check(model("my_denoiser:Own", **own))


def test_a_class_may_need_values_and_every_shape_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_values = "return self.one(xt) if float(timestep.mean()) else xt\n"
    teach(monkeypatch, tmp_path / "source", HEAD + FORWARD + needs_values)
    check(model("my_denoiser:Own", depth=2), SHAPE, [4, 4, 12])
    one_size = "return self.one(xt) + self.one(xt.new_zeros(2, 4, 8, 8))\n"
    teach(monkeypatch, tmp_path / "source", HEAD + FORWARD + one_size)
    check(model("my_denoiser:Own"))
    with pytest.raises(LatentflowError, match=r"fails on latents of \(2, 4, 4, 12\)"):
        check(model("my_denoiser:Own"), SHAPE, [4, 4, 12])


def test_parameters_name_the_class_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParamsError, match=r"model\.denoiser: there is no module nowhere; add its folder to PYTHONPATH"):
        load(PARAMS, ["model.denoiser=nowhere:Own"])
    with pytest.raises(ParamsError, match=r"model: own is for a class of your own"):
        load(PARAMS, ["model.own={depth: 1}"])
    teach(monkeypatch, tmp_path / "source", "raise RuntimeError('imported')\n")
    with pytest.raises(ParamsError, match="depth is null; leave it out"):
        load(PARAMS, ["model.denoiser=my_denoiser:Own", "model.own={depth: null}"])
    # Kubeflow makes floats of integers.
    read = load(PARAMS, ["model.denoiser=my_denoiser:Own", "model.own={depth: 2.0, rates: [1.0, 0.5]}"])
    assert json.dumps(read.model.own) == '{"depth": 2, "rates": [1, 0.5]}'
    assert "my_denoiser" not in sys.modules


def test_blocks_are_computed_again_and_adapters_need_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from native import train_params

    from latentflow.training import trainable

    teach(monkeypatch, tmp_path / "source", example())
    plain, again = (denoisers.build(model(**OWN), SHAPE, WIDTH, seed=0) for _ in range(2))
    again.enable_gradient_checkpointing()
    told = torch.randn(2, *SHAPE), torch.full((2,), 300.0), torch.randn(2, 5, WIDTH), torch.ones(2, 5).bool()
    for one in (plain, again):
        one(*told).square().mean().backward()
    kept, computed = (dict(one.named_parameters()) for one in (plain, again))
    assert kept.keys() == computed.keys()
    assert all(torch.equal(kept[name].grad, computed[name].grad) for name in kept)

    family = denoisers.family_for(model(**OWN))
    assert family.blocks(plain) == list(plain.own.blocks)
    with pytest.raises(LatentflowError, match=r"train\.adapter\.targets: .* name the layers that are to be adapted"):
        trainable.choose(plain, train_params(adapter={"kind": "lora"}), family)
    trainable.choose(plain, train_params(adapter={"kind": "lora", "targets": ["mix"]}), family)
    assert any("lora" in name for name, tensor in plain.named_parameters() if tensor.requires_grad)


def test_a_saved_model_is_trained_further_with_its_own_code_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_encoder(tmp_path / "vocab")
    with monkeypatch.context() as known:
        teach(known, tmp_path / "first", example())
        family, made = denoisers.family_for(model(**OWN)), denoisers.build(model(**OWN), SHAPE, WIDTH, seed=0)
        vae = vae_room.build(32, [8, 8, 8], 4, 1, seed=0)
        family.pipeline(made, vae, text, DDIMScheduler()).save_pretrained("pipeline")
        further = sizes("unet", pretrained=tmp_path / "pipeline")
        check(further)
        assert denoisers.own_class(further) == CLASS
        weights = denoisers.start(further, SHAPE, Captions(WIDTH), seed=1).state_dict()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in made.state_dict().items())
        with pytest.raises(LatentflowError, match=r"takes latents of 4 channels, and the autoencoder makes 8"):
            check(further, [8, 8, 8])
        with pytest.raises(LatentflowError, match=r"TokenMixer fails on latents of \(2, 4, 8, 4\)"):
            check(further, [4, 8, 4])
    teach(monkeypatch, tmp_path / "second", example() + "# changed\n")
    with pytest.raises(LatentflowError, match=r"model\.pretrained: the denoiser in .* is not that with which this"):
        check(further)


def test_all_sections_together_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teach(monkeypatch, tmp_path / "source", GOOD)
    text = build_text_encoder(Path("text"))
    chosen = [f"encode.text_encoder={text}", "model.denoiser=my_denoiser:Own"]
    assert faults(load(PARAMS, chosen)) == []
    (found,) = faults(load(PARAMS, [*chosen, "model.own={width: 3}"]))
    assert found == "model.own: my_denoiser:Own takes no width; it takes depth."
