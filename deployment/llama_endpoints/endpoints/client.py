"""Azure ML's endpoint operations through azure-ai-ml, with retries, progress and one-sentence errors."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from llama_endpoints.azure.credentials import NOT_INSTALLED, error_line, login
from llama_endpoints.azure.sdk import quiet
from llama_endpoints.azure.workspace import Workspace
from llama_endpoints.endpoints import polling
from llama_serving.errors import SetupError

PATIENCE_S = 600.0
"""How long a change is retried while another one is in progress."""
_RETRIES: Final = 4
_BAD: Final = 400
_CONFLICT: Final = 409


class EndpointKind(StrEnum):
    """The two kinds of Azure ML endpoints."""

    ONLINE = "online"
    BATCH = "batch"


class OperationFailed(SetupError):
    """Azure accepted a change, and the operation then failed. The message says why."""


class Refused(SetupError):
    """Azure refused a request."""


@dataclass(frozen=True, slots=True)
class EndpointsClient:
    """A workspace's endpoints of one kind.

    Attributes:
        ml: azure-ai-ml's `MLClient`.
    """

    ml: Any
    kind: EndpointKind

    @classmethod
    def of(cls, where: Workspace, kind: EndpointKind) -> "EndpointsClient":
        """Create a client. No request is sent yet.

        Raises:
            SetupError: azure-ai-ml is not installed.
        """
        import sys

        try:
            with quiet():
                from azure.ai.ml import MLClient
        except ImportError:
            raise SetupError(NOT_INSTALLED) from None
        given = {"enable_telemetry": False, "retry_total": _RETRIES, "show_progress": sys.stderr.isatty()}
        with quiet():
            return cls(MLClient(login(), where.subscription, where.group, where.name, **given), kind)

    @property
    def endpoints(self) -> Any:
        """The operations on endpoints of this kind."""
        return self.ml.online_endpoints if self.kind is EndpointKind.ONLINE else self.ml.batch_endpoints

    @property
    def deployments(self) -> Any:
        """The operations on their deployments."""
        return self.ml.online_deployments if self.kind is EndpointKind.ONLINE else self.ml.batch_deployments

    def find_endpoint(self, name: str) -> Any:
        """Return azure-ai-ml's entity, or None if there is none."""
        return self.get_or_none(f"the endpoint {name}", lambda: self.endpoints.get(name))

    def find_deployment(self, endpoint: str, name: str) -> Any:
        """Return azure-ai-ml's entity, or None if there is none."""
        return self.get_or_none(
            f"the deployment {endpoint}/{name}", lambda: self.deployments.get(name=name, endpoint_name=endpoint)
        )

    def get_endpoint(self, endpoint: str) -> Any:
        """Return an endpoint's entity.

        Raises:
            Refused: the endpoint does not exist.
        """
        found = self.find_endpoint(endpoint)
        if found is None:
            flag = "" if self.kind is EndpointKind.ONLINE else " as a batch endpoint"
            raise Refused(
                f"Endpoint {endpoint} not found{flag}. List the workspace's endpoints with `az ml {self.kind}-endpoint list`."
            )
        return found

    def get_or_none(self, what: str, get: Callable[[], Any]) -> Any:
        """Return what `get` returns, or None if Azure has no such resource.

        Raises:
            Refused: Azure answers with any other error.
        """
        from azure.core.exceptions import ResourceNotFoundError

        with azure_errors(what):
            try:
                return get()
            except ResourceNotFoundError:
                return None

    def run_operation(self, begin: Callable[[], Any], what: str, status_command: str) -> Any:
        """Start a change, wait until it ends, and return the result.

        Args:
            begin: returns azure-ai-ml's poller, or the result if there is nothing to wait for.
            what: the change, in words.
            status_command: a command that shows its progress.

        Raises:
            Refused: Azure does not accept the change.
            OperationFailed: Azure accepted it, and it failed.
        """
        from azure.core.exceptions import HttpResponseError

        # azure-ai-ml's poller prints from its own thread as soon as it exists.
        with polling.progress_line(what, status_command) as tick, azure_errors(what), polling.silent():
            poller = _begun(begin, tick)
            if not hasattr(poller, "done"):
                return poller
            try:
                return polling.result_of(poller, tick)
            except HttpResponseError as error:
                if (
                    not error.status_code or error.status_code >= _BAD
                ):  # polling failed, which says nothing about the change itself
                    raise
                raise OperationFailed(f"{what}: {_advised(error_line(error))}") from error


def _begun(begin: Callable[[], Any], tick: Callable[[], None]) -> Any:
    """Start a change. Retry while another one is in progress."""
    from azure.core.exceptions import HttpResponseError

    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            with polling.silent():
                return begin()
        except HttpResponseError as error:
            if error.status_code != _CONFLICT or time.monotonic() > until:
                raise
        time.sleep(polling.EVERY_S)
        tick()


@contextmanager
def azure_errors(what: str) -> Iterator[None]:
    """Turn Azure's errors into one sentence that says what to do.

    Args:
        what: what was requested, in words.

    Raises:
        Refused: Azure answered with an error.
    """
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        with quiet():
            yield
    except AzureError as error:
        status, why = getattr(error, "status_code", None), _advised(error_line(error))
        if isinstance(error, ClientAuthenticationError) or status == 401:
            sentence = f"Azure authentication failed ({what}): {why}. Run `az login`"
        elif status == 403:
            sentence = (
                f"Permission denied ({what}): {why}. Ask for the role AzureML Data Scientist on the workspace"
            )
        elif status == _CONFLICT:
            sentence = f"Another change is in progress ({what}): {why}. Check `llama-endpoints status`, then run the same command again"
        elif status is None:
            sentence = f"Cannot reach Azure ({what}): {why}. Check the network and its proxy (HTTPS_PROXY)"
        elif status == 429 or status >= 500:
            sentence = f"Azure answered {status} ({what}): {why}. Completed steps are kept: run the same command again later"
        else:
            sentence = f"Azure refused the request ({what}): {why}"
        raise Refused(f"{sentence}.") from error


def _advised(why: str) -> str:
    """Add advice to quota errors, the most common refusal."""
    if "quota" not in why.lower():
        return why
    return (
        f"{why}. `llama-endpoints plan` shows how many cores of which family to request (Azure portal, Quotas)"
    )
