"""Plan -> what Azure ML is told, as plain values; beside each the sentences that explain it.

A spec is what `az ml` reads. Its notes stand above the key they are about, by the path to it.
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from deployment.limits import schema
from deployment.planner import Plan
from deployment.sizing import Fit, Precision, Runner
from deployment.skus import Sku
from llama_serving.catalog import ModelVariant
from llama_serving.errors import SetupError

ONLINE: Final = "azureml:llama-online:1"
VLLM: Final = "azureml:llama-vllm:1"
BATCH: Final = "azureml:llama-batch:1"

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
        instance_type: one that this cluster has; made for each machine if not given.
        identity: resource id of a user-assigned identity; the system's if not given.
        public: whether the endpoint has an address that is open to the public network.
        registry: that the models are in; the workspace's own models if not given.
        local: whether a deployment for `az ml ... --local` is written, too.
        output: the folder that the files are written below, from the root of all folders.
        checkout: the folder with score/, environments/, build/ and the samples, which the files name.
    """

    online: str = "code-llama"
    kubernetes: str = "code-llama-k8s"
    batch: str = "code-llama-batch"
    cluster: str = "llama-kubernetes"
    instance_type: str | None = None
    identity: str | None = None
    public: bool = True
    registry: str | None = None
    local: bool = False
    output: str = "/"
    checkout: str = "/"

    def path(self, of: str, folder: str) -> str:
        """A file or folder of the checkout, as a file in a folder below the output names it."""
        return posixpath.relpath(posixpath.join(self.checkout, of), posixpath.join(self.output, folder))


def model_here(variant: ModelVariant) -> str:
    """How a deployment names its model in the workspace."""
    return f"azureml:{slug(variant)}:1"


def model_of(variant: ModelVariant, site: Site) -> str:
    """How a deployment names its model, in the workspace or the registry."""
    if site.registry is None:
        return model_here(variant)
    return f"azureml://registries/{site.registry}/models/{slug(variant)}/versions/1"


def slug(variant: ModelVariant) -> str:
    """A model's name as Azure takes one: `codellama-7b-instruct-hf`."""
    return variant.name.rpartition("/")[2].lower()


def compute_name(sku: Sku) -> str:
    """Of a cluster of such machines."""
    return "llama-" + sku.name.removeprefix("Standard_").lower().replace("_", "-")


def chosen(plan: Plan) -> Fit:
    """The machine of a plan that `deployable` has looked at."""
    assert plan.chosen is not None  # noqa: S101
    return plan.chosen


def has_vllm(plan: Plan) -> bool:
    """Whether vLLM computes, beside the scoring script, and not the pipeline in it."""
    return chosen(plan).placement.runner is Runner.VLLM


def engine_of(plan: Plan) -> dict[str, str]:
    """The settings of the engine.

    The context is said where it is not the one that the model was trained on, and where memory is set aside for it.
    """
    context, variant = plan.wanted.workload.context, plan.wanted.variant
    dtype, said = {"LLAMA_DTYPE": _DTYPES[plan.wanted.precision]}, {"LLAMA_CONTEXT": str(context)}
    if has_vllm(plan):
        gpus = str(chosen(plan).placement.gpus)
        return {"LLAMA_ENGINE": "upstream", "LLAMA_UPSTREAM_GPUS": gpus, **dtype, **said}
    return {"LLAMA_ENGINE": "pipeline", **dtype, **({} if context == variant.trained_positions.value else said)}


def model(variant: ModelVariant, site: Site) -> Spec:
    """The registered model, packaged by `llama-endpoints package`."""
    name = slug(variant)
    return Spec(
        {
            "$schema": schema("model"),
            "name": name,
            "version": "1",
            "description": f"{variant.name}, packaged by `llama-endpoints package`.",
            "type": "mlflow_model",
            "path": site.path(f"build/{name}", "yaml/models"),
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


def data(site: Site) -> Spec:
    """The sample rows."""
    return Spec(
        {
            "$schema": schema("data"),
            "name": "code-llama-rows",
            "version": "1",
            "description": "JSONL rows for the batch endpoint, one request a line.",
            "type": "uri_folder",
            "path": site.path("yaml/batch/samples", "yaml/data"),
        },
        {
            (
                "type",
            ): "A folder, since a batch deployment hands out whole files: more files are more instances at work."
        },
    )


def images(site: Site) -> dict[str, Spec]:
    """The images that Azure builds, by their folder below environments/."""
    return {
        "online": _image(
            site,
            "online",
            "Python 3.12, torch for CUDA 12.6 and Azure's inference HTTP server, for online deployments.",
            {"inference_config": _ROUTES},
            {
                (
                    "inference_config",
                ): "The image starts its own server, so Azure has to be told where it answers. All three are azmlinfsrv's."
            },
        ),
        "vllm": _image(
            site,
            "vllm",
            "Python 3.12, vLLM with torch for CUDA 13 (driver 580 or newer) and Azure's inference HTTP server, for online "
            "deployments on several GPUs.",
            {"inference_config": _ROUTES},
            {
                (
                    "inference_config",
                ): "The image starts its own servers, so Azure has to be told where the front answers: all three are azmlinfsrv's. "
                "It is started when vLLM is healthy."
            },
        ),
        "batch": _image(
            site,
            "batch",
            "Python 3.12, torch for CUDA 12.6 and Azure's job runtime, for batch deployments.",
            {},
            {
                (
                    "build",
                ): "An image of its own: Azure's job runtime needs older numpy, pyarrow and packaging than the online one has."
            },
        ),
    }


def _image(
    site: Site, folder: str, description: str, more: Mapping[str, Any], notes: Mapping[tuple[str, ...], str]
) -> Spec:
    here = f"environments/{folder}"
    values = {
        "$schema": schema("environment"),
        "name": f"llama-{folder}",
        "version": "1",
        "description": description,
        "build": {"path": site.path(here, here), "dockerfile_path": "Dockerfile"},
    }
    return Spec({**values, **more}, notes)


def deployable(plan: Plan) -> Sku:
    """The machine, where it can be had.

    Raises:
        SetupError: it can't.
    """
    why = _obstacles(plan)
    if plan.chosen is None or why:
        raise SetupError(
            f"{plan.wanted.variant.name} can't be deployed: {'; '.join(why)}. `llama-endpoints plan` shows what would do."
        )
    return plan.chosen.sku


def _obstacles(plan: Plan) -> list[str]:
    """Why its machine won't do; what is not known of it is left to who tries."""
    if plan.chosen is None:
        return [f"no machine that is offered for {plan.wanted.offer} holds it"]
    sku, offer = plan.chosen.sku, plan.wanted.offer
    found = list(plan.chosen.reasons)
    if sku.retired:
        found.append(f"Azure retires {sku.name} ({sku.retired.value})")
    if offer in sku.offered and not sku.offered[offer].value:
        found.append(f"{sku.name} is not offered for {offer}")
    return found
