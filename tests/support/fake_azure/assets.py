"""Code, environments, computes and the workspace itself, as azure-ai-ml 1.35 asks for them; their files go to the storage."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_azure.network import Answer, Request
from tests.support.fake_azure.resources import SYSTEM, refused, said
from tests.support.fake_azure.storage import HOST, Storage

ACCOUNT, UPLOADS = "account", "uploads"


@dataclass
class Assets:
    """All of a workspace, but its models, data and endpoints.

    Attributes:
        home: path of the workspace.
        there: bodies by path.
    """

    home: str
    storage: Storage
    there: dict[str, dict[str, Any]] = field(default_factory=dict)

    def routes(self) -> dict[str, Callable[..., Answer]]:
        """By the form of their path."""
        home = re.escape(self.home)
        return {
            home: self._workspace,
            rf"{home}/codes/([^/]+)/versions": lambda *_: said({"value": []}),
            rf"{home}/codes/([^/]+)/versions/([^/]+)/startPendingUpload": self._upload,
            rf"{home}/(?:codes|environments)/[^/]+/versions/[^/]+": self._asset,
            rf"{home}/computes/[^/]+": self._asset,
        }

    def _workspace(self, _: Request) -> Answer:
        body = {"id": self.home, "name": self.home.rpartition("/")[2], "location": "eastus", "properties": {}}
        return said({**body, "type": "Microsoft.MachineLearningServices/workspaces", "systemData": SYSTEM})

    def _upload(self, _: Request, name: str, version: str) -> Answer:
        container = f"https://{ACCOUNT}{HOST}/{UPLOADS}-{name}-{version}"
        self.storage.containers.setdefault((ACCOUNT, f"{UPLOADS}-{name}-{version}"), {})
        credential = {"credentialType": "SAS", "sasUri": f"{container}?{self.storage.sign()}"}
        reference = {"blobUri": container, "credential": credential, "storageAccountArmId": "/x"}
        return said(
            {
                "pendingUploadId": "1",
                "pendingUploadType": "TemporaryBlobReference",
                "blobReferenceForConsumption": reference,
            }
        )

    def _asset(self, request: Request) -> Answer:
        path = request.path
        if request.method == "PUT":
            name = path.rpartition("/")[2]
            self.there[path] = {"id": path, "name": name, "systemData": SYSTEM, **json.loads(request.body)}
            self.there[path]["properties"]["provisioningState"] = "Succeeded"
        return said(self.there[path]) if path in self.there else refused(404, "NotFound", "It is not there.")
