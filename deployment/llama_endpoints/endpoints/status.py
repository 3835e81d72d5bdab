"""An endpoint and its deployments at a glance."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llama_endpoints.endpoints.batch import default_of
from llama_endpoints.endpoints.client import Client, EndpointKind, asked
from llama_endpoints.endpoints.plan import FULL
from llama_endpoints.endpoints.rollout import told
from llama_endpoints.endpoints.target import deployment_fields, state_of


@dataclass(frozen=True, slots=True)
class Row:
    """A deployment.

    Attributes:
        traffic: percent; of a batch endpoint's default 100.
        mirrored: percent of the traffic that it gets a copy of.
        on: machines or cluster.
    """

    name: str
    state: str
    traffic: int
    mirrored: int
    model: str
    on: str


@dataclass(frozen=True, slots=True)
class Overview:
    """An endpoint.

    Attributes:
        address: where it is called.
        rollout: one under way or the last one, in words; empty where there was none.
    """

    name: str
    state: str
    address: str
    rollout: str
    deployments: tuple[Row, ...]

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.name}: {self.state}, {self.address}"
        for row in self.deployments:
            mirrored = f", {row.mirrored} % mirrored" if row.mirrored else ""
            yield f"  {row.name}: {row.state}, {row.traffic} %{mirrored}, {row.model} on {row.on}"
        if self.rollout:
            yield f"  {self.rollout}"

    def to_dict(self) -> Mapping[str, Any]:
        """Plain JSON."""
        return asdict(self)


def overview(client: Client, name: str) -> Overview:
    """As Azure has it now.

    Raises:
        Refused: there is no such endpoint, or Azure does not say.
    """
    endpoint = client.existing(name)
    traffic = traffic_of(client.kind, endpoint)
    mirror: Mapping[str, int] = getattr(endpoint, "mirror_traffic", None) or {}
    with asked(f"the deployments of {name}"):
        rows = tuple(_row(one, traffic, mirror) for one in client.deployments.list(name))
    return Overview(name, state_of(endpoint), str(endpoint.scoring_uri), told(endpoint.tags or {}), rows)


def traffic_of(kind: EndpointKind, endpoint: Any) -> Mapping[str, int]:
    """Percent by deployment."""
    if kind is EndpointKind.ONLINE:
        return dict(endpoint.traffic or {})
    default = default_of(endpoint)
    return {default: FULL} if default else {}


def _row(entity: Any, traffic: Mapping[str, int], mirror: Mapping[str, int]) -> Row:
    fields = deployment_fields(entity)
    count = fields.get("instance_count") or fields.get("resources.instance_count", "1")
    on = f"{count} x {fields.get('instance_type') or fields.get('compute', 'the cluster')}"
    share, mirrored = traffic.get(entity.name, 0), mirror.get(entity.name, 0)
    return Row(entity.name, state_of(entity), share, mirrored, fields.get("model", "no model"), on)
