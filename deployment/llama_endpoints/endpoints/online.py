"""Deployments of online endpoints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llama_endpoints.endpoints.client import OperationFailed
from llama_endpoints.endpoints.files import Files
from llama_endpoints.endpoints.plan import FULL
from llama_endpoints.endpoints.scoring import OK, Scoring
from llama_endpoints.endpoints.target import Target, near
from llama_serving.errors import SetupError

SAMPLE: Final = Path("online/samples/completion.json")
"""The default test request, below yaml/."""


def sample(files: Files) -> Path:
    """Return the default test request: the sample near the deployment's file.

    Raises:
        SetupError: it does not exist.
    """
    found = files.deployment.path.absolute().parent.parent / SAMPLE
    if not found.is_file():
        raise SetupError(f"No test request: {found} does not exist. Pass a file with a JSON body as --request.")
    return found


@dataclass(frozen=True, slots=True)
class OnlineTarget(Target):
    """A managed or Kubernetes online deployment.

    Attributes:
        request: file with the body of the test request.
    """

    request: Path = field(kw_only=True)

    def move_traffic(self) -> None:
        """Send all traffic to this deployment, and end mirroring, which Azure forbids for a deployment with traffic."""

        def begin() -> Any:
            endpoint = self.client.get_endpoint(self.endpoint)
            endpoint.traffic = {self.name: FULL}
            if hasattr(endpoint, "mirror_traffic"):
                endpoint.mirror_traffic = {}
            return self.client.endpoints.begin_create_or_update(endpoint)

        self.client.run_operation(begin, f"traffic of {self.endpoint}", self.status_command)

    def send_test_request(self) -> None:
        """Send one test request to this deployment alone."""
        reply = Scoring(self.client, self.endpoint).send(self.request.read_bytes(), self.name)
        if reply.status != OK:
            raise OperationFailed(
                f"{self.endpoint}/{self.name} started, but answered {reply.status} to {near(self.request)}: {reply.text[:300]}"
            )
