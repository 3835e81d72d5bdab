"""Reads a server's `/metrics`."""

import time
from typing import Final

import httpx2

from llama_endpoints.connection import address
from llama_endpoints.monitoring.scrape import NotOurs, Scrape
from llama_serving.errors import SetupError
from llama_serving.trust import distrust, trusted_certificates

TIMEOUT_S: Final = 5.0
"""Without a byte. A server under load answers this route at once."""
MOST_BYTES: Final = 8 << 20


class Away(Exception):
    """The server does not answer now, and may come back. The message says why, as a sentence."""


class MetricsClient:
    """Reads the metrics of one server, over one connection.

    Args:
        url: address of the server, with or without `/v1`.
        key: sent as a bearer token.
        key_name: the variable that holds it, for messages.
    """

    def __init__(self, url: str, key: str | None, *, key_name: str) -> None:
        self.url = address.checked(url, name="URL")
        self._key_name = key_name
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT_S,
            verify=trusted_certificates(self.url),
            trust_env=not address.is_loopback(self.url),
        )

    def read(self) -> Scrape:
        """Return the metrics of now.

        Raises:
            Away: it does not answer.
            SetupError: it wants another key, or is no server of ours.
        """
        try:
            return self._scrape(*self._get())
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            if (why := distrust(error)) is not None:
                raise SetupError(f"{self.url} can't be used: {why}.") from error
            raise Away(f"{self.url} does not answer: {address.reason(error)}.") from error
        except NotOurs as error:
            raise SetupError(
                f"{self.url} is no server of `llama-endpoints serve`: {error}. Give the address of one."
            ) from error

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _scrape(self, status: int, text: str) -> Scrape:
        if status in (401, 403):
            raise SetupError(f"{self.url} needs a key. Put one of its keys into the variable {self._key_name}.")
        if status >= 500 or status == 429:
            raise Away(f"{self.url} answers with status {status}.")
        if status != 200:
            raise NotOurs(f"/metrics answers with status {status}")
        return Scrape.parse(text, time.monotonic())

    def _get(self) -> tuple[int, str]:
        """Return status and text."""
        last = time.monotonic() + TIMEOUT_S
        with self._http.stream("GET", f"{self.url}/metrics") as response:
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if time.monotonic() > last:
                    raise Away(f"{self.url} does not answer: it sends too slowly.")
                if len(content) > MOST_BYTES:
                    raise NotOurs("what it has at /metrics has no end")
            return response.status_code, content.decode("utf-8", "replace")
