"""Plan -> what Azure ML is told, as plain values; beside each the sentences that explain it.

A spec is what `az ml` reads. Its notes stand above the key they are about, by the path to it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deployment.planner import REQUEST_S, SLOW_COPY_BYTES_S, Plan
from deployment.sizing import Precision, Runner
from deployment.skus import Sku
from llama_serving.catalog import ModelVariant
from llama_serving.errors import SetupError

SCHEMAS: Final = "https://azuremlschemas.azureedge.net/latest"
ANSWER_TOKENS: Final = 256
"""Of an answer that asks for no number: what a place in the queue is reckoned with."""
MOST_WAITING: Final = 15
SPARE_THREADS: Final = 4
"""Of gunicorn, for probes while all others wait."""
ONLINE: Final = "azureml:llama-online:1"
BATCH: Final = "azureml:llama-batch:1"
KUBERNETES_REQUEST_S: Final = 148
"""Azure's extension makes a probe's timeout of the request's, and was seen to refuse 180 s (azure-sdk-for-python#33660)."""

_DTYPES: Final = {Precision.BF16: "bfloat16", Precision.FP16: "float16"}
_ROUTES: Final = {
    "liveness_route": {"path": "/", "port": 5001},
    "readiness_route": {"path": "/", "port": 5001},
    "scoring_route": {"path": "/score", "port": 5001},
}


@dataclass(frozen=True, slots=True)
class Spec:
    """One file.

    Attributes:
        values: of it.
        notes: sentences above a key, by the path to it; `()` is the head of the file.
    """

    values: Mapping[str, Any]
    notes: Mapping[tuple[str, ...], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """What is the same for all deployments of one place.

    Attributes:
        online: name of the managed endpoint.
        kubernetes: of the endpoint on a cluster.
        batch: of the batch endpoint.
        cluster: name of the attached Kubernetes cluster.
        identity: resource id of a user-assigned identity; the system's if not given.
        public: whether the endpoint has an address that is open to the public network.
        registry: that the models are in; the workspace's own models if not given.
        local: whether a deployment for `az ml ... --local` is written, too.
    """

    online: str = "code-llama"
    kubernetes: str = "code-llama-k8s"
    batch: str = "code-llama-batch"
    cluster: str = "llama-kubernetes"
    identity: str | None = None
    public: bool = True
    registry: str | None = None
    local: bool = False


def model_of(variant: ModelVariant, site: Site) -> str:
    """How a deployment names its model."""
    name = slug(variant)
    return (
        f"azureml://registries/{site.registry}/models/{name}/versions/1"
        if site.registry
        else f"azureml:{name}:1"
    )


def slug(variant: ModelVariant) -> str:
    """A model's name as Azure takes one: `codellama-7b-instruct-hf`."""
    return variant.name.rpartition("/")[2].lower()


def compute_name(sku: Sku) -> str:
    """Of a cluster of such machines."""
    return "llama-" + sku.name.removeprefix("Standard_").lower().replace("_", "-")


def admitted(plan: Plan) -> int:
    """Requests that are let in at a time: those that run, and those that have a chance to end within the time limit.

    The front turns away what is above twice `max_concurrent_requests_per_instance`, so it is an even number.
    """
    assert plan.chosen is not None  # noqa: S101  (`deployable` has looked)
    running = 1 if plan.chosen.placement.runner is Runner.PIPELINE else plan.wanted.workload.concurrency
    in_time = math.floor(REQUEST_S * plan.chosen.speed.all / ANSWER_TOKENS)
    return max(2, 2 * (min(running + MOST_WAITING, max(running + 1, in_time)) // 2))


def engine_of(plan: Plan) -> dict[str, str]:
    """The settings of the engine. The context is said where it is not the one that the model was trained on."""
    context, variant = plan.wanted.workload.context, plan.wanted.variant
    said = {} if context == variant.trained_positions.value else {"LLAMA_CONTEXT": str(context)}
    return {"LLAMA_ENGINE": "pipeline", "LLAMA_DTYPE": _DTYPES[plan.wanted.precision], **said}


def patience_s(plan: Plan) -> int:
    """Seconds until a probe may give up on a start: those of a slow day, and a tenth."""
    return 60 * math.ceil(1.1 * plan.copy_bytes / SLOW_COPY_BYTES_S / 60)


def model(variant: ModelVariant) -> Spec:
    """The registered model, packaged by `llama-endpoints package`."""
    name = slug(variant)
    return Spec(
        {
            "$schema": f"{SCHEMAS}/model.schema.json",
            "name": name,
            "version": "1",
            "description": f"{variant.name}, packaged by `llama-endpoints package`.",
            "type": "mlflow_model",
            "path": f"../../build/{name}",
            "properties": {"variant": variant.name},
        },
        {
            (
                "type",
            ): "It is one, and the registry shows its signature and example. Our deployments name their own code and "
            "environment, which turns Azure's no-code deployment off: that one has no JSONL, no queue and no deadline.",
            (
                "path",
            ): f"llama-endpoints package --variant {variant.name} --checkpoint DIR --output build/{name}",
            ("properties",): "By which `llama-endpoints validate` knows its size.",
        },
    )


def data() -> Spec:
    """The sample rows."""
    return Spec(
        {
            "$schema": f"{SCHEMAS}/data.schema.json",
            "name": "code-llama-rows",
            "version": "1",
            "description": "JSONL rows for the batch endpoint, one request a line.",
            "type": "uri_folder",
            "path": "../batch/samples",
        },
        {
            (
                "type",
            ): "A folder, since a batch deployment hands out whole files: more files are more instances at work."
        },
    )


def images() -> dict[str, Spec]:
    """The images that Azure builds, by their folder below environments/."""
    return {
        "online": _image(
            "llama-online",
            "Python 3.12, torch for CUDA 12.6 and Azure's inference HTTP server, for online deployments.",
            {"inference_config": _ROUTES},
            {
                (
                    "inference_config",
                ): "The image starts its own server, so Azure has to be told where it answers. All three are azmlinfsrv's."
            },
        ),
        "batch": _image(
            "llama-batch",
            "Python 3.12, torch for CUDA 12.6 and Azure's job runtime, for batch deployments.",
            {},
            {
                (
                    "build",
                ): "An image of its own: Azure's job runtime needs older numpy, pyarrow and packaging than the online one has."
            },
        ),
    }


def _image(name: str, description: str, more: Mapping[str, Any], notes: Mapping[tuple[str, ...], str]) -> Spec:
    values = {
        "$schema": f"{SCHEMAS}/environment.schema.json",
        "name": name,
        "version": "1",
        "description": description,
        "build": {"path": ".", "dockerfile_path": "Dockerfile"},
    }
    return Spec({**values, **more}, notes)


def deployable(plan: Plan) -> Sku:
    """The machine, where today's scoring script can use it.

    Raises:
        SetupError: it can't.
    """
    variant, chosen = plan.wanted.variant, plan.chosen
    if chosen is None or not chosen.fits:
        why = "; ".join(chosen.reasons) if chosen else "no machine that is offered for it holds it"
        raise SetupError(
            f"{variant.name} can't be deployed: {why}. `llama-endpoints plan` shows what would do."
        )
    if chosen.placement.runner is not Runner.PIPELINE:
        raise SetupError(
            f"{variant.name} would need the engine {chosen.placement.runner} for that, which no scoring script of ours uses yet. "
            "Render it with --concurrency 1 and a --dtype of 16 bits."
        )
    return chosen.sku
