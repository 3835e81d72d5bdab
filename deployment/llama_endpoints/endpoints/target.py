"""A deployment that is to be brought up: what its files want, what Azure has, and each step done. `online` and `batch` are its kinds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Final

import yaml

from llama_endpoints.azure.sdk import quiet
from llama_endpoints.endpoints.client import Client
from llama_endpoints.endpoints.diff import Fields, flat
from llama_endpoints.endpoints.files import Files, reference
from llama_endpoints.endpoints.plan import Act, Asset, Noun, Step, There, Thing, Wanted

CODE: Final = "llama-endpoints-code"
"""Tag of a deployment: the digest of its code."""


@dataclass(frozen=True, slots=True)
class Target(ABC):
    """One deployment's files, and the workspace they go to.

    Attributes:
        endpoint: name of the endpoint, which may be another than the file's.
        to_default: whether all traffic is to go there.
    """

    client: Client
    files: Files
    endpoint: str
    to_default: bool = False

    @property
    def name(self) -> str:
        """Of the deployment."""
        return self.files.deployment.name

    @property
    def again(self) -> str:
        """The command that shows how it is."""
        flag = " --batch" if self.client.kind == "batch" else ""
        return f"llama-endpoints status --endpoint {self.endpoint}{flag}"

    @property
    def wanted(self) -> Wanted:
        """What the files say."""
        endpoint = Thing(self.endpoint, endpoint_fields(self.load_endpoint()))
        deployment = Thing(self.name, deployment_fields(self.load_deployment()), code=self.files.code())
        return Wanted(
            endpoint, deployment, tuple(self.assets()), self.to_default, online=self.client.kind == "online"
        )

    def there(self) -> There:
        """What Azure has.

        Raises:
            Refused: Azure does not say.
        """
        assets = frozenset(one.name for one in self.assets() if self.has(one))
        endpoint = self.client.endpoint(self.endpoint)
        if endpoint is None:
            return There(assets)
        own = self.client.deployment(self.endpoint, self.name)
        return There(
            assets,
            Thing(self.endpoint, endpoint_fields(endpoint), state_of(endpoint)),
            own and Thing(self.name, deployment_fields(own), state_of(own), (own.tags or {}).get(CODE)),
            self.traffic_of(endpoint),
        )

    def do(self, step: Step) -> None:
        """One step of a plan, until it is done.

        Raises:
            Refused: Azure does not take it.
            OperationFailed: it did, and it has failed.
        """
        if step.noun is Noun.ENDPOINT:
            self._put_endpoint(step)
        elif step.noun is Noun.DEPLOYMENT and step.act is Act.ASK:
            self.ask()
        elif step.noun is Noun.DEPLOYMENT:
            self.put_deployment(self._marked, f"deployment {step.name}")
        elif step.noun in {Noun.TRAFFIC, Noun.DEFAULT}:
            self.move_traffic()
        else:
            self.client.changed(lambda: self.make(step.noun), f"{step.noun.value} {step.name}", self.again)

    def put_deployment(self, make: Callable[[], Any], what: str) -> None:
        """A deployment as it is made; each try makes it anew, since azure-ai-ml writes into it."""
        self.client.changed(lambda: self.client.deployments.begin_create_or_update(make()), what, self.again)

    def has(self, asset: Asset) -> bool:
        """Whether the workspace has it."""
        name, _, version = asset.name.partition(":")
        ml = self.client.ml
        get: Mapping[Noun, Callable[[], Any]] = {
            Noun.MODEL: lambda: ml.models.get(name, version=version),
            Noun.ENVIRONMENT: lambda: ml.environments.get(name, version=version),
            Noun.COMPUTE: lambda: ml.compute.get(name),
        }
        return self.client.found(f"the {asset.noun.value} {asset.name}", get[asset.noun]) is not None

    def make(self, noun: Noun) -> Any:
        """A model, an environment or a cluster from its file."""
        from azure.ai import ml

        files, own = self.files, self.client.ml
        if noun is Noun.MODEL and files.model is not None:
            return own.models.create_or_update(ml.load_model(files.model.path))
        if noun is Noun.ENVIRONMENT and files.environment is not None:
            return own.environments.create_or_update(ml.load_environment(files.environment.path))
        if noun is Noun.COMPUTE and files.compute is not None:
            return own.compute.begin_create_or_update(ml.load_compute(files.compute.path))
        raise AssertionError(f"no file of a {noun}")

    def assets(self) -> Iterator[Asset]:
        """What the deployment names and this workspace has to have; a registry's is its own affair."""
        model, environment = (reference(self.files.deployment, key) for key in ("model", "environment"))
        if "/" not in model:
            folder = self.files.model_folder
            yield Asset(
                Noun.MODEL, model, None if folder is None else near(folder),
                "Package it here (`llama-endpoints package --output build/NAME`), or register it from inside Azure with yaml/package/job.yml",
            )  # fmt: skip
        if "/" not in environment:
            file = self.files.environment
            yield Asset(
                Noun.ENVIRONMENT,
                environment,
                None if file is None else near(file.path),
                "Write a file for it under environments/",
            )

    @abstractmethod
    def load_endpoint(self) -> Any:
        """azure-ai-ml's entity of the endpoint's file."""

    @abstractmethod
    def load_deployment(self) -> Any:
        """Of the deployment's file."""

    @abstractmethod
    def traffic_of(self, endpoint: Any) -> Mapping[str, int]:
        """Percent by deployment."""

    @abstractmethod
    def move_traffic(self) -> None:
        """All of it to this deployment."""

    @abstractmethod
    def ask(self) -> None:
        """Send the deployment a request.

        Raises:
            OperationFailed: it does not answer.
        """

    def _marked(self) -> Any:
        made = self.load_deployment()
        made.tags = {**(made.tags or {}), CODE: self.files.code()}
        return made

    def _put_endpoint(self, step: Step) -> None:
        def begin() -> Any:
            made = self.load_endpoint()
            there = self.client.endpoint(self.endpoint)
            if there is not None:  # (traffic and tags are not in the file, and would be gone)
                for name in _ENDPOINT:
                    if hasattr(there, name):
                        setattr(there, name, getattr(made, name, None) or getattr(there, name))
            return self.client.endpoints.begin_create_or_update(there or made)

        self.client.changed(begin, f"endpoint {step.name}", self.again)


_ENDPOINT: Final = ("description", "auth_mode", "public_network_access", "identity")


def endpoint_fields(entity: Any) -> Fields:
    """Of azure-ai-ml's entity, whose own dump leaves endpoints out."""
    found = {name: str(getattr(entity, name)).lower() for name in _ENDPOINT[1:3] if getattr(entity, name, None)}
    if entity.description:
        found["description"] = entity.description
    identities = getattr(getattr(entity, "identity", None), "user_assigned_identities", None) or ()
    if identities:
        found["identity"] = ", ".join(sorted(str(one.resource_id).lower() for one in identities))
    return found


def deployment_fields(entity: Any) -> Fields:
    """Of azure-ai-ml's entity."""
    text = StringIO()
    with quiet():
        entity.dump(text)
    return flat(yaml.safe_load(text.getvalue()))


def near(path: Path) -> str:
    """A path from here, where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def state_of(entity: Any) -> str:
    """Azure's provisioning state."""
    state = entity.provisioning_state
    return str(getattr(state, "value", state) or "Succeeded")
