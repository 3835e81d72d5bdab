"""Azure's management plane and the registries' own, as azure-ai-ml 1.35 asks for them: models and datastores here, the rest beside.

Answers are by hand, in the shapes that its clients read; a path that nobody asks for is a 404.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.fake_azure.assets import Assets
from tests.support.fake_azure.network import Answer, Faults, Request, next_fault
from tests.support.fake_azure.resources import Resources
from tests.support.fake_azure.storage import Storage
from tests.support.hubs import Status

MANAGEMENT = "management.azure.com"
REGISTRIES = "eastus.api.azureml.ms"
SUBSCRIPTION, GROUP, WORKSPACE, REGISTRY = "11-22", "my.group", "ws", "company"
WITHIN = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.MachineLearningServices"
IN_WORKSPACE = f"{WITHIN}/workspaces/{WORKSPACE}"
IN_REGISTRY = f"/mferp/managementfrontend{WITHIN}/registries/{REGISTRY}"
SYSTEM = {"createdAt": "2026-11-22T00:00:00Z", "createdBy": "Somebody", "createdByType": "User"}


@dataclass(frozen=True)
class Datastore:
    """A datastore; `secrets` is what it keeps, as it is listed."""

    properties: Mapping[str, Any]
    secrets: Mapping[str, Any] | None = None


@dataclass
class Management:
    """One workspace and one registry.

    Attributes:
        models: the address of each version's files, by name, by where it is (`IN_WORKSPACE`, `IN_REGISTRY`).
        faults: by the end of a path, one a request, in order.
    """

    bearer: str
    storage: Storage
    faults: Faults
    models: dict[str, dict[str, dict[str, str]]] = field(
        default_factory=lambda: {IN_WORKSPACE: {}, IN_REGISTRY: {}}
    )
    datastores: dict[str, Datastore] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        self.assets = Assets(IN_WORKSPACE, self.storage)

    def answer(self, request: Request) -> Answer:
        fault = next_fault(self.faults, request.path)
        if isinstance(fault, Status):
            return error(fault.code, "Because", fault.headers)
        if request.headers.get("Authorization") != f"Bearer {self.bearer}":
            return error(401, "InvalidAuthenticationToken")
        for form, answer in self._routes().items():
            found = re.fullmatch(form, request.path)
            if found:
                return answer(request, *found.groups())
        return error(404, "ResourceNotFound")

    def _routes(self) -> dict[str, Callable[..., Answer]]:
        where = f"({re.escape(IN_WORKSPACE)}|{re.escape(IN_REGISTRY)})"
        return {
            rf"{where}/models/([^/]+)/versions/([^/]+)": self._model,
            rf"{where}/models/([^/]+)/versions": self._versions,
            rf"{re.escape(IN_WORKSPACE)}/datastores/([^/]+)": self._datastore,
            rf"{re.escape(IN_WORKSPACE)}/datastores/([^/]+)/listSecrets": self._secrets,
            rf"/registrymanagement/v1.0/registries/{REGISTRY}/discovery": self._discovery,
            rf"{re.escape(IN_REGISTRY)}/datarefs/([^/]+)/versions/([^/]+)": self._reference,
            rf"{re.escape(IN_WORKSPACE)}/(?:online|batch)Endpoints(?:/.*)?": self.resources.answer,
            rf"{re.escape(WITHIN)}/locations/eastus/operations/[^/]+": self.resources.answer,
            **self.assets.routes(),
        }

    def _model(self, request: Request, where: str, name: str, version: str) -> Answer:
        if request.method == "PUT":
            address = str(json.loads(request.body)["properties"]["modelUri"])
            self.models[where].setdefault(name, {})[version] = address
        known = self.models[where].get(name, {}).get(version)
        return error(404, "NotFound") if known is None else said(_version(where, name, version, known))

    def _versions(self, request: Request, where: str, name: str) -> Answer:
        versions = list(reversed(self.models[where].get(name, {}).items()))  # (the newest first)
        shown = versions[: int(request.query.get("$top", len(versions)))]
        return said({"value": [_version(where, name, *each) for each in shown]})

    def _datastore(self, _: Request, name: str) -> Answer:
        if name not in self.datastores:
            return error(404, "DatastoreNotFound")
        given = {"isDefault": True, "tags": {}, **self.datastores[name].properties}
        return said(
            {"id": f"{IN_WORKSPACE}/datastores/{name}", "name": name, "properties": given, "systemData": SYSTEM}
        )

    def _secrets(self, _: Request, name: str) -> Answer:
        return said(self.datastores[name].secrets)

    def _discovery(self, _: Request) -> Answer:
        home = {"primaryRegionResourceProviderUri": f"https://{REGISTRIES}/", "primaryRegion": "eastus"}
        return said({"registryName": REGISTRY, "subscriptionId": SUBSCRIPTION, "resourceGroup": GROUP, **home})

    def _reference(self, request: Request, name: str, version: str) -> Answer:
        asked = json.loads(request.body)
        assert asked["assetId"] == f"azureml://registries/{REGISTRY}/models/{name}/versions/{version}"
        address = urlsplit(asked["blobUri"])
        container = f"https://{address.netloc}/{address.path.split('/')[1]}"
        credential = {"credentialType": "SAS", "sasUri": f"{container}?{self.storage.sign()}"}
        return said({"blobReferenceForConsumption": {"blobUri": asked["blobUri"], "credential": credential}})


def _version(where: str, name: str, version: str, address: str) -> dict[str, Any]:
    properties = {"modelUri": address, "modelType": "custom_model", "flavors": {}, "tags": {}, "properties": {}}
    within = f"azureml://registries/{REGISTRY}" if where == IN_REGISTRY else where
    identity = f"{within}/models/{name}/versions/{version}"
    return {"id": identity, "name": version, "properties": properties, "systemData": SYSTEM}


def said(body: Any) -> Answer:
    """A good answer."""
    return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})


def error(status: int, code: str, headers: Mapping[str, str] | None = None) -> Answer:
    """What the management plane says where it does not do what it was asked for."""
    body = {"error": {"code": code, "message": f"It said {code}.\nReally."}}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})
