"""Online endpoints on an attached Kubernetes cluster: endpoint, deployments, and their instance types."""

import math
from typing import Any, Final

from llama_endpoints.azure.limits import CREATION_MIN, INSTANCE_TYPE, KUBERNETES, NODE_SIZE, REQUEST_MS, schema
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.render.serving import admitted, code, identity, machine, notes, serving
from llama_endpoints.render.spec import Notes, RenderedFile, Site, compute_name, has_vllm, model_here

FOLDER: Final = "yaml/kubernetes"
TYPES: Final = f"{FOLDER}/instance-types"
_OURS: Final = 0.9
_KEPT_GIB: Final = 2
"""The share of a node's CPUs and memory left to us. AKS reserves some of both (azure-aks-docs,
node-resource-reservations.md), and the cluster's own pods need some."""


def endpoint(site: Site) -> RenderedFile:
    """Return the endpoint."""
    values: dict[str, Any] = {
        "$schema": schema("kubernetesOnlineEndpoint"),
        "name": site.kubernetes,
        "description": "Code Llama behind /score, on an attached cluster.",
        "compute": f"azureml:{site.cluster}",
        "auth_mode": "key",
        **identity(site),
    }
    return RenderedFile(
        values, {"compute": "A cluster with the Azure ML extension, attached to the workspace."}
    )


def type_name(plan: DeployablePlan, site: Site) -> str:
    """Return the name of the instance type."""
    placed = plan.chosen.placement
    part = "" if placed.gpus == placed.sku.gpus else f"-{placed.gpus}gpu"
    return site.instance_type or f"{compute_name(placed.sku)}{part}"


def instance_type(plan: DeployablePlan, site: Site) -> RenderedFile:
    """Return an instance type, a custom resource: the GPUs that the model needs, and their share of the node's CPUs and memory."""
    sku, gpus = plan.chosen.sku, plan.chosen.placement.gpus
    rest = {
        "cpu": str(math.floor(sku.cores * _OURS * gpus / sku.gpus)),
        "memory": f"{math.floor((sku.ram_gib * _OURS - _KEPT_GIB) * gpus / sku.gpus)}Gi",
    }
    api, kind = INSTANCE_TYPE
    name = type_name(plan, site)
    return RenderedFile(
        {
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {NODE_SIZE: sku.name},
                "resources": {"requests": rest, "limits": {**rest, "nvidia.com/gpu": gpus}},
            },
        },
        {
            "apiVersion": f"kubectl apply -f {TYPES}/{name}.yml, once per cluster. A deployment without an instance type gets "
            "2 CPUs, 2 GiB and no GPU.",
            "spec.nodeSelector": "The label that AKS gives its nodes. Remove it if the cluster's nodes do not have it.",
            "spec.resources": "A node reserves some of its own. Kubernetes does not share GPUs, and Azure reads them from "
            "limits only.",
        },
    )  # fmt: skip


def deployment(plan: DeployablePlan, site: Site) -> RenderedFile:
    """Return a deployment."""
    values: dict[str, Any] = {
        "$schema": schema("kubernetesOnlineDeployment"),
        "type": "kubernetes",
        **code(plan, site, site.kubernetes, FOLDER, model_here(plan.request.variant)),
        "instance_type": type_name(plan, site),
        "instance_count": plan.request.instances,
        "scale_settings": {"type": "default"},
        **serving(plan, KUBERNETES),
    }
    return RenderedFile(values, {**_notes(plan, site), **notes(plan, KUBERNETES)})


def _notes(plan: DeployablePlan, site: Site) -> Notes:
    made = "Must exist on the cluster" if site.instance_type else f"Defined in {TYPES}/, for kubectl"
    registry = (
        " Azure uses no registry's model here: register it in the workspace too." if site.registry else ""
    )
    with_it = "this copy, the start of vLLM" if has_vllm(plan) else "this copy"
    return {
        "model": f"{plan.copy_bytes / 1e9:.0f} GB. Creating the deployment times out after {CREATION_MIN} minutes, including "
        f"{with_it} and the image pull: pull the image beforehand.{registry}",
        "instance_type": f"{made}. {machine(plan)}",
        "scale_settings": "Without it, Azure would scale by requests, with a minimum and a maximum of one instance.",
        "request_settings.request_timeout_ms": "Some versions of Azure's extension refuse more, although "
        f"{KUBERNETES.most_s} s are allowed. The default of {REQUEST_MS // 1000} s is too short for a long completion.",
        "request_settings.max_concurrent_requests_per_instance": f"LLAMA_MAX_NUM_SEQS + LLAMA_QUEUE = "
        f"{admitted(plan, KUBERNETES)}. "
        f"azureml-fe sends an instance no more at a time, and answers {KUBERNETES.refusal} to requests that wait longer than max_queue_wait_ms (500).",
    }  # fmt: skip
