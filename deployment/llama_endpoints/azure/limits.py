"""Azure's limits, names and constants, each with its source. Shared by the code that writes files and the code that checks them.

`ML/` is MicrosoftDocs/azure-ai-docs, articles/machine-learning.
"""

import re
from dataclasses import dataclass
from typing import Final


def schema(kind: str) -> str:
    """Return the `$schema` of a kind of file."""
    return f"https://azuremlschemas.azureedge.net/latest/{kind}.schema.json"


# --- requests ---------------------------------------------------------------------------------------

ANSWER_S: Final = 2
"""Our choice: the margin between our deadline and the front end's, so that the error is ours."""
SPARE_THREADS: Final = 4
"""Our choice: gunicorn threads besides those of requests, so that probes find a free one."""
ANSWER_TOKENS: Final = 256
"""Our choice: the length of an answer without max_tokens, for sizing the queue."""
REQUEST_MS: Final = 5_000
"""The default request timeout: ML/reference-yaml-deployment-managed-online.md."""


@dataclass(frozen=True, slots=True)
class Front:
    """Azure's front end before a deployment's instances.

    Attributes:
        most_s: the longest request timeout allowed.
        request_s: the request timeout we set.
        passes: requests let through per instance, in multiples of `max_concurrent_requests_per_instance`.
        refusal: the status of further requests.
    """

    most_s: int
    request_s: int
    passes: int
    refusal: int

    @property
    def deadline_s(self) -> int:
        """Seconds within which our answer must be complete."""
        return self.request_s - ANSWER_S


MANAGED: Final = Front(most_s=180, request_s=180, passes=2, refusal=429)
"""ML/how-to-manage-quotas.md; `passes`: ML/how-to-troubleshoot-online-endpoints.md."""
KUBERNETES: Final = Front(most_s=300, request_s=150, passes=1, refusal=503)
"""ML/how-to-manage-quotas.md. Azure's extension derives a probe's timeout from the request's, and was seen to refuse 180 s
(azure-sdk-for-python#33660: "150s or less"). Its azureml-fe queues further requests for `max_queue_wait_ms`, then answers 503."""

# --- instances --------------------------------------------------------------------------------------

MOST_INSTANCES: Final = 50
"""Instances of a deployment: ML/how-to-manage-quotas.md."""
START_MIN: Final = (12, 18)
"""Minutes until a new GPU instance answers. Third-party reports; Microsoft gives no number."""
CREATION_MIN: Final = 20
"""Minutes that creating a Kubernetes deployment may take, including image, model and init(): ML/how-to-attach-kubernetes-anywhere.md."""
DISK_BYTES_S: Final = 100e6
"""Bytes a second of a node's own disk, at least: P10, the smallest that AKS uses (azure-aks-docs, concepts-storage.md). That no
other is slower is an assumption. Model and image are on it before our container starts
(ML/how-to-troubleshoot-online-endpoints.md, storage initializer), and probes count from that start."""
VLLM_START_S: Final = 300
"""Seconds that vLLM takes besides reading weights: topology search, compilation, graph capture, a warm-up pass. For Llama-70B on
8 H100, 60 + 15 + 70 + 60 were reported (vllm-project/vllm#19824); for other machines we assume half as much again. The container
keeps no compilation cache, so each start takes as long."""
MINI_BATCH_S: Final = 259_200
"""The most seconds for a mini-batch: ML/how-to-use-parallel-job-in-pipeline.md."""

# --- words ------------------------------------------------------------------------------------------

OUTPUT_ACTIONS: Final = ("append_row", "summary_only")
LOGGING_LEVELS: Final = ("debug", "info", "warning")
"""ML/reference-yaml-deployment-batch.md."""
INSTANCE_TYPE: Final = ("amlarc.azureml.com/v1alpha1", "InstanceType")
"""apiVersion and kind of an instance type: ML/how-to-manage-kubernetes-instance-types.md."""
DEFAULT_INSTANCE_TYPE: Final = "defaultinstancetype"
"""The instance type of a deployment that sets none: 2 CPUs, 2 GiB and no GPU (same page)."""
NODE_SIZE: Final = "node.kubernetes.io/instance-type"
"""The label that holds a node's machine size (kubernetes.io, well-known labels)."""

# --- names ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Names:
    """The rules for a kind of name.

    Attributes:
        pattern: matches a whole name.
        allowed: the rule in words.
    """

    pattern: re.Pattern[str]
    allowed: str

    def take(self, name: object) -> bool:
        """Whether a name is allowed."""
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
"""The same as for workspaces (azure-rest-api-specs, machineLearningServices)."""
INSTANCE_TYPES: Final = Names(
    re.compile(r"(?=.{1,63}$)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?"),
    "1 to 63 lower-case letters, digits, hyphens and dots, the first and the last a letter or digit",
)
"""Resource names in Kubernetes (RFC 1123)."""
CONNECTIONS: Final = Names(
    re.compile(
        r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft\.machinelearningservices/workspaces/[^/]+/connections/[^/]+",
        re.IGNORECASE,
    ),
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.MachineLearningServices/workspaces/W/connections/NAME",
)
IDENTITIES: Final = Names(
    re.compile(
        r"/subscriptions/[^/]+/resourcegroups/[^/]+/providers/microsoft\.managedidentity/userassignedidentities/[^/]+",
        re.IGNORECASE,
    ),
    "/subscriptions/S/resourceGroups/G/providers/Microsoft.ManagedIdentity/userAssignedIdentities/NAME",
)
"""Resource ids of user-assigned identities."""
MOST_TOGETHER: Final = 62
"""The most characters of endpoint and deployment names together on Kubernetes: ML/how-to-manage-quotas.md."""
