"""The status of an endpoint and its deployments."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llama_endpoints.endpoints.client import EndpointsClient, azure_errors
from llama_endpoints.endpoints.rollout import summary
from llama_endpoints.endpoints.target import deployment_fields, state_of, traffic_of


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """A deployment's status.

    Attributes:
        traffic: percent; for a batch endpoint 100 for the default.
        mirrored: percent of the traffic that is mirrored to it.
        on: its instances or cluster.
    """

    name: str
    state: str
    traffic: int
    mirrored: int
    model: str
    on: str


@dataclass(frozen=True, slots=True)
class EndpointStatus:
    """An endpoint's status.

    Attributes:
        address: the scoring address.
        rollout: the current or last roll-out, in words; empty if there was none.
    """

    name: str
    state: str
    address: str
    rollout: str
    deployments: tuple[DeploymentStatus, ...]

    def lines(self) -> Iterator[str]:
        """Yield the status as text lines."""
        yield f"{self.name}: {self.state}, {self.address}"
        for row in self.deployments:
            mirrored = f", {row.mirrored} % mirrored" if row.mirrored else ""
            yield f"  {row.name}: {row.state}, {row.traffic} %{mirrored}, {row.model} on {row.on}"
        if self.rollout:
            yield f"  {self.rollout}"

    def to_dict(self) -> Mapping[str, Any]:
        """Return the status as plain JSON."""
        return asdict(self)


def endpoint_status(client: EndpointsClient, name: str) -> EndpointStatus:
    """Return an endpoint's current status.

    Raises:
        Refused: the endpoint does not exist, or Azure does not answer.
    """
    endpoint = client.get_endpoint(name)
    traffic = traffic_of(client.kind, endpoint)
    mirror: Mapping[str, int] = getattr(endpoint, "mirror_traffic", None) or {}
    with azure_errors(f"the deployments of {name}"):
        rows = tuple(_row(one, traffic, mirror) for one in client.deployments.list(name))
    return EndpointStatus(
        name, state_of(endpoint), str(endpoint.scoring_uri), summary(endpoint.tags or {}), rows
    )


def _row(entity: Any, traffic: Mapping[str, int], mirror: Mapping[str, int]) -> DeploymentStatus:
    fields = deployment_fields(entity)
    count = fields.get("instance_count") or fields.get("resources.instance_count", "1")
    on = f"{count} x {fields.get('instance_type') or fields.get('compute', 'the cluster')}"
    share, mirrored = traffic.get(entity.name, 0), mirror.get(entity.name, 0)
    return DeploymentStatus(entity.name, state_of(entity), share, mirrored, fields.get("model", "no model"), on)
