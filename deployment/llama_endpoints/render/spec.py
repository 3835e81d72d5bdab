"""Azure ML specifications as plain values, with explanatory notes, made from plans.

A spec is what `az ml` reads. Its notes are written above the key they are about, addressed by its path.
"""

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from llama_endpoints.azure.limits import schema
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.planning.sizing import SIXTEEN_BITS, USABLE, KvDtype, Precision, Runner, VllmSizingOptions
from llama_endpoints.planning.skus import Gpu, Sku
from llama_serving.catalog import ModelVariant

ONLINE: Final = {Runner.PIPELINE: "azureml:llama-online:1", Runner.VLLM: "azureml:llama-gpu:1"}
BATCH: Final = {Runner.PIPELINE: "azureml:llama-batch:1", Runner.VLLM: "azureml:llama-gpu-batch:1"}
SERVER: Final = "azureml:llama-gpu-server:1"
"""The environments of deployments, by engine."""

_DTYPES: Final = {Precision.BF16: "bfloat16", Precision.FP16: "float16"}
PORT: Final = 5001
WEIGHTS: Final = "weights"
"""The property of a model's file that gives the type of its weights, unless it is 16 bits."""


class FrontServer(StrEnum):
    """The server in the container of a managed deployment."""

    AZMLINFSRV = "azmlinfsrv"  # Azure's, with our scoring script: /score only
    SERVER = "server"  # our own, from the model's code: every route


def _routes(live: str, ready: str) -> dict[str, Any]:
    return {
        "liveness_route": {"path": live, "port": PORT},
        "readiness_route": {"path": ready, "port": PORT},
        "scoring_route": {"path": "/score", "port": PORT},
    }


Notes = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """One file's content.

    Attributes:
        values: the content as plain values.
        notes: comments above a key, by its dotted path; "" is the head of the file.
    """

    values: Mapping[str, Any]
    notes: Notes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """Names and paths shared by all deployments.

    Attributes:
        online: name of the managed endpoint.
        kubernetes: name of the endpoint on a cluster.
        batch: name of the batch endpoint.
        cluster: name of the attached Kubernetes cluster.
        instance_type: an instance type of this cluster; one is written for each machine by default.
        identity: resource id of a user-assigned identity; system-assigned by default.
        public: whether the endpoint is open to the public network.
        registry: registry of the models; the workspace's own models by default.
        local: whether to write a deployment for `az ml ... --local`.
        front: the server in the containers of the managed endpoint.
        output: the folder to write to, as an absolute path.
        checkout: the folder with score/, environments/, build/ and the samples that the files refer to.
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
    front: FrontServer = FrontServer.AZMLINFSRV
    output: str = "/"
    checkout: str = "/"

    def path(self, of: str, folder: str) -> str:
        """Return the path of a file of the checkout, relative to a folder below the output."""
        return posixpath.relpath(posixpath.join(self.checkout, of), posixpath.join(self.output, folder))


def model_here(variant: ModelVariant) -> str:
    """Return the reference to a model of the workspace."""
    return f"azureml:{slug(variant)}:1"


def model_of(variant: ModelVariant, site: Site) -> str:
    """Return the reference to a model of the workspace or the registry."""
    if site.registry is None:
        return model_here(variant)
    return f"azureml://registries/{site.registry}/models/{slug(variant)}/versions/1"


def slug(variant: ModelVariant) -> str:
    """Return a model's name in Azure: `codellama-7b-instruct-hf`."""
    return variant.name.rpartition("/")[2].lower()


def compute_name(sku: Sku) -> str:
    """Return the name of a cluster of such machines."""
    return "llama-" + sku.name.removeprefix("Standard_").lower().replace("_", "-")


def has_vllm(plan: DeployablePlan) -> bool:
    """Whether vLLM serves, rather than the pipeline in the scoring script."""
    return plan.chosen.placement.runner is Runner.VLLM


def engine_of(plan: DeployablePlan) -> dict[str, str]:
    """Return the engine's settings.

    The context is set only if it differs from the trained one.
    """
    context, variant = plan.request.workload.context, plan.request.variant
    placed = plan.chosen.placement
    dtype = {"LLAMA_DTYPE": _dtype(placed.precision, placed.sku.gpu)}
    said = {} if context == variant.trained_positions.value else {"LLAMA_CONTEXT": str(context)}
    if has_vllm(plan):
        return {
            "LLAMA_ENGINE": "vllm",
            **dtype,
            **said,
            **_vllm_settings(placed.tensor_parallel, placed.options),
        }
    return {"LLAMA_ENGINE": "pipeline", **dtype, **said}


def _dtype(precision: Precision, gpu: Gpu) -> str:
    """Return the type to compute in; quantized weights are widened to one the GPU supports."""
    return _DTYPES.get(precision, "bfloat16" if gpu.bf16 else "float16")


def _vllm_settings(tensor_parallel: int, options: VllmSizingOptions) -> dict[str, str]:
    """Return the plan's options, and those that differ from vLLM's defaults."""
    return {
        "LLAMA_VLLM_TENSOR_PARALLEL": str(tensor_parallel),
        "LLAMA_VLLM_GPU_SHARE": str(USABLE),
        **(
            {"LLAMA_VLLM_PIPELINE_PARALLEL": str(options.pipeline_parallel)}
            if options.pipeline_parallel > 1
            else {}
        ),
        **({"LLAMA_VLLM_KV_DTYPE": str(options.kv_dtype)} if options.kv_dtype is not KvDtype.AUTO else {}),
        **({"LLAMA_VLLM_PREFILL_TOKENS": str(options.prefill_tokens)} if options.prefill_tokens else {}),
        **(
            {"LLAMA_VLLM_SPECULATIVE_TOKENS": str(options.speculative_tokens)}
            if options.speculative_tokens
            else {}
        ),
    }


def model(variant: ModelVariant, site: Site, precision: Precision) -> RenderedFile:
    """Return the registered model, packaged by `llama-endpoints package`."""
    name = slug(variant)
    quantized = {} if precision in SIXTEEN_BITS else {WEIGHTS: str(precision)}
    checkpoint = f" DIR is a checkpoint with {precision} weights." if quantized else ""
    return RenderedFile(
        {
            "$schema": schema("model"),
            "name": name,
            "version": "1",
            "description": f"{variant.name}, packaged by `llama-endpoints package`.",
            "type": "mlflow_model",
            "path": site.path(f"build/{name}", "yaml/models"),
            "properties": {"variant": variant.name, **quantized},
        },
        {
            "type": "It is an MLflow model, and the registry shows its signature and example. Our deployments set their own "
            "code and environment instead of Azure's no-code deployment, which has no JSONL, no queue and no deadline.",
            "path": f"llama-endpoints package --variant {variant.name} --checkpoint DIR --output build/{name}{checkpoint}",
            "properties": "`llama-endpoints validate` derives the model's size from it.",
        },
    )


def data(site: Site) -> RenderedFile:
    """Return the sample rows."""
    return RenderedFile(
        {
            "$schema": schema("data"),
            "name": "code-llama-rows",
            "version": "1",
            "description": "JSONL rows for the batch endpoint, one request per line.",
            "type": "uri_folder",
            "path": site.path("yaml/batch/samples", "yaml/data"),
        },
        {"type": "A folder, since batch deployments distribute whole files: more files use more instances."},
    )


def images(site: Site) -> dict[str, RenderedFile]:
    """Return the environments by their folder below environments/. The three of `gpu` share one image."""
    return {
        "online": _image(
            site,
            "online",
            "Python 3.12, torch for CUDA 12.6 and Azure's inference HTTP server, for online deployments without vLLM.",
            {"inference_config": _routes("/", "/")},
            {
                "inference_config": "The image starts its own server, so Azure needs its routes. All three are azmlinfsrv's."
            },
        ),
        "batch": _image(
            site,
            "batch",
            "Python 3.12, torch for CUDA 12.6 and Azure's job runtime, for batch deployments without vLLM.",
            {},
            {
                "build": "A separate image: Azure's job runtime needs older numpy, pyarrow and packaging than the online image has."
            },
        ),
        **_gpu_images(site),
    }


def _gpu_images(site: Site) -> dict[str, RenderedFile]:
    what = "Python 3.12 and vLLM with torch for CUDA 13 (driver 580 or newer)"
    same = "Uses llama-gpu's folder: one image with an environment for each way to run it."
    return {
        "gpu": _image(
            site,
            "gpu",
            f"{what}, with Azure's inference HTTP server beside it, for online deployments.",
            {"inference_config": _routes("/", "/")},
            {
                "inference_config": "The image starts its own server, so Azure needs its routes. All three are azmlinfsrv's."
            },
        ),
        "gpu-batch": _image(
            site,
            "gpu-batch",
            f"{what}, with Azure's job runtime beside it, for batch deployments.",
            {},
            {"build": f"{same} A batch deployment's has no inference_config."},
        ),
        "gpu-server": _image(
            site,
            "gpu-server",
            f"{what}, with our own server beside it, for online deployments that speak OpenAI's protocol.",
            {"inference_config": _routes("/health/live", "/health/ready")},
            {
                "build": f"{same} Without a scoring script it starts our server, from the code in the model.",
                "inference_config": "Azure's front end also passes other paths on, such as /v1/chat/completions.",
            },
        ),
    }


def _image(site: Site, folder: str, description: str, more: Mapping[str, Any], notes: Notes) -> RenderedFile:
    here = f"environments/{folder}"
    built = "environments/gpu" if folder.startswith("gpu") else here
    values = {
        "$schema": schema("environment"),
        "name": f"llama-{folder}",
        "version": "1",
        "description": description,
        "build": {"path": site.path(built, here), "dockerfile_path": "Dockerfile"},
    }
    return RenderedFile({**values, **more}, notes)
