"""Azure's numbers, names and words, each with its source: one place for who writes files and for who checks them.

`ML/` is MicrosoftDocs/azure-ai-docs, articles/machine-learning.
"""

import re
from dataclasses import dataclass
from typing import Final


def schema(kind: str) -> str:
    """What a file of a kind has as its `$schema`."""
    return f"https://azuremlschemas.azureedge.net/latest/{kind}.schema.json"


# --- requests ---------------------------------------------------------------------------------------

ANSWER_S: Final = 2
"""Ours: between our deadline and the front's, so that the answer is ours."""
SPARE_THREADS: Final = 4
"""Ours: of gunicorn, beside those of requests, so that a probe finds a free one."""
ANSWER_TOKENS: Final = 256
"""Ours: of an answer that asks for no number, what a place in the queue is reckoned with."""
REQUEST_MS: Final = 5_000
"""Of a request where nothing is said: ML/reference-yaml-deployment-managed-online.md."""


@dataclass(frozen=True, slots=True)
class Front:
    """What stands before a deployment's instances.

    Attributes:
        most_s: that a request may be given.
        request_s: that we give it.
        passes: requests for an instance that are let through, for each of `max_concurrent_requests_per_instance`.
        refusal: the status of those that are not.
    """

    most_s: int
    request_s: int
    passes: int
    refusal: int

    @property
    def deadline_s(self) -> int:
        """Within which our answer must be there."""
        return self.request_s - ANSWER_S


MANAGED: Final = Front(most_s=180, request_s=180, passes=2, refusal=429)
"""ML/how-to-manage-quotas.md; ML/how-to-troubleshoot-online-endpoints.md for what passes."""
KUBERNETES: Final = Front(most_s=300, request_s=150, passes=1, refusal=503)
"""ML/how-to-manage-quotas.md. Azure's extension makes a probe's timeout of the request's, and was seen to refuse 180 s
(azure-sdk-for-python#33660: "150s or less"). Its azureml-fe keeps the others for `max_queue_wait_ms`, and answers 503 then."""

# --- instances --------------------------------------------------------------------------------------

MOST_INSTANCES: Final = 50
"""Of a deployment: ML/how-to-manage-quotas.md."""
START_MIN: Final = (12, 18)
"""Minutes until a new instance with a GPU answers. Seen by others; Microsoft gives no number."""
CREATION_MIN: Final = 20
"""Minutes that creating a deployment on Kubernetes may take, with image, model and init(): ML/how-to-attach-kubernetes-anywhere.md."""
DISK_BYTES_S: Final = 100e6
"""Bytes a second that a node's own disk gives at least: P10, the smallest that AKS gives its nodes (azure-aks-docs,
concepts-storage.md); that no other is slower is an assumption. Model and image are on it before our container starts
(ML/how-to-troubleshoot-online-endpoints.md, storage initializer), and probes count from there."""
VLLM_START_S: Final = 300
"""Seconds that vLLM takes beside reading the weights: looking for ways between the GPUs, compiling, capturing graphs, a first pass. Of
Llama-70B over 8 H100 60 + 15 + 70 + 60 were told (vllm-project/vllm#19824); an assumption for other machines, with half as much again.
The container keeps no cache of what was compiled, so that each start takes as long."""
MINI_BATCH_S: Final = 259_200
"""That a mini-batch may take at most: ML/how-to-use-parallel-job-in-pipeline.md."""

# --- words ------------------------------------------------------------------------------------------

OUTPUT_ACTIONS: Final = ("append_row", "summary_only")
LOGGING_LEVELS: Final = ("debug", "info", "warning")
"""ML/reference-yaml-deployment-batch.md."""
INSTANCE_TYPE: Final = ("amlarc.azureml.com/v1alpha1", "InstanceType")
"""apiVersion and kind of what a cluster calls one: ML/how-to-manage-kubernetes-instance-types.md."""
DEFAULT_INSTANCE_TYPE: Final = "defaultinstancetype"
"""Where a deployment names none: 2 CPUs, 2 GiB and no GPU (same page)."""
NODE_SIZE: Final = "node.kubernetes.io/instance-type"
"""The label in which a cloud's nodes have their size (kubernetes.io, well-known labels)."""

# --- names ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """What something may be called.

    Attributes:
        pattern: of a whole name.
        allowed: the same in words.
    """

    pattern: re.Pattern[str]
    allowed: str

    def take(self, name: object) -> bool:
        """Whether it is one."""
        return isinstance(name, str) and self.pattern.fullmatch(name) is not None


_WORDS: Final = r"[A-Za-z](?:-?[A-Za-z0-9])*"
_IN_WORDS: Final = "letters, digits and single hyphens, the first a letter, the last no hyphen"
ENDPOINTS: Final = Names(re.compile(rf"(?=.{{3,32}}$){_WORDS}"), f"3 to 32 {_IN_WORDS}")
"""Endpoints and deployments: ML/how-to-manage-quotas.md."""
COMPUTES: Final = Names(
    re.compile(rf"(?=.{{3,24}}$)(?!.*-\d+$){_WORDS}"), f"3 to 24 {_IN_WORDS}, and a letter behind each hyphen"
)
"""ML/how-to-create-attach-compute-cluster.md."""
REGISTRIES: Final = Names(
    re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{2,32}"), "3 to 33 letters, digits, hyphens and underscores"
)
"""As workspaces (azure-rest-api-specs, machineLearningServices)."""
INSTANCE_TYPES: Final = Names(
    re.compile(r"(?=.{1,63}$)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"),
    "1 to 63 small letters, digits, hyphens and dots, the first and the last a letter or digit",
)
"""What Kubernetes takes as a resource's name (RFC 1123)."""
IDENTITIES: Final = Names(
    re.compile(
        r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft\.managedidentity/userassignedidentities/[^/]+",
        re.IGNORECASE,
    ),
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME",
)
"""Resource ids of user-assigned ones."""
MOST_TOGETHER: Final = 62
"""Characters of an endpoint's and a deployment's name on Kubernetes: ML/how-to-manage-quotas.md."""
