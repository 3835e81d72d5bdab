"""Send requests to an online endpoint's scoring address, and return each with its status and time.

azure-ai-ml's `invoke` is not used. It sends four management requests for each one, and it keeps a deployment's name in a
module-level dict, so that later requests go there too (1.35.2, `EndpointInvokeFields.DEFAULT_HEADER`).
"""

import time
from dataclasses import dataclass
from typing import Any, Final

from llama_endpoints.endpoints.client import EndpointsClient, azure_errors

OK: Final = 200
UNREACHED: Final = 0
_UNKNOWN: Final = 401
_CONNECT_S: Final = 20
_LONGEST_S: Final = 310
"""Azure's front end gives up after at most 300 s (Kubernetes)."""
_INNER: Final = "ms-azureml-model-error-statuscode"


@dataclass(frozen=True, slots=True)
class ScoringReply:
    """An answer.

    Attributes:
        status: the container's status if Azure's front end reports it (the front end turns everything but 200 into 424); 0 without an answer.
        text: the body; without an answer the reason.
        seconds: time until the answer was complete.
        deployment: the deployment that answered, if Azure reports it.
    """

    status: int
    text: str
    seconds: float
    deployment: str = ""


class Scoring:
    """Sends requests to one endpoint, with its key."""

    def __init__(self, client: EndpointsClient, endpoint: str) -> None:
        """Look up the endpoint's address and key.

        Raises:
            Refused: the endpoint does not exist, or its key may not be read.
        """
        from azure.core import PipelineClient

        self._client, self._endpoint = client, endpoint
        self._address = str(client.get_endpoint(endpoint).scoring_uri)
        self._pipeline: Any = PipelineClient(self._address, policies=[])  # no retries: each answer counts
        self._key = self._fetch_key()

    @property
    def address(self) -> str:
        """The scoring address."""
        return self._address

    @property
    def key(self) -> str:
        """The key or token, as it was last fetched."""
        return self._key

    def send(self, body: bytes, deployment: str | None = None) -> ScoringReply:
        """Send one request to a deployment, or to the endpoint's traffic split. An expired key or token is fetched again."""
        reply = self._post(body, deployment)
        if reply.status == _UNKNOWN:
            self._key = self._fetch_key()
            reply = self._post(body, deployment)
        return reply

    def _fetch_key(self) -> str:
        with azure_errors(f"the key of {self._endpoint}"):
            keys = self._client.endpoints.get_keys(self._endpoint)
        return str(getattr(keys, "primary_key", None) or keys.access_token)

    def _post(self, body: bytes, deployment: str | None) -> ScoringReply:
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
            return ScoringReply(UNREACHED, str(error).partition("\n")[0], time.monotonic() - began)
        status = int(response.headers.get(_INNER) or response.status_code)
        return ScoringReply(
            status,
            response.text(),
            time.monotonic() - began,
            response.headers.get("azureml-model-deployment", ""),
        )
