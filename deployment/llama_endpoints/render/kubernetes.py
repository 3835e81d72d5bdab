"""Online endpoints on an attached Kubernetes cluster: endpoint, deployments, and the types of instances that these ask for."""

import math
from typing import Any, Final

from llama_endpoints.azure.limits import CREATION_MIN, INSTANCE_TYPE, KUBERNETES, NODE_SIZE, REQUEST_MS, schema
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.render.serving import Notes, admitted, code, identity, machine, notes, serving
from llama_endpoints.render.spec import Site, Spec, compute_name, has_vllm, model_here

FOLDER: Final = "yaml/kubernetes"
TYPES: Final = f"{FOLDER}/instance-types"
_OURS: Final = 0.9
_KEPT_GIB: Final = 2
"""Of a node's CPUs and memory, less what it has in any case: AKS keeps some of both (azure-aks-docs,
node-resource-reservations.md), and the cluster's own pods need some."""


def endpoint(site: Site) -> Spec:
    """The endpoint."""
    values: dict[str, Any] = {
        "$schema": schema("kubernetesOnlineEndpoint"),
        "name": site.kubernetes,
        "description": "Code Llama behind /score, on an attached cluster.",
        "compute": f"azureml:{site.cluster}",
        "auth_mode": "key",
        **identity(site),
    }
    return Spec(values, {("compute",): "A cluster with the extension of Azure ML, attached to the workspace."})


def type_name(plan: DeployablePlan, site: Site) -> str:
    """What the cluster calls such an instance."""
    placed = plan.chosen.placement
    part = "" if placed.gpus == placed.sku.gpus else f"-{placed.gpus}gpu"
    return site.instance_type or f"{compute_name(placed.sku)}{part}"


def instance_type(plan: DeployablePlan, site: Site) -> Spec:
    """A cluster's custom resource: as many of a node's GPUs as the model takes, and their share of all else."""
    sku, gpus = plan.chosen.sku, plan.chosen.placement.gpus
    rest = {
        "cpu": str(math.floor(sku.cores * _OURS * gpus / sku.gpus)),
        "memory": f"{math.floor((sku.ram_gib * _OURS - _KEPT_GIB) * gpus / sku.gpus)}Gi",
    }
    api, kind = INSTANCE_TYPE
    name = type_name(plan, site)
    return Spec(
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
            ("apiVersion",): f"kubectl apply -f {TYPES}/{name}.yml, once on each cluster. Where a deployment names no type it gets "
            "2 CPUs, 2 GiB and no GPU.",
            ("spec", "nodeSelector"): "AKS labels its nodes so. Take it out where the cluster's nodes have no such label.",
            ("spec", "resources"): "A node keeps some of its own. Kubernetes shares no GPU, and Azure takes it among the limits only.",
        },
    )  # fmt: skip


def deployment(plan: DeployablePlan, site: Site) -> Spec:
    """A deployment."""
    values: dict[str, Any] = {
        "$schema": schema("kubernetesOnlineDeployment"),
        "type": "kubernetes",
        **code(plan, site, site.kubernetes, FOLDER, model_here(plan.wanted.variant)),
        "instance_type": type_name(plan, site),
        "instance_count": plan.wanted.instances,
        "scale_settings": {"type": "default"},
        **serving(plan, KUBERNETES),
    }
    return Spec(values, {**_notes(plan, site), **notes(plan, KUBERNETES)})


def _notes(plan: DeployablePlan, site: Site) -> Notes:
    made = "The cluster must have it" if site.instance_type else f"{TYPES}/ has it, for kubectl"
    registry = (
        " Azure takes no model of a registry here: register it in the workspace, too." if site.registry else ""
    )
    with_it = "this copy, the start of vLLM" if has_vllm(plan) else "this copy"
    return {
        ("model",): f"{plan.copy_bytes / 1e9:.0f} GB. Creating the deployment ends after {CREATION_MIN} minutes, with {with_it} and the "
        f"pull of the image: pull that beforehand.{registry}",
        ("instance_type",): f"{made}. {machine(plan)}",
        ("scale_settings",): "Without it Azure would scale by requests, from one instance to one.",
        ("request_settings", "request_timeout_ms"): "Azure's extension has been seen to refuse more, though "
        f"{KUBERNETES.most_s} s are allowed. The default of {REQUEST_MS // 1000} s is less than one long completion takes.",
        ("request_settings", "max_concurrent_requests_per_instance"): f"LLAMA_MAX_NUM_SEQS + LLAMA_QUEUE = {admitted(plan, KUBERNETES)}. "
        f"azureml-fe gives an instance no more at a time, and answers {KUBERNETES.refusal} to what waits longer than max_queue_wait_ms (500).",
    }  # fmt: skip
