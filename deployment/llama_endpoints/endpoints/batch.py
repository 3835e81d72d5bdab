"""A deployment of a batch endpoint."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llama_endpoints.azure.sdk import quiet
from llama_endpoints.endpoints.plan import FULL, Asset, Noun
from llama_endpoints.endpoints.target import Target, near


@dataclass(frozen=True, slots=True)
class BatchTarget(Target):
    """Its traffic is the default deployment: all or nothing."""

    def load_endpoint(self) -> Any:
        """With the name that was asked for."""
        from azure.ai import ml

        with quiet():
            return ml.load_batch_endpoint(self.files.endpoint.path, params_override=[{"name": self.endpoint}])

    def load_deployment(self) -> Any:
        """Likewise."""
        from azure.ai.ml.entities._load_functions import load_model_batch_deployment

        with quiet():
            override = [{"endpoint_name": self.endpoint}]
            return load_model_batch_deployment(self.files.deployment.path, params_override=override)

    def assets(self) -> Iterator[Asset]:
        """The cluster as well."""
        yield from Target.assets(self)  # (`super()` does not find the class that slots make)
        cluster, file = self.files.deployment.text("compute").removeprefix("azureml:"), self.files.compute
        if "/" not in cluster:
            yield Asset(
                Noun.COMPUTE,
                cluster,
                None if file is None else near(file.path),
                "Write a file for it under yaml/batch/compute/",
            )

    def ask(self) -> None:
        """No plan of a batch deployment asks: a job is a matter of minutes, and of money."""
        raise AssertionError("a batch deployment is not asked")

    def traffic_of(self, endpoint: Any) -> Mapping[str, int]:
        """100 for the default one."""
        name = default_of(endpoint)
        return {name: FULL} if name else {}

    def move_traffic(self) -> None:
        """It becomes the default."""

        def begin() -> Any:
            endpoint = self.client.existing(self.endpoint)
            endpoint.defaults = {"deployment_name": self.name}
            return self.client.endpoints.begin_create_or_update(endpoint)

        self.client.changed(begin, f"default of {self.endpoint}", self.again)


def default_of(endpoint: Any) -> str:
    """The deployment that a job runs on where none is named; azure-ai-ml reads it under another name than it writes it."""
    given = endpoint.defaults or {}
    return str(given.get("deployment_name") or given.get("deploymentName") or "")
