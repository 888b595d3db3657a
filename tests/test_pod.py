"""What a pod refuses before it works."""

import os
import re

import pytest
import torch

from latentflow import __version__, pod
from latentflow.errors import LatentflowError


def test_an_image_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTFLOW_IMAGE", "")
    pod.begin("registry/latentflow-gpu@sha256:1", __version__)
    assert os.environ["LATENTFLOW_IMAGE"] == "registry/latentflow-gpu@sha256:1"
    with pytest.raises(LatentflowError, match=f"of latentflow 0.0.1, but the image old holds {re.escape(__version__)}"):
        pod.begin("old", "0.0.1")


@pytest.mark.parametrize(("there", "usable"), [(0, False), (1, True)])
def test_gpus_that_were_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch, there: int, usable: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    pod.require_gpus(0)
    pod.require_gpus(there)
    with pytest.raises(LatentflowError, match=f"asked for 2 GPU\\(s\\), but this pod can use {there} \\(torch "):
        pod.require_gpus(2)
