"""Rows -> records, by requests to a running endpoint, tried again where that makes sense."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any, Final

import httpx2

from llama_endpoints.evaluation.targets.protocols import Protocol, body, text_in
from llama_endpoints.evaluation.tasks.task import Row
from llama_serving.batch.journal import Entry, EntryState
from llama_serving.contract.json_lines import json_line
from llama_serving.errors import SetupError
from llama_serving.trust import distrust, trusted_certificates

PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Before each further try."""
_LONGEST_PAUSE_S: Final = 60.0
_CONNECT_S: Final = 20.0
_ANSWER_S: Final = 310.0
"""Azure's front end gives up after at most 300 s (Kubernetes)."""
_AGAIN: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_REFUSED: Final = frozenset((401, 403, 404, 405))
"""What no row can change."""
_INNER_STATUS: Final = "ms-azureml-model-error-statuscode"
_DEPLOYMENT: Final = "azureml-model-deployment"


class _Away(Exception):
    """The endpoint does not answer, or not now.

    Args:
        reason: in words.
        retry_after: seconds that it asks to wait.
    """

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class EndpointClient:
    """Asks an endpoint, from any thread.

    Attributes:
        http: with the headers of all requests.
        address: of the route.
        model: name for OpenAI's routes.
        stop: set when no request is to be tried again.
    """

    http: httpx2.Client
    address: str
    protocol: Protocol
    model: str
    stop: Event = field(default_factory=Event)

    def entry(self, number: int, row: Row) -> Entry:
        """Return the journal's entry of a row.

        Raises:
            SetupError: the endpoint does not answer, refuses every row, or is of another kind.
        """
        status, response = self.post(body(self.protocol, row, self.model))
        return (
            self._refused(number, row, response, status) if status != 200 else self._text(number, row, response)
        )

    def token_logprobs(self, ids: Sequence[int]) -> list[float]:
        """Return the log-probability of each token of a prompt but the first, in nats. The route is `/v1/completions`.

        Raises:
            SetupError: the endpoint does not answer, or returns none.
        """
        asked = {"model": self.model, "prompt": list(ids), "max_tokens": 0, "echo": True, "logprobs": 0}
        status, response = self.post(asked)
        if status != 200:
            raise SetupError(f"{self.address} answered {status}: {_error(response, status)['message']}")
        try:
            found = [float(one) for one in response.json()["choices"][0]["logprobs"]["token_logprobs"][1:]]
        except (ValueError, LookupError, TypeError) as error:
            raise SetupError(f"{self.address} returns no log-probabilities of a prompt.") from error
        if len(found) != len(ids) - 1:
            raise SetupError(
                f"{self.address} read {len(found) + 1} tokens instead of {len(ids)}. Is --model its model?"
            )
        return found

    def post(self, content: Mapping[str, Any]) -> tuple[int, httpx2.Response]:
        """Send a request, again where that makes sense, and return the status and the answer.

        Raises:
            SetupError: the endpoint does not answer, or refuses every request.
        """
        for pause in (*PAUSES_S, None):
            try:
                return self._posted(content)
            except _Away as error:
                seconds = None if pause is None else min(_LONGEST_PAUSE_S, max(pause, error.retry_after))
                if seconds is None or self.stop.wait(seconds):
                    raise SetupError(
                        f"{self.address}: {error}. What is finished is kept: run the same command again."
                    ) from error
        raise AssertionError  # (the last pause is None)

    def _posted(self, content: Mapping[str, Any]) -> tuple[int, httpx2.Response]:
        try:
            response = self.http.post(self.address, content=json.dumps(content))
        except httpx2.TransportError as error:
            if (why := distrust(error)) is not None:
                raise SetupError(f"{self.address} can't be used: {why}.") from error
            raise _Away(f"no answer ({type(error).__name__})") from error
        status = _status(response)
        if status in _REFUSED:
            said = _error(response, status)["message"]
            raise SetupError(f"{self.address} answered {status}: {said} Check --url and the key.")
        if status in _AGAIN:
            raise _Away(f"status {status}", _seconds(response.headers.get("Retry-After", "")))
        return status, response

    def _refused(self, number: int, row: Row, response: httpx2.Response, status: int) -> Entry:
        record = {"output": None, "finish_reason": None, "usage": None, "error": _error(response, status)}
        return Entry(number, EntryState.ERROR, 0, 0, _line(number, row, record))

    def _text(self, number: int, row: Row, response: httpx2.Response) -> Entry:
        try:
            found = text_in(self.protocol, response.json())
        except ValueError as error:
            raise SetupError(f"{self.address}: {error}. Check --protocol.") from error
        usage = dict(found.usage)
        record = {"output": found.text, "finish_reason": found.finish_reason, "usage": usage, "error": None}
        used = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        return Entry(number, EntryState.OK, *used, _line(number, row, record))


def http_client(url: str, key: str | None, deployment: str | None) -> httpx2.Client:
    """Return a client for an endpoint.

    Args:
        url: address of the endpoint.
        key: sent as a bearer token.
        deployment: the deployment that Azure ML is to send requests to; None for its traffic rules.
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    if deployment is not None:
        headers[_DEPLOYMENT] = deployment
    return httpx2.Client(
        headers=headers, timeout=httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S), verify=trusted_certificates(url)
    )


def _line(number: int, row: Row, record: dict[str, Any]) -> str:
    return json_line({"file": "requests.jsonl", "line": number + 1, "id": row["id"], **record, "extra": {}})


def _status(response: httpx2.Response) -> int:
    """Return the container's own status where Azure's front end has turned it into 424."""
    inner = response.headers.get(_INNER_STATUS, "")
    return int(inner) if inner.isdigit() else int(response.status_code)


def _error(response: httpx2.Response, status: int) -> dict[str, Any]:
    try:
        found = response.json()["error"]
        return {"code": str(found.get("code") or status), "message": str(found["message"])}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {"code": str(status), "message": f"The endpoint answered with status {status}."}


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0
