"""Deployments of batch endpoints."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llama_endpoints.endpoints.plan import Asset, ResourceKind
from llama_endpoints.endpoints.target import Target, near


@dataclass(frozen=True, slots=True)
class BatchTarget(Target):
    """A batch deployment. Its traffic is all or nothing: the endpoint's default deployment."""

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

    def move_traffic(self) -> None:
        """Make this deployment the endpoint's default."""

        def begin() -> Any:
            endpoint = self.client.get_endpoint(self.endpoint)
            endpoint.defaults = {"deployment_name": self.name}
            return self.client.endpoints.begin_create_or_update(endpoint)

        self.client.run_operation(begin, f"default of {self.endpoint}", self.status_command)
