"""The data plane: the front of online endpoints with its deployments behind it, and what starts a batch endpoint's jobs.

It follows learn.microsoft.com/azure/machine-learning/how-to-troubleshoot-online-endpoints (statuses) and how-to-safely-rollout-online-endpoints
(traffic, mirror, `azureml-model-deployment`): the container's status other than 200 becomes 424 and is named in a header.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_azure.network import Answer, Request
from tests.support.fake_azure.resources import Resources, refused

HOST = ".eastus.inference.ml.azure.com"
OK = 200
Container = Callable[[bytes], tuple[int, Any]]
"""A body in, a status and a JSON value out."""


def completion(_: bytes) -> tuple[int, Any]:
    """What our scoring script answers to one prompt."""
    return OK, [{"0": "    return sorted(numbers)\n"}]


@dataclass
class Serving:
    """All endpoints' scoring addresses.

    Attributes:
        containers: what runs in a deployment, by its name.
        asked: requests that a deployment has got, by its name; `mirror:NAME` those that were mirrored.
        fronts: how the front itself answers next, by the endpoint's name, in order.
        jobs: that batch endpoints were asked for.
    """

    resources: Resources
    bearer: str
    containers: dict[str, Container] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    fronts: dict[str, list[Answer]] = field(default_factory=lambda: defaultdict(list))
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: int = 0

    def answer(self, request: Request) -> Answer:
        name = request.host.removesuffix(HOST)
        if request.path == "/jobs":
            return self._job(name, request)
        endpoint = self.resources.of("onlineEndpoints", name)
        if endpoint is None:
            return refused(404, "NotFound", "No such endpoint.")
        who = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if who not in self.resources.keys[name]:
            return refused(401, "key_auth_access_denied", "The key does not fit.")
        if self.fronts[name]:
            return self.fronts[name].pop(0)
        return self._routed(name, endpoint, request)

    def _routed(self, name: str, endpoint: dict[str, Any], request: Request) -> Answer:
        traffic = endpoint["properties"].get("traffic") or {}
        self.requests += 1
        turn, chosen = self.requests * 37 % 100, request.headers.get("azureml-model-deployment")
        for deployment, share in traffic.items() if chosen is None else ():
            if turn < share:
                chosen = deployment
                break
            turn -= share
        if chosen is None or self.resources.of("onlineEndpoints", name, chosen) is None:
            return refused(404, "NotFound", "No deployment takes it.")
        self.asked[chosen] += 1
        for mirrored, share in (endpoint["properties"].get("mirrorTraffic") or {}).items():
            self.asked[f"mirror:{mirrored}"] += self.requests % 100 < share
        status, body = self.containers.get(chosen, completion)(request.body)
        headers = {"Content-Type": "application/json", "azureml-model-deployment": chosen}
        if status != OK:
            headers["ms-azureml-model-error-statuscode"] = str(status)
        return Answer(OK if status == OK else 424, json.dumps(body).encode(), headers)

    def _job(self, name: str, request: Request) -> Answer:
        endpoint = self.resources.of("batchEndpoints", name)
        if endpoint is None:
            return refused(404, "NotFound", "No such endpoint.")
        if request.headers.get("Authorization") != f"Bearer {self.bearer}":
            return refused(401, "Unauthorized", "Nobody is logged in.")
        default = (endpoint["properties"].get("defaults") or {}).get("deploymentName")
        chosen = request.headers.get("azureml-model-deployment") or default
        if chosen is None:
            return refused(400, "BadArgument", "No default deployment.")
        job = f"batchjob-{len(self.jobs) + 1}"
        self.jobs[job] = {"deployment": chosen, **json.loads(request.body)["properties"]}
        body = {
            "id": f"/jobs/{job}",
            "name": job,
            "type": "x",
            "properties": {"status": "Preparing", "jobType": "Batch"},
        }
        return Answer(201, json.dumps(body).encode(), {"Content-Type": "application/json"})
