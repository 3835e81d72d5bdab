"""A deployment of an online endpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llama_endpoints.azure.sdk import quiet
from llama_endpoints.endpoints.client import OperationFailed
from llama_endpoints.endpoints.files import Files
from llama_endpoints.endpoints.plan import FULL
from llama_endpoints.endpoints.scoring import OK, Scoring
from llama_endpoints.endpoints.target import Target, near
from llama_serving.errors import SetupError

SAMPLE: Final = Path("online/samples/completion.json")
"""Below yaml/."""


def sample(files: Files) -> Path:
    """What a deployment is asked where nothing else is said: the sample around its file.

    Raises:
        SetupError: it is not there.
    """
    found = files.deployment.path.absolute().parent.parent / SAMPLE
    if not found.is_file():
        raise SetupError(f"What is it to be asked? {found} is not there. Give --request with a file of a body.")
    return found


@dataclass(frozen=True, slots=True)
class OnlineTarget(Target):
    """Managed, or on Kubernetes.

    Attributes:
        request: file with the body that a new deployment is asked with.
    """

    request: Path = field(kw_only=True)

    def load_endpoint(self) -> Any:
        """With the name that was asked for."""
        from azure.ai import ml

        with quiet():
            return ml.load_online_endpoint(self.files.endpoint.path, params_override=[{"name": self.endpoint}])

    def load_deployment(self) -> Any:
        """Likewise."""
        from azure.ai import ml

        with quiet():
            override = [{"endpoint_name": self.endpoint}]
            return ml.load_online_deployment(self.files.deployment.path, params_override=override)

    def traffic_of(self, endpoint: Any) -> Mapping[str, int]:
        """As the endpoint says."""
        return dict(endpoint.traffic or {})

    def move_traffic(self) -> None:
        """All of it to this deployment, which then can't be mirrored to."""

        def begin() -> Any:
            endpoint = self.client.existing(self.endpoint)
            endpoint.traffic = {self.name: FULL}
            if hasattr(endpoint, "mirror_traffic"):
                endpoint.mirror_traffic = {}
            return self.client.endpoints.begin_create_or_update(endpoint)

        self.client.changed(begin, f"traffic of {self.endpoint}", self.again)

    def ask(self) -> None:
        """One request, to this deployment alone."""
        reply = Scoring(self.client, self.endpoint).ask(self.request.read_bytes(), self.name)
        if reply.status != OK:
            raise OperationFailed(
                f"{self.endpoint}/{self.name} is up and answers {reply.status} to {near(self.request)}: {reply.text[:300]}"
            )
