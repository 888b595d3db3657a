"""A pipeline with images and places among its inputs, a loop in a nested pipeline and a task with retries."""

from typing import Any

from kfp import dsl


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def check(overrides: dict, storage: str) -> list:  # type: ignore[type-arg]
    return [storage, str(overrides)]


@dsl.component(base_image="latentflow-cpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def encode(part: str) -> str:
    return part


@dsl.component(base_image="latentflow-gpu:0.1.0", install_kfp_package=False)  # type: ignore[untyped-decorator]
def train(steps: int, rate: float, parts: list) -> int:  # type: ignore[type-arg]
    return int(steps * rate * len(parts))


@dsl.pipeline(name="encode-in-parts")  # type: ignore[untyped-decorator]
def encode_in_parts(parts: list[str]) -> list[str]:
    with dsl.ParallelFor(parts) as part:
        encoded = encode(part=part)
    return dsl.Collected(encoded.output)  # type: ignore[no-any-return]


@dsl.pipeline(name="small")  # type: ignore[untyped-decorator]
def small(
    train_steps: int = 1300,
    train_learning_rate: float = 0.003,
    encode_flip: bool = False,
    image_cpu: str = "latentflow-cpu:0.1.0",
    image_gpu: str = "latentflow-gpu:0.1.0",
    storage: str = "",
    encode_parts: int = 1,
    overrides: dict[str, Any] = {},  # noqa: B006
) -> None:
    """A small pipeline for tests."""
    checked = check(overrides=overrides, storage=storage).set_container_image(image_cpu)
    encoded = encode_in_parts(parts=checked.output)
    trained = train(steps=train_steps, rate=train_learning_rate, parts=encoded.output)
    trained.set_container_image(image_gpu).set_retry(num_retries=2)
