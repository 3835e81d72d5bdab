"""A model behind an address: one of our own servers."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx2

from llama_endpoints.chat.model import Body, Events, Refused
from llama_endpoints.connection import address
from llama_serving.errors import SetupError
from llama_serving.trust import distrust, trusted_certificates

CONNECT_S: Final = 10.0
STALL_S: Final = 300.0
"""Seconds without a byte after which an answer is given up; the server's own time limit comes first."""
DONE: Final = "[DONE]"


class RemoteModel:
    """See `ChatModel`.

    Args:
        url: address of the server, with or without `/v1`.
        key: sent as a bearer token.
        key_name: the variable that holds it, for messages.
    """

    def __init__(self, url: str, key: str | None, *, key_name: str) -> None:
        """Ask the server for its model.

        Raises:
            SetupError: the address is none, or the server does not answer as ours do.
        """
        self._url = address.checked(url, name="--url")
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(STALL_S, connect=CONNECT_S),
            verify=trusted_certificates(self._url),
            trust_env=not address.is_loopback(self._url),
        )
        try:
            card = self._card(key_name)
        except SetupError:
            self.close()
            raise
        self.name = str(card["id"])
        self.capabilities: tuple[str, ...] = tuple(
            card.get("capabilities") or ("completion", "infilling", "chat")
        )

    def stream(self, body: Body) -> Events:
        """See `ChatModel.stream`."""
        route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        try:
            with self._http.stream("POST", self._url + route, json=dict(body)) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                yield from _events(response)
        except httpx2.TransportError as error:
            raise Refused(f"{self._url} does not answer: {address.reason(error)}.") from error

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _card(self, key_name: str) -> Mapping[str, Any]:
        try:
            response = self._http.get(f"{self._url}/v1/models")
        except httpx2.TransportError as error:
            if (why := distrust(error)) is not None:
                raise SetupError(f"{self._url} can't be used: {why}.") from error
            raise SetupError(
                f"{self._url} does not answer: {address.reason(error)}. Start a server with `llama-endpoints serve`, or give "
                "another --url."
            ) from error
        if response.status_code == 401:
            raise SetupError(f"{self._url} needs a key. Put one of its keys into the variable {key_name}.")
        if response.status_code != 200:
            raise SetupError(f"{self._url} can't be used now: {_refused(response)}")
        try:
            card = response.json()["data"][0]
            return {**card, "id": card["id"]}
        except (ValueError, LookupError, TypeError) as error:
            raise SetupError(f"{self._url} is no server of a model: it lists none at /v1/models.") from error


def _events(response: httpx2.Response) -> Iterator[Mapping[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if data == DONE:
            return
        if not line.startswith("data:"):
            continue
        event = _json(data)
        if not isinstance(event, dict):
            raise Refused("The server sent something that is no event of a text.")
        if "error" in event:
            raise _refusal(event)
        yield event
    raise Refused("The connection ended before the text did. The text is incomplete.")


def _refused(response: httpx2.Response) -> Refused:
    said = _json(response.text)
    if isinstance(said, dict) and "error" in said:
        return _refusal(said)
    return Refused(f"The server answered with status {response.status_code}.")


def _refusal(said: Mapping[str, Any]) -> Refused:
    error = said["error"]
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return Refused("The server refused the request without a reason.")
    return Refused(error["message"], error.get("code"))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
