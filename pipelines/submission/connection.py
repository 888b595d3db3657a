"""The way to Kubeflow: kfp's client with the credentials at hand, and its refusals as sentences."""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import kfp
import urllib3
from kfp.client import KF_PIPELINES_SA_TOKEN_PATH, ServiceAccountTokenVolumeCredentials
from kfp_server_api import ApiException

from latentflow.errors import LatentflowError

T = TypeVar("T")

ENDPOINT, UI_ENDPOINT = "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"
_OPEN = "be opened"
_PAGE = "docs/submit.md says how to get a token for each kind of installation"


class KubeflowError(LatentflowError):
    """Kubeflow could not be reached or refused a request."""


class UnavailableError(KubeflowError):
    """Kubeflow does not answer just now; the same request may work later."""


class CredentialsError(KubeflowError):
    """Kubeflow wants a token, or another one."""


@dataclass(frozen=True)
class Connection:
    """Where Kubeflow is and who asks; whatever is empty is found as kfp's client finds it."""

    host: str = ""
    namespace: str = ""
    existing_token: str = field(default="", repr=False)
    token_file: Path | None = None
    cookies: str = field(default="", repr=False)
    ui_host: str = ""
    kube_context: str = ""
    proxy: str = ""
    ssl_ca_cert: str = ""
    verify_ssl: bool = True

    @property
    def address(self) -> str:
        """The host that was named; empty inside a cluster and where kubectl's configuration says it."""
        return self.host or os.environ.get(ENDPOINT, "")

    @property
    def shown(self) -> str:
        """The address as it may be printed."""
        if self.address:
            return self.address.rpartition("@")[2]
        if in_cluster():
            return "this cluster"
        return "kubectl's current context" if _kube_config().is_file() else f"none named (--host or {ENDPOINT})"

    @property
    def user_interface(self) -> str:
        """The base address of Kubeflow's pages; empty when it cannot be known."""
        base = self.ui_host or os.environ.get(UI_ENDPOINT, "") or self.address
        base = base if not base or base.startswith("http") else f"https://{base}"
        return base.rstrip("/")

    @property
    def renews_itself(self) -> bool:
        """Whether the token is read again from a file for every request."""
        return not self._fixed_token and self._credentials() is not None

    @property
    def _fixed_token(self) -> str:
        """The token in the environment or on the command line; a file that was named comes before it."""
        return "" if self.token_file else self.existing_token

    def _credentials(self) -> Any:
        mounted = Path(os.environ.get(TOKEN_PATH) or KF_PIPELINES_SA_TOKEN_PATH)
        path = self.token_file or (mounted if mounted.is_file() else None)
        return ServiceAccountTokenVolumeCredentials(str(path)) if path else None

    def client(self) -> "_Client":
        """kfp's client. Raises KubeflowError with what to do."""
        if not self.address and not in_cluster() and not _kube_config().is_file():
            raise KubeflowError(
                f"No address of Kubeflow: give --host, or set {ENDPOINT}, such as http://localhost:8080 after "
                "`kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80`."
            )
        if self.token_file and not self.token_file.is_file():
            raise KubeflowError(f"--token-file {self.token_file}: there is no such file.")
        with quiet(), api_errors(self.shown, _OPEN):
            return _Client(
                host=self.host or None,
                existing_token=self._fixed_token or None,
                cookies=self.cookies or None,
                credentials=self._credentials(),
                ui_host=self.ui_host or None,
                kube_context=self.kube_context or None,
                proxy=self.proxy or None,
                ssl_ca_cert=self.ssl_ca_cert or None,
                verify_ssl=None if self.verify_ssl else False,
            )


class _Client(kfp.Client):  # type: ignore[misc]
    """kfp's client, which asks once for its server's health and not five times with a traceback each."""

    def get_kfp_healthz(self, sleep_duration: int = 5) -> Any:  # noqa: ARG002
        health, _, headers = self._healthz_api.healthz_service_get_healthz_with_http_info()
        if "html" in headers.get("Content-Type", ""):
            raise ApiException(status=401, reason="a login page instead of an answer")
        return health

    def text(self, path: str, query: list[tuple[str, str]]) -> str:
        """What a path answers as text, such as a log, which the generated API does not know; same credentials."""
        # The arguments after the query: header and form parameters, files and so on that a GET has not.
        found: str = self._run_api.api_client.call_api(
            path, "GET", {}, query, {}, response_type="str", auth_settings=["Bearer"], _return_http_data_only=True
        )
        return found


@dataclass(frozen=True)
class Kubeflow:
    """An open connection: the client, and the namespace that its requests name (none in a single-user installation)."""

    client: Any
    connection: Connection
    namespace: str | None

    @property
    def shown(self) -> str:
        """The address as it may be printed."""
        return self.connection.shown

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """One request, without what kfp prints; a refusal reads "<host> could not <what>: ..."."""
        with quiet(), api_errors(self.shown, what):
            return call()


def connect(connection: Connection) -> Kubeflow:
    """Opens the connection and settles the namespace. Raises KubeflowError."""
    client = connection.client()
    with quiet(), api_errors(connection.shown, _OPEN):
        several = bool(client.get_kfp_healthz().multi_user)
    if not several:
        return Kubeflow(client, connection, None)
    namespace = connection.namespace or client.get_user_namespace()
    if not namespace:
        raise KubeflowError(f"{connection.shown} serves several users: name your namespace by --namespace.")
    return Kubeflow(client, connection, namespace)


def in_cluster() -> bool:
    """Whether this is a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


def _kube_config() -> Path:
    first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(first) if first else Path.home() / ".kube" / "config"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what kfp's client prints and warns of; our own lines say what matters."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def api_errors(host: str, what: str) -> Iterator[None]:
    """Turns what kfp's client raises into one sentence that never holds a header, a token or a cookie."""
    try:
        yield
    except ApiException as error:
        raise _refusal(host, what, error) from None
    except urllib3.exceptions.HTTPError as error:
        reason = str(getattr(error, "reason", None) or error).rsplit(": ", 1)[-1]
        if "CERTIFICATE" in str(error):
            raise KubeflowError(
                f"{host} shows a certificate that nobody here vouches for: give --ssl-ca-cert."
            ) from None
        raise UnavailableError(
            f"{host} does not answer ({reason}): is the address right, and does the port-forward still run?"
        ) from None
    except OSError as error:
        raise KubeflowError(f"{host} could not {what}: {error}.") from None


def _refusal(host: str, what: str, error: ApiException) -> KubeflowError:
    said = _message(error)
    if error.status == 401:
        return CredentialsError(f"{host} wants a token, or another one ({said}): set KF_PIPELINES_TOKEN; {_PAGE}.")
    if error.status == 403:
        return CredentialsError(
            f"{host} does not let you {what} ({said}): use a token of an account with the rights, and the --namespace "
            f"that it has them in; {_PAGE}."
        )
    if error.status == 404 and what == _OPEN:
        return KubeflowError(
            f"{host} is no address of the Kubeflow Pipelines API: for a full Kubeflow it ends in /pipeline, as in "
            "https://kubeflow.example.com/pipeline."
        )
    if error.status in (0, 429) or error.status >= 500:
        return UnavailableError(f"{host} could not {what} just now ({error.status} {said}).")
    return KubeflowError(f"{host} could not {what} ({error.status}): {said}.")


def _message(error: ApiException) -> str:
    """What the server said in its JSON answer, in one line; else the HTTP reason."""
    try:
        body = json.loads(error.body or "")
        said = body.get("message") or body.get("error") or body.get("error_message") or ""
    except (ValueError, AttributeError):
        said = ""
    line = " ".join(str(said or error.reason or "no reason given").split()).rstrip(".")
    return line if len(line) <= 300 else f"{line[:300]}..."
