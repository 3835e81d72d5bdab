"""Azure ML's endpoints by azure-ai-ml: one question, one change, and what Azure says to it in one sentence."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from llama_endpoints.azure.credentials import NOT_INSTALLED, login, said
from llama_endpoints.azure.sdk import quiet
from llama_endpoints.azure.workspace import Workspace
from llama_endpoints.endpoints import polling
from llama_serving.errors import SetupError

PATIENCE_S = 600.0
"""So long a change is tried again while somebody else has one under way."""
_RETRIES: Final = 4
_BAD: Final = 400
_CONFLICT: Final = 409


class EndpointKind(StrEnum):
    """Azure ML's two kinds of endpoints."""

    ONLINE = "online"
    BATCH = "batch"


class OperationFailed(SetupError):
    """Azure took a change on, and then it failed; the words say why."""


class Refused(SetupError):
    """Azure does not do what it was asked for."""


@dataclass(frozen=True, slots=True)
class Client:
    """A workspace's endpoints of a kind.

    Attributes:
        ml: azure-ai-ml's client.
    """

    ml: Any
    kind: EndpointKind

    @classmethod
    def of(cls, where: Workspace, kind: EndpointKind) -> "Client":
        """Nobody is asked yet.

        Raises:
            SetupError: azure-ai-ml is not there.
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
        """Operations on endpoints of its kind."""
        return self.ml.online_endpoints if self.kind is EndpointKind.ONLINE else self.ml.batch_endpoints

    @property
    def deployments(self) -> Any:
        """Operations on their deployments."""
        return self.ml.online_deployments if self.kind is EndpointKind.ONLINE else self.ml.batch_deployments

    def endpoint(self, name: str) -> Any:
        """azure-ai-ml's entity, or None."""
        return self.found(f"the endpoint {name}", lambda: self.endpoints.get(name))

    def deployment(self, endpoint: str, name: str) -> Any:
        """azure-ai-ml's entity, or None."""
        return self.found(
            f"the deployment {endpoint}/{name}", lambda: self.deployments.get(name=name, endpoint_name=endpoint)
        )

    def existing(self, endpoint: str) -> Any:
        """An endpoint's entity.

        Raises:
            Refused: there is none.
        """
        found = self.endpoint(endpoint)
        if found is None:
            flag = "" if self.kind is EndpointKind.ONLINE else " as a batch endpoint"
            raise Refused(
                f"There is no endpoint {endpoint}{flag}. `az ml {self.kind}-endpoint list` shows those of the workspace."
            )
        return found

    def found(self, what: str, get: Callable[[], Any]) -> Any:
        """What Azure has there, or None.

        Raises:
            Refused: Azure does not say.
        """
        from azure.core.exceptions import ResourceNotFoundError

        with asked(what):
            try:
                return get()
            except ResourceNotFoundError:
                return None

    def changed(self, begin: Callable[[], Any], what: str, again: str) -> Any:
        """A change, begun and waited for; what Azure has then.

        Args:
            begin: gives azure-ai-ml's poller, or (where nothing takes long) the result.
            what: is done, in words.
            again: a command that shows how it goes on.

        Raises:
            Refused: Azure does not take it.
            OperationFailed: it did, and it has failed.
        """
        from azure.core.exceptions import HttpResponseError

        # (Its poller prints from a thread of its own, from its making on.)
        with polling.shown(what, again) as tick, asked(what), polling.silent():
            poller = _begun(begin, tick)
            if not hasattr(poller, "done"):
                return poller
            try:
                return polling.finished(poller, tick)
            except HttpResponseError as error:
                if (
                    not error.status_code or error.status_code >= _BAD
                ):  # it can't be asked, which says nothing of the change
                    raise
                raise OperationFailed(f"{what}: {_advised(said(error))}") from error


def _begun(begin: Callable[[], Any], tick: Callable[[], None]) -> Any:
    """Begin; again while somebody else has a change under way."""
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
def asked(what: str) -> Iterator[None]:
    """What Azure has said, and what can be done about it.

    Args:
        what: it was asked about or to do.

    Raises:
        Refused: it said anything but yes.
    """
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        with quiet():
            yield
    except AzureError as error:
        status, why = getattr(error, "status_code", None), _advised(said(error))
        if isinstance(error, ClientAuthenticationError) or status == 401:
            sentence = f"Azure does not know who asks ({what}): {why}. Run `az login`, again where the login has expired"
        elif status == 403:
            sentence = f"You may not ({what}): {why}. Ask for the role AzureML Data Scientist on the workspace"
        elif status == _CONFLICT:
            sentence = f"Somebody else changes it ({what}): {why}. Look with `llama-endpoints status`, and run the same command again"
        elif status is None:
            sentence = f"Azure can't be asked ({what}): {why}. Check the network and its proxy (HTTPS_PROXY)"
        elif status == 429 or status >= 500:
            sentence = (
                f"Azure says {status} ({what}): {why}. What was done stays: run the same command again later"
            )
        else:
            sentence = f"Azure refuses it ({what}): {why}"
        raise Refused(f"{sentence}.") from error


def _advised(why: str) -> str:
    """With what helps against the refusal that everybody meets first."""
    if "quota" not in why.lower():
        return why
    return (
        f"{why}. `llama-endpoints plan` says how many cores of which family to ask for (Azure portal, Quotas)"
    )
