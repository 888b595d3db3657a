"""A registered model holds nothing that is unpickled: it is loaded and drawn with where unpickling is an error."""

import os
import subprocess
import sys
from pathlib import Path

from registry_helpers import NAME

# Every way into pickle's reading side is closed after the libraries are imported and before the model is touched.
WITHOUT_PICKLE = """
import sys, base64, pickle, _pickle
import mlflow, torch, cloudpickle
from diffusers import DiffusionPipeline
import latentflow.registry.pyfunc_model

def refuse(*_, **__):
    raise AssertionError("something was unpickled")

class Refuse:
    __init__ = refuse

for module in (pickle, _pickle, cloudpickle):
    for name in ("load", "loads"):
        setattr(module, name, refuse)
for module in (pickle, _pickle):
    module.Unpickler = Refuse
pickle._Unpickler = pickle._load = pickle._loads = Refuse
torch.load = refuse

uri, name = sys.argv[1:]
mlflow.set_tracking_uri(uri)
answer = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict({"prompt": ["red heart"]}, params={"seed": 7})
assert base64.b64decode(answer["image"][0]).startswith(b"\\x89PNG")
folder = mlflow.artifacts.download_artifacts(f"models:/{name}@champion/artifacts/pipeline")
pipeline = DiffusionPipeline.from_pretrained(folder)
assert pipeline("red heart", num_inference_steps=1, height=16, width=16).images[0].size == (16, 16)
try:
    pickle.loads(b"N.")
except AssertionError:
    print("still closed")
"""


def test_a_registered_model_loads_and_draws_with_pickle_disabled(registered: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{registered / 'mlruns' / 'mlflow.db'}"
    command = [sys.executable, "-c", WITHOUT_PICKLE, uri, NAME]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "still closed" in done.stdout


def test_no_file_of_a_registered_model_is_a_pickle(registered: Path) -> None:
    files = [path for path in (registered / "mlruns" / "artifacts").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib")]
    # A pickle of protocol 2 or later begins with this byte and its number; torch's own files are zips.
    starts = {path: path.read_bytes()[:4] for path in files}
    assert not [path for path, start in starts.items() if start[:1] == b"\x80" or start == b"PK\x03\x04"]
