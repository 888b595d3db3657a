"""MLflow's own scoring server around a registered model: the model is loaded before the port opens."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from latentflow.errors import LatentflowError
from latentflow.registry.pulling import package

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

GRACE_SECONDS = 20


def serve(folder: Path, host: str, port: int, device: str, dtype: str, timeout: int) -> None:
    """Answers as `mlflow models serve` does until SIGTERM, after which requests in hand have 20 seconds to finish."""
    import uvicorn

    os.environ["MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT"] = str(timeout)
    app = application(folder, device, dtype)
    uvicorn.run(app, host=host, port=port, log_level="info", timeout_graceful_shutdown=GRACE_SECONDS)


def application(folder: Path, device: str = "auto", dtype: str = "float32") -> "FastAPI":
    """The server's routes around the MLflow model in a folder: /ping, /health, /version and /invocations."""
    import mlflow.pyfunc
    from fastapi.responses import JSONResponse
    from mlflow.pyfunc import scoring_server

    try:
        model = mlflow.pyfunc.load_model(str(folder), model_config={"device": device, "dtype": dtype})
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise LatentflowError(f"The model in {folder} cannot be loaded on {device} as {dtype}: {reason}.") from error
    app: FastAPI = scoring_server.init(model)

    @app.middleware("http")
    async def refuse_untyped(request: "Request", answer: "Callable[[Request], Awaitable[Response]]") -> "Response":
        """MLflow answers 500 to a request that does not say what it is."""
        if request.url.path == "/invocations" and not request.headers.get("content-type"):
            text = "The header Content-Type is missing: send application/json or text/csv."
            return JSONResponse({"error_code": "BAD_REQUEST", "message": text}, status_code=400)
        return await answer(request)

    return app


def find(model: str) -> Path:
    """The folder of an MLflow model: a registered one is downloaded into the work store, a folder is checked."""
    if model.startswith("models:/"):
        return package(model)
    if not (Path(model) / "MLmodel").is_file():
        raise LatentflowError(
            f"{model} holds no MLmodel: give models:/<name>@<alias>, or the folder of an MLflow model "
            "(`mlflow artifacts download -u models:/<name>@<alias>` makes one)."
        )
    return Path(model)
