"""A real S3 server on this machine, for tests that keep things behind a URL."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def s3_bucket(name: str) -> Iterator[str]:
    """The URL of an empty bucket; the server's address and keys lie in the environment."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed (extra dev)")
    import fsspec

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "key")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # A file system that was opened for another server would still speak to that one.
        fsspec.filesystem("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir(name)
        yield f"s3://{name}"
    server.stop()
