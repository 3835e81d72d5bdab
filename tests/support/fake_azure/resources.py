"""Endpoints and deployments as Azure's management plane keeps them: each change is a long operation that is asked about until it ends.

What it does follows learn.microsoft.com (Track asynchronous operations of Azure Resource Manager; Machine Learning REST API, online
and batch endpoints) and what azure-ai-ml 1.35 sends. Nothing goes on by a clock: an operation is a step further each time that
somebody asks for it or for what it changes.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_azure.network import Answer, Request

SOON = {"x-ms-retry-after-ms": "10"}
SYSTEM = {
    "createdAt": "2026-11-22T00:00:00Z", "createdBy": "Somebody", "createdByType": "User",
    "lastModifiedAt": "2026-11-22T00:00:00Z", "lastModifiedBy": "Somebody", "lastModifiedByType": "User",
}  # fmt: skip
FULL = 100
MOST_MIRRORED = 50


@dataclass
class Operation:
    """A change under way.

    Attributes:
        target: path of what it changes.
        left: how often it is asked about before it ends.
        error: what it ends with, where it fails: code and message.
        gone: it deletes.
    """

    target: str
    left: int
    error: tuple[str, str] | None = None
    gone: bool = False
    status: str = "InProgress"


@dataclass
class Resources:
    """All of a workspace's endpoints and deployments.

    Attributes:
        there: bodies by path.
        polls: how often each operation is asked about before it ends.
        failing: by the name of a deployment (or endpoint), how its next changes end, in order; None is well.
        quota: instances that all managed deployments may have together.
        logs: of a deployment, by its name.
    """

    there: dict[str, dict[str, Any]] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)
    polls: int = 2
    failing: dict[str, list[tuple[str, str] | None]] = field(default_factory=lambda: defaultdict(list))
    quota: int = 50
    logs: dict[str, str] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    """Each change that was taken: `PUT onlineEndpoints/code-llama`."""

    def of(self, *names: str) -> dict[str, Any] | None:
        """An endpoint (by kind and name) or a deployment of it."""
        end = "/".join((names[0], names[1], *(("deployments", names[2]) if len(names) > 2 else ())))
        return next((body for path, body in self.there.items() if path.endswith(f"/{end}")), None)

    def answer(self, request: Request) -> Answer:
        """Of whatever path of endpoints or of an operation."""
        path = request.path
        if "/operations/" in path:
            return self._operation(path.rpartition("/")[2])
        action = path.rpartition("/")[2]
        if request.method == "POST":
            return self._act(path.removesuffix(f"/{action}"), action, request)
        self._go_on(path)
        if request.method == "PUT":
            return self._put(path, json.loads(request.body))
        if request.method == "DELETE":
            return self._delete(path)
        if re.search(r"/(onlineEndpoints|batchEndpoints|deployments)$", path):
            inside = [body for there, body in self.there.items() if there.rpartition("/")[0] == path]
            return said({"value": inside})
        return (
            said(self.there[path])
            if path in self.there
            else refused(404, "ResourceNotFound", "It is not there.")
        )

    def begin(self, path: str) -> None:
        """Somebody else changes it."""
        self._begin(path, Operation(path, self.polls), 200)

    def end(self) -> None:
        """Time has passed: whatever is under way is done."""
        for operation in self.operations.values():
            operation.left = min(operation.left, 0)
            self._step(operation)

    def _put(self, path: str, body: dict[str, Any]) -> Answer:
        busy = self._busy(path)
        if busy:
            return refused(409, "Conflict", f"{busy} is being changed.")
        wrong = next(self._wrong(path, body), None)
        if wrong:
            return refused(*wrong)
        new = path not in self.there
        name = path.rpartition("/")[2]
        properties = {**body["properties"], "provisioningState": "Creating" if new else "Updating"}
        kind = path.split("/")[-2]
        if kind != "deployments":
            scoring = f"https://{name}.eastus.inference.ml.azure.com/{'score' if kind == 'onlineEndpoints' else 'jobs'}"
            properties |= {
                "scoringUri": scoring,
                "swaggerUri": f"https://{name}.eastus.inference.ml.azure.com/swagger.json",
            }
            self.keys.setdefault(name, [f"primary-of-{name}", f"secondary-of-{name}"])
        elif "/onlineEndpoints/" in path:
            properties = {
                "endpointComputeType": "Managed",
                "scaleSettings": {"scaleType": "Default"},
                **properties,
            }
        self.there[path] = {**body, "id": path, "name": name, "properties": properties, "systemData": SYSTEM}
        self.changes.append(f"PUT {shown(path)}")
        failing = self.failing[name]
        return self._begin(
            path, Operation(path, self.polls, failing.pop(0) if failing else None), 201 if new else 200
        )

    def _delete(self, path: str) -> Answer:
        if path not in self.there:
            return Answer(204)
        busy = self._busy(path)
        if busy:
            return refused(409, "Conflict", f"{busy} is being changed.")
        endpoint, _, name = path.partition("/deployments/")
        traffic = self.there[endpoint]["properties"].get("traffic") or {}
        if name and traffic.get(name):
            return refused(400, "BadArgument", f"Deployment {name} has {traffic[name]} % of the traffic.")
        self.there[path]["properties"]["provisioningState"] = "Deleting"
        self.changes.append(f"DELETE {shown(path)}")
        return self._begin(path, Operation(path, self.polls, gone=True), 202)

    def _begin(self, path: str, operation: Operation, status: int) -> Answer:
        identity = f"op{len(self.operations)}"
        self.operations[identity] = operation
        where = f"https://management.azure.com{path.partition('/workspaces/')[0]}/locations/eastus/operations/{identity}"
        body = json.dumps(self.there[path]).encode() if status != 202 else b""
        headers = {"Azure-AsyncOperation": where, "Content-Type": "application/json", **SOON}
        return Answer(status, body, headers)

    def _operation(self, identity: str) -> Answer:
        operation = self.operations[identity]
        self._step(operation)
        told: dict[str, Any] = {"id": identity, "name": identity, "status": operation.status}
        if operation.status == "Failed" and operation.error:
            told["error"] = {"code": operation.error[0], "message": operation.error[1]}
        return Answer(200, json.dumps(told).encode(), {"Content-Type": "application/json", **SOON})

    def _step(self, operation: Operation) -> None:
        if operation.status != "InProgress":
            return
        operation.left -= 1
        if operation.left >= 0:
            return
        operation.status = "Failed" if operation.error else "Succeeded"
        if operation.gone:
            for path in [path for path in self.there if f"{path}/".startswith(f"{operation.target}/")]:
                del self.there[path]
        elif operation.target in self.there:
            self.there[operation.target]["properties"]["provisioningState"] = operation.status

    def _go_on(self, path: str) -> None:
        """Who asks for a thing moves what is under way with it."""
        for operation in self.operations.values():
            if operation.target == path:
                self._step(operation)

    def _busy(self, path: str) -> str | None:
        """What is being changed of the endpoint that a path is of."""
        endpoint = path.partition("/deployments/")[0]
        related = [endpoint] if "/deployments/" not in path else [endpoint, path]
        under_way = (one for one in self.operations.values() if one.status == "InProgress")
        return next((shown(one.target) for one in under_way if one.target in related), None)

    def _wrong(self, path: str, body: Mapping[str, Any]) -> Iterator[tuple[int, str, str]]:
        endpoint, _, name = path.partition("/deployments/")
        given = body["properties"]
        if name and endpoint not in self.there:
            yield 404, "ResourceNotFound", "There is no such endpoint."
        traffic, mirror = given.get("traffic") or {}, given.get("mirrorTraffic") or {}
        known = {
            there.rpartition("/")[2] for there in self.there if there.startswith(f"{endpoint}/deployments/")
        }
        if not name and set(traffic) | set(mirror) > known:
            yield (
                400,
                "BadArgument",
                f"Traffic to {sorted(set(traffic) | set(mirror))}; there are {sorted(known)}.",
            )
        if sum(traffic.values()) not in {0, FULL}:
            yield 400, "BadArgument", f"Traffic sums to {sum(traffic.values())}."
        if (
            len(mirror) > 1
            or sum(mirror.values()) > MOST_MIRRORED
            or set(mirror) & {one for one in traffic if traffic[one]}
        ):
            yield 400, "BadArgument", f"Mirror traffic of {mirror} beside {traffic}."
        default = (given.get("defaults") or {}).get("deploymentName")
        if default and default not in known:
            yield 400, "BadArgument", f"There is no deployment {default}."
        if name and "/onlineEndpoints/" in path and self._instances(path, body) > self.quota:
            yield 400, "OutOfQuota", "Not enough quota available for STANDARDNVADSA10V5FAMILY."

    def _instances(self, path: str, body: Mapping[str, Any]) -> int:
        others = (
            there for where, there in self.there.items() if "/onlineEndpoints/" in where and where != path
        )
        return sum(int((one.get("sku") or {}).get("capacity") or 0) for one in (*others, body))

    def _act(self, path: str, action: str, request: Request) -> Answer:
        if path not in self.there:
            return refused(404, "ResourceNotFound", "It is not there.")
        name = path.rpartition("/")[2]
        if action == "listKeys":
            return said(dict(zip(("primaryKey", "secondaryKey"), self.keys[name], strict=True)))
        if action == "regenerateKeys":
            which = ["Primary", "Secondary"].index(json.loads(request.body)["keyType"])
            self.keys[name][which] += "-again"
            return self._begin(path, Operation(path, self.polls), 202)
        if action == "getLogs":
            tail = json.loads(request.body)["tail"]
            lines = self.logs.get(name, "it is loaded").splitlines()[-tail:]
            return said({"content": "\n".join(lines)})
        return refused(404, "NoSuchAction", f"There is no {action}.")


def shown(path: str) -> str:
    """Behind the workspace: `onlineEndpoints/code-llama/deployments/blue`."""
    return path.partition("/workspaces/")[2].partition("/")[2]


def said(body: Any) -> Answer:
    """A good answer."""
    return Answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})


def refused(status: int, code: str, message: str) -> Answer:
    """The management plane's error."""
    body = {"error": {"code": code, "message": message}}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json"})
