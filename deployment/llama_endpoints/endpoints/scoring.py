"""Requests to an online endpoint over its scoring address, each with its status and its time.

azure-ai-ml's own `invoke` is not used: it asks the management plane four times for each request, and it keeps the name of a
deployment in a table of its module, so that each later request goes there, too (1.35.2, `EndpointInvokeFields.DEFAULT_HEADER`).
"""

import time
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.endpoints.client import Client, asked

OK: Final = 200
UNREACHED: Final = 0
_UNKNOWN: Final = 401
_CONNECT_S: Final = 20
_LONGEST_S: Final = 310
"""Azure's front gives up after 300 s at the latest (Kubernetes)."""
_INNER: Final = "ms-azureml-model-error-statuscode"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        status: of the container, where the front says it (it makes 424 of what is not 200); 0 where nothing came.
        text: the body; where nothing came, why.
        seconds: until all of it was there.
        deployment: that answered, where the front says it.
    """

    status: int
    text: str
    seconds: float
    deployment: str = ""


class Scoring:
    """An endpoint's scoring address, and the key to it."""

    def __init__(self, client: Client, endpoint: str) -> None:
        """Asks where it is and for the key.

        Raises:
            Refused: there is no such endpoint, or it may not be called.
        """
        from azure.core import PipelineClient

        self._client, self._endpoint = client, endpoint
        self._address = str(client.existing(endpoint).scoring_uri)
        self._pipeline: Any = PipelineClient(self._address, policies=[])  # (no retries: each answer counts)
        self._key = self._fetch()

    def ask(self, body: bytes, deployment: str | None = None) -> Reply:
        """One request; to a deployment alone, or to whom the traffic goes. A key or token that has expired is fetched again."""
        reply = self._send(body, deployment)
        if reply.status == _UNKNOWN:
            self._key = self._fetch()
            reply = self._send(body, deployment)
        return reply

    def _fetch(self) -> str:
        with asked(f"the key of {self._endpoint}"):
            keys = self._client.endpoints.get_keys(self._endpoint)
        return str(getattr(keys, "primary_key", None) or keys.access_token)

    def _send(self, body: bytes, deployment: str | None) -> Reply:
        from azure.core.exceptions import AzureError
        from azure.core.rest import HttpRequest

        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        if deployment is not None:
            headers["azureml-model-deployment"] = deployment
        request, began = HttpRequest("POST", self._address, headers=headers, content=body), time.monotonic()
        try:
            response = self._pipeline.send_request(
                request, connection_timeout=_CONNECT_S, read_timeout=_LONGEST_S
            )
        except AzureError as error:
            return Reply(UNREACHED, str(error).partition("\n")[0], time.monotonic() - began)
        status = int(response.headers.get(_INNER) or response.status_code)
        return Reply(
            status,
            response.text(),
            time.monotonic() - began,
            response.headers.get("azureml-model-deployment", ""),
        )
