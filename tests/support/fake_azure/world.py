"""Azure on loopback: what it has, who may have it, how it fails next, what it was asked and what it has sent.

To grow it: a route and its state in `management.py` or `storage.py`, or a file beside them for another host.
"""

import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from tests.support.certificates import certificate
from tests.support.fake_azure import management, serving
from tests.support.fake_azure.management import IN_REGISTRY, IN_WORKSPACE, Datastore, Management
from tests.support.fake_azure.network import LOOPBACK, Answer, Faults, Request, proxy
from tests.support.fake_azure.serving import Serving
from tests.support.fake_azure.storage import HOST, Storage

BEARER = "of-the-identity"
KEY = "a2V5IG9mIHRoZSBhY2NvdW50"
LOGIN = "login.microsoftonline.com"
SECRET = "of-the-principal"
PRINCIPAL = {"tenantId": "tenant-1", "clientId": "client-1", "authorityUrl": f"https://{LOGIN}"}
ACCOUNT, CONTAINER = "account", "container"
HOSTS = (
    "*.azure.com",
    f"*{serving.HOST}",
    "*.api.azureml.ms",
    "*.blob.core.windows.net",
    "*.vault.azure.net",
    LOGIN,
)
OTHERS = ("AZURE", "ARM_", "MSI_", "IDENTITY_", "AZUREML", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@dataclass
class FakeAzure:
    """The fake.

    Attributes:
        faults: by the end of a path (`list` for a container's list).
        asked: method, host and path of each request.
        sent: bytes of blobs by the blob's last name.
        go_on: what holds goes on.
        tokens: whether the identity gets one.
    """

    certificate: Path
    faults: Faults = field(default_factory=lambda: defaultdict(list))
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    ranges: list[tuple[str, str]] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    go_on: Event = field(default_factory=Event)
    tokens: bool = True
    url: str = ""

    def __post_init__(self) -> None:
        self.storage = Storage(BEARER, self.go_on, self.faults)
        self.management = Management(BEARER, self.storage, self.faults)
        self.resources = self.management.resources
        self.serving = Serving(self.resources, BEARER)

    def put(self, folder: str, files: Mapping[str, bytes], **more: Any) -> None:
        """Files in the container."""
        for name, content in files.items():
            self.storage.put(ACCOUNT, CONTAINER, f"{folder}/{name}", content, **more)

    def register(
        self, name: str, version: str, folder: str, *, store: str = "store", where: str = IN_WORKSPACE
    ) -> None:
        """A version of a model, whose files are in the container's folder."""
        address = f"https://{ACCOUNT}{HOST}/{CONTAINER}/{folder}"
        if where != IN_REGISTRY:
            home = f"subscriptions/{management.SUBSCRIPTION}/resourceGroups/{management.GROUP}/workspaces/{management.WORKSPACE}"
            address = f"azureml://{home}/datastores/{store}/paths/{folder}"
        self.management.models[where].setdefault(name, {})[version] = address

    def add_datastore(
        self, name: str = "store", credentials: str = "AccountKey", kind: str = "AzureBlob", **more: Any
    ) -> None:
        """A datastore on the container."""
        place = "filesystem" if kind == "AzureDataLakeGen2" else "containerName"
        properties = {
            "datastoreType": kind, "accountName": ACCOUNT, place: CONTAINER, "endpoint": "core.windows.net",
            "protocol": "https", "credentials": {"credentialsType": credentials, **PRINCIPAL}, **more,
        }  # fmt: skip
        kept = {
            "AccountKey": {"key": KEY},
            "Sas": {"sasToken": self.storage.sign()},
            "ServicePrincipal": {"clientSecret": SECRET},
        }
        secrets = kept.get(credentials)
        self.management.datastores[name] = Datastore(
            properties, secrets and {"secretsType": credentials, **secrets}
        )

    def environment(self) -> dict[str, str]:
        """Of a process that takes the fake for Azure, and whose machine has an identity there."""
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(OTHERS)}
        identity = {"IDENTITY_ENDPOINT": f"{self.url}/msi/token", "IDENTITY_HEADER": "secret-of-the-machine"}
        network = {"HTTPS_PROXY": self.url, "NO_PROXY": LOOPBACK, "REQUESTS_CA_BUNDLE": str(self.certificate)}
        return {**inherited, **identity, **network, "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential"}

    def answer(self, request: Request) -> Answer:
        self.asked.append((request.method, request.host, request.path))
        if request.host == LOOPBACK:
            return self._token("expires_on", int(time.time()) + 3600)
        if request.host == LOGIN:
            return self._login(request)
        if request.host.endswith(HOST):
            if request.query.get("comp") != "list":
                self.ranges.append((request.path.rpartition("/")[2], request.headers.get("x-ms-range", "")))
            return self.storage.answer(request)
        if request.host.endswith(serving.HOST):
            return self.serving.answer(request)
        if request.host in {management.MANAGEMENT, management.REGISTRIES}:
            return self.management.answer(request)
        return management.error(404, "NoSuchHost")

    def count(self, request: Request, answer: Answer, size: int) -> None:
        """Bytes of a body went out."""
        if request.host.endswith(HOST) and answer.status == 206:
            self.sent[request.path.rpartition("/")[2]] += size

    def _token(self, key: str, until: int) -> Answer:
        if not self.tokens:
            return management.error(400, "invalid_request")
        return management.said(
            {"access_token": BEARER, key: str(until), "resource": "any", "token_type": "Bearer"}
        )

    def _login(self, request: Request) -> Answer:
        """Of a service principal: where it gets its token, and the token."""
        if request.path.endswith("/openid-configuration"):
            tenant = f"https://{LOGIN}/{request.path.split('/')[1]}"
            places = {"authorization_endpoint": f"{tenant}/authorize", "token_endpoint": f"{tenant}/token"}
            return management.said({**places, "issuer": f"{tenant}/v2.0"})
        good = f"client_secret={SECRET}" in request.body.decode()
        return self._token("expires_in", 3600) if good else management.error(401, "invalid_client")


@contextmanager
def fake_azure(folder: Path) -> Iterator[FakeAzure]:
    """Azure with an empty workspace and an empty registry, up until the block is left; its certificate lies in `folder`."""
    state = FakeAzure(certificate(folder / "azure.pem", *HOSTS))
    with proxy(state.answer, state.count, state.certificate) as state.url:
        try:
            yield state
        finally:
            state.go_on.set()
