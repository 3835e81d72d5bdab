"""A deployment to bring up: the state its files describe, the state in Azure, and how to apply each step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import yaml

from llama_endpoints.azure.schemas import loader
from llama_endpoints.azure.sdk import quiet
from llama_endpoints.endpoints.client import EndpointKind, EndpointsClient
from llama_endpoints.endpoints.diff import Fields, flat
from llama_endpoints.endpoints.files import Files, reference
from llama_endpoints.endpoints.plan import (
    FULL,
    Action,
    Actual,
    Asset,
    Desired,
    PlanStep,
    Resource,
    ResourceKind,
)
from llama_endpoints.validate.spec_files import SpecFile

CODE: Final = "llama-endpoints-code"
"""Tag of a deployment that holds the digest of its code."""


@dataclass(frozen=True, slots=True)
class Target(ABC):
    """One deployment's files and the workspace to deploy to.

    Attributes:
        endpoint: name of the endpoint; it may differ from the file's.
        to_default: whether to move all traffic to the deployment.
    """

    client: EndpointsClient
    files: Files
    endpoint: str
    to_default: bool = False

    @property
    def name(self) -> str:
        """The deployment's name."""
        return self.files.deployment.name

    @property
    def status_command(self) -> str:
        """The command that shows the endpoint's status."""
        flag = " --batch" if self.client.kind == "batch" else ""
        return f"llama-endpoints status --endpoint {self.endpoint}{flag}"

    @property
    def desired(self) -> Desired:
        """The state that the files describe."""
        endpoint = Resource(self.endpoint, endpoint_fields(self.load_endpoint()))
        deployment = Resource(self.name, deployment_fields(self.load_deployment()), code=self.files.code())
        return Desired(
            endpoint, deployment, tuple(self.assets()), self.to_default, online=self.client.kind == "online"
        )

    def actual(self) -> Actual:
        """Return the state that Azure reports.

        Raises:
            Refused: Azure does not answer.
        """
        assets = frozenset(one.name for one in self.assets() if self.has(one))
        endpoint = self.client.find_endpoint(self.endpoint)
        if endpoint is None:
            return Actual(assets)
        own = self.client.find_deployment(self.endpoint, self.name)
        return Actual(
            assets,
            Resource(self.endpoint, endpoint_fields(endpoint), state_of(endpoint)),
            own and Resource(self.name, deployment_fields(own), state_of(own), (own.tags or {}).get(CODE)),
            traffic_of(self.client.kind, endpoint),
        )

    def do(self, step: PlanStep) -> None:
        """Apply one step of a plan and wait until it is done.

        Raises:
            Refused: Azure does not accept the step.
            OperationFailed: Azure accepted it, and it failed.
        """
        if step.kind is ResourceKind.ENDPOINT:
            self._put_endpoint(step)
        elif step.kind is ResourceKind.DEPLOYMENT and step.action is Action.TEST:
            self.send_test_request()
        elif step.kind is ResourceKind.DEPLOYMENT:
            self.put_deployment(self._marked, f"deployment {step.name}")
        elif step.kind in {ResourceKind.TRAFFIC, ResourceKind.DEFAULT}:
            self.move_traffic()
        else:
            self.client.run_operation(
                lambda: self.make(step.kind), f"{step.kind.value} {step.name}", self.status_command
            )

    def put_deployment(self, make: Callable[[], Any], what: str) -> None:
        """Create or update a deployment. Each try builds a new entity, since azure-ai-ml modifies it."""
        self.client.run_operation(
            lambda: self.client.deployments.begin_create_or_update(make()), what, self.status_command
        )

    def has(self, asset: Asset) -> bool:
        """Whether the workspace has the asset."""
        name, _, version = asset.name.partition(":")
        ml = self.client.ml
        get: Mapping[ResourceKind, Callable[[], Any]] = {
            ResourceKind.MODEL: lambda: ml.models.get(name, version=version),
            ResourceKind.ENVIRONMENT: lambda: ml.environments.get(name, version=version),
            ResourceKind.COMPUTE: lambda: ml.compute.get(name),
        }
        return self.client.get_or_none(f"the {asset.kind.value} {asset.name}", get[asset.kind]) is not None

    def make(self, kind: ResourceKind) -> Any:
        """Create a model, an environment or a cluster from its file."""
        files, ml = self.files, self.client.ml
        spec, create = {
            ResourceKind.MODEL: (files.model, ml.models.create_or_update),
            ResourceKind.ENVIRONMENT: (files.environment, ml.environments.create_or_update),
            ResourceKind.COMPUTE: (files.compute, ml.compute.begin_create_or_update),
        }[kind]
        assert spec is not None, kind  # noqa: S101  (a step is planned only if there is a file)
        return create(_loaded(spec))

    def assets(self) -> Iterator[Asset]:
        """Yield the assets of this workspace that the deployment refers to. Registry assets are not checked."""
        model, environment = (reference(self.files.deployment, key) for key in ("model", "environment"))
        if "/" not in model:
            folder = self.files.model_folder
            yield Asset(
                ResourceKind.MODEL, model, None if folder is None else near(folder),
                "Package it (`llama-endpoints package --output build/NAME`), or register it from inside Azure with yaml/package/job.yml",
            )  # fmt: skip
        if "/" not in environment:
            file = self.files.environment
            yield Asset(
                ResourceKind.ENVIRONMENT,
                environment,
                None if file is None else near(file.path),
                "Add its file under environments/",
            )

    def load_endpoint(self) -> Any:
        """Load azure-ai-ml's entity from the endpoint's file, under the requested name."""
        return _loaded(self.files.endpoint, name=self.endpoint)

    def load_deployment(self) -> Any:
        """Load azure-ai-ml's entity from the deployment's file, for the requested endpoint."""
        return _loaded(self.files.deployment, endpoint_name=self.endpoint)

    @abstractmethod
    def move_traffic(self) -> None:
        """Move all traffic to this deployment."""

    @abstractmethod
    def send_test_request(self) -> None:
        """Send the deployment a test request.

        Raises:
            OperationFailed: the answer is an error.
        """

    def _marked(self) -> Any:
        made = self.load_deployment()
        made.tags = {**(made.tags or {}), CODE: self.files.code()}
        return made

    def _put_endpoint(self, step: PlanStep) -> None:
        def begin() -> Any:
            made = self.load_endpoint()
            there = self.client.find_endpoint(self.endpoint)
            if there is not None:  # traffic and tags are not in the file and would be lost
                for name in _ENDPOINT:
                    if hasattr(there, name):
                        setattr(there, name, getattr(made, name, None) or getattr(there, name))
            return self.client.endpoints.begin_create_or_update(there or made)

        self.client.run_operation(begin, f"endpoint {step.name}", self.status_command)


def _loaded(spec: SpecFile, **override: str) -> Any:
    """Load azure-ai-ml's entity from a file."""
    with quiet():
        return loader(spec.kind)(spec.path, params_override=[override] if override else [])


def traffic_of(kind: EndpointKind, endpoint: Any) -> Mapping[str, int]:
    """Return the percent by deployment; for a batch endpoint 100 for the default."""
    if kind is EndpointKind.ONLINE:
        return dict(endpoint.traffic or {})
    # azure-ai-ml reads the default under another key than it writes.
    given = endpoint.defaults or {}
    name = given.get("deployment_name") or given.get("deploymentName")
    return {str(name): FULL} if name else {}


_ENDPOINT: Final = ("description", "auth_mode", "public_network_access", "identity")


def endpoint_fields(entity: Any) -> Fields:
    """Return the fields of azure-ai-ml's endpoint entity, whose own dump omits them."""
    found = {name: str(getattr(entity, name)).lower() for name in _ENDPOINT[1:3] if getattr(entity, name, None)}
    if entity.description:
        found["description"] = entity.description
    identities = getattr(getattr(entity, "identity", None), "user_assigned_identities", None) or ()
    if identities:
        found["identity"] = ", ".join(sorted(str(one.resource_id).lower() for one in identities))
    return found


def deployment_fields(entity: Any) -> Fields:
    """Return the fields of azure-ai-ml's deployment entity."""
    text = StringIO()
    with quiet():
        entity.dump(text)
    return flat(yaml.safe_load(text.getvalue()))


def near(path: Path) -> str:
    """Return a path relative to the working directory if it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def state_of(entity: Any) -> str:
    """Return Azure's provisioning state."""
    state = entity.provisioning_state
    return str(getattr(state, "value", state) or "Succeeded")
