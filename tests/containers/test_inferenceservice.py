"""The KServe manifest: every field of the pod exists in Kubernetes' API, and what it names exists in the image."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from latentflow.cli import SERVED

FOLDER = Path(__file__).parents[2] / "containers" / "serve"
# The fields of KServe's own that the manifest uses (v1beta1 PredictorSpec of KServe 0.21); the rest is a PodSpec.
PREDICTOR = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "containerConcurrency", "timeout"}


def check(value: Any, kind: str, place: str) -> None:
    """Raises AssertionError naming a field that the client's model of the API does not have, or of another type."""
    models = pytest.importorskip("kubernetes.client.models", reason="kubernetes is not installed")
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        assert isinstance(value, list), place
        for number, one in enumerate(value):
            check(one, inner[1], f"{place}[{number}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        assert isinstance(value, dict), place
        for key, one in value.items():
            check(one, inner[1], f"{place}.{key}")
    elif kind in ("str", "int", "bool"):
        assert type(value).__name__ == kind, place
    elif kind != "object":
        model = getattr(models, kind)
        known = {model.attribute_map[name]: inner for name, inner in model.openapi_types.items()}
        for key, one in value.items():
            assert key in known, f"{place}.{key}"
            check(one, known[key], f"{place}.{key}")


def manifest() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((FOLDER / "inferenceservice.yaml").read_text())
    return read


def test_the_pod_is_one_that_kubernetes_knows() -> None:
    service = manifest()
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    predictor = service["spec"]["predictor"]
    for name in PREDICTOR - {"scaleMetric"}:
        assert isinstance(predictor.pop(name), int)
    assert predictor.pop("scaleMetric") in ("cpu", "memory", "concurrency", "rps")
    check(predictor, "V1PodSpec", "predictor")
    with pytest.raises(AssertionError, match=r"containers\[0\]\.readynessProbe"):
        check({"containers": [{"name": "a", "readynessProbe": {}}]}, "V1PodSpec", "predictor")


def test_it_names_what_the_image_has() -> None:
    (container,) = manifest()["spec"]["predictor"]["containers"]
    image = (FOLDER / "Dockerfile").read_text()
    (port,) = container["ports"]
    assert f"EXPOSE {port['containerPort']}" in image
    assert f'"--port", "{port["containerPort"]}"' in image
    assert {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")} == {
        "/ping"
    }
    assert SERVED in {variable["name"] for variable in container["env"]}
    assert f"{SERVED}=" in image
    assert re.search(r"^USER 1000$", image, re.MULTILINE)
    assert "ENTRYPOINT" not in image
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/tmp", "/home/latentflow"} == mounted
