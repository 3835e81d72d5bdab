"""Deployments of batch endpoints."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llama_endpoints.azure.sdk import quiet
from llama_endpoints.endpoints.plan import FULL, Asset, ResourceKind
from llama_endpoints.endpoints.target import Target, near


@dataclass(frozen=True, slots=True)
class BatchTarget(Target):
    """A batch deployment. Its traffic is all or nothing: the endpoint's default deployment."""

    def load_endpoint(self) -> Any:
        """Load the endpoint under the requested name."""
        from azure.ai import ml

        with quiet():
            return ml.load_batch_endpoint(self.files.endpoint.path, params_override=[{"name": self.endpoint}])

    def load_deployment(self) -> Any:
        """Load the deployment for the requested endpoint."""
        from azure.ai.ml.entities._load_functions import load_model_batch_deployment

        with quiet():
            override = [{"endpoint_name": self.endpoint}]
            return load_model_batch_deployment(self.files.deployment.path, params_override=override)

    def assets(self) -> Iterator[Asset]:
        """Yield the base assets and the compute cluster."""
        yield from Target.assets(self)  # `super()` does not find the class that `slots` creates
        cluster, file = self.files.deployment.text("compute").removeprefix("azureml:"), self.files.compute
        if "/" not in cluster:
            yield Asset(
                ResourceKind.COMPUTE,
                cluster,
                None if file is None else near(file.path),
                "Add its file under yaml/batch/compute/",
            )

    def send_test_request(self) -> None:
        """Never called: no batch plan has a test request, since a job takes minutes and costs money."""
        raise AssertionError("a batch deployment gets no test request")

    def traffic_of(self, endpoint: Any) -> Mapping[str, int]:
        """Return 100 % for the default deployment."""
        name = default_of(endpoint)
        return {name: FULL} if name else {}

    def move_traffic(self) -> None:
        """Make this deployment the endpoint's default."""

        def begin() -> Any:
            endpoint = self.client.get_endpoint(self.endpoint)
            endpoint.defaults = {"deployment_name": self.name}
            return self.client.endpoints.begin_create_or_update(endpoint)

        self.client.run_operation(begin, f"default of {self.endpoint}", self.status_command)


def default_of(endpoint: Any) -> str:
    """Return the name of the default deployment. azure-ai-ml reads it under another key than it writes."""
    given = endpoint.defaults or {}
    return str(given.get("deployment_name") or given.get("deploymentName") or "")
