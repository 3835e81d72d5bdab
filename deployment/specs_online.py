"""Online endpoints and their deployments: managed ones, and those on an attached Kubernetes cluster."""

import math
from collections.abc import Mapping
from typing import Any, Final

from deployment.planner import REQUEST_S, Plan
from deployment.specs import (
    KUBERNETES_REQUEST_S,
    ONLINE,
    SCHEMAS,
    SPARE_THREADS,
    Site,
    Spec,
    admitted,
    deployable,
    engine_of,
    model_of,
    patience_s,
    slug,
)

_GIB: Final = 1 << 30
_EARLY_S: Final = 30
_PROBE: Final = {
    "initial_delay": 10,
    "period": 10,
    "timeout": 2,
    "success_threshold": 1,
    "failure_threshold": 30,
}
Notes = dict[tuple[str, ...], str]


def endpoint(site: Site) -> Spec:
    """The managed endpoint."""
    values: dict[str, Any] = {
        "$schema": f"{SCHEMAS}/managedOnlineEndpoint.schema.json",
        "name": site.online,
        "description": "Code Llama behind /score.",
        "auth_mode": "key",
        "public_network_access": "enabled" if site.public else "disabled",
        **_identity(site),
    }
    open_to_all = (
        "Callers come with a key over the public address. `disabled` needs a private endpoint of the workspace."
    )
    return Spec(
        values,
        {
            ("name",): "Unique in its region: give another one with `--name` where this is taken.",
            ("public_network_access",): open_to_all
            if site.public
            else "Callers come through the workspace's private endpoint.",
            (): "No traffic here: Azure refuses it before there is a deployment to send it to.",
        },
    )


def kubernetes_endpoint(site: Site) -> Spec:
    """The endpoint on a cluster of one's own."""
    values: dict[str, Any] = {
        "$schema": f"{SCHEMAS}/kubernetesOnlineEndpoint.schema.json",
        "name": site.kubernetes,
        "description": "Code Llama behind /score, on an attached cluster.",
        "compute": f"azureml:{site.cluster}",
        "auth_mode": "key",
        **_identity(site),
    }
    return Spec(values, {("compute",): "A cluster with the extension of Azure ML, attached to the workspace."})


def deployment(plan: Plan, site: Site) -> Spec:
    """A managed deployment.

    Raises:
        SetupError: the model can't be deployed so.
    """
    sku = deployable(plan)
    values: dict[str, Any] = {
        "$schema": f"{SCHEMAS}/managedOnlineDeployment.schema.json",
        **_common(plan, site, site.online),
        "instance_type": sku.name,
        "instance_count": plan.wanted.instances,
        "scale_settings": {"type": "default"},
        **_serving(plan, REQUEST_S + 2),
        "egress_public_network_access": "enabled",
    }
    notes: Notes = {
        ("instance_type",): _machine(plan),
        (
            "scale_settings",
        ): "The only kind a managed deployment has. Autoscale is an Azure Monitor object of its own: autoscale.json.",
        ("egress_public_network_access",): "Our code calls nobody. Azure itself pulls model and image.",
        (
            "request_settings",
            "request_timeout_ms",
        ): "The most that Azure allows. The default of 5 s is less than one long completion takes.",
        **_notes(plan, REQUEST_S),
    }
    return Spec(values, notes)


def kubernetes_deployment(plan: Plan, site: Site) -> Spec:
    """A deployment on a cluster of one's own.

    Raises:
        SetupError: the model can't be deployed so.
    """
    deployable(plan)
    values: dict[str, Any] = {
        "$schema": f"{SCHEMAS}/kubernetesOnlineDeployment.schema.json",
        "type": "kubernetes",
        **_common(plan, site, site.kubernetes),
        "instance_count": plan.wanted.instances,
        "scale_settings": {"type": "default"},
        "resources": _resources(plan),
        **_serving(plan, KUBERNETES_REQUEST_S + 2),
    }
    notes: Notes = {
        ("resources",): f"{_machine(plan)} Memory for the weights' way to the GPU.",
        (
            "request_settings",
            "request_timeout_ms",
        ): "Azure's extension has been seen to refuse more, though 300 s are allowed. "
        "The default of 5 s is less than one long completion takes.",
        **_notes(plan, KUBERNETES_REQUEST_S),
    }
    return Spec(values, notes)


def local(site: Site, image: Spec) -> Spec:
    """A deployment for `az ml online-deployment create --local`: the embedded model in our image, on one's own machine.

    Args:
        site: names.
        image: of the online deployments.
    """
    build = {**image.values["build"], "path": "../../environments/online"}
    values: dict[str, Any] = {
        "$schema": f"{SCHEMAS}/managedOnlineDeployment.schema.json",
        "name": "local",
        "endpoint_name": site.online,
        "model": {"type": "custom_model", "path": "../../build/local/model"},
        "code_configuration": {"code": "../../score", "scoring_script": "score.py"},
        "environment": {"build": build, "inference_config": image.values["inference_config"]},
        "instance_type": "Standard_NC4as_T4_v3",
        "instance_count": 1,
        "environment_variables": {
            "LLAMA_ENGINE": "batching",
            "WORKER_COUNT": "1",
            "WORKER_PRELOAD": "false",
            "APP_INSIGHTS_LOG_RESPONSE_ENABLED": "false",
        },
    }
    return Spec(
        values,
        {
            (): "For --local alone: it names files of this machine, which must be there. docs/azure-ml.md says how.",
            (
                "model",
            ): "llama-endpoints package --checkpoint nano --output build/local/model (the folder above it is mounted: nothing "
            "else may lie there).",
            ("instance_type",): "Asked for, and of no consequence here.",
        },
    )


def autoscale(site: Site) -> Mapping[str, Any]:
    """An ARM template with Azure Monitor's object: one more instance where the GPUs are busy, one less where they idle.

    A managed deployment has no scaling of its own.
    """
    deployment_id = (
        "[resourceId('Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments', parameters('workspace'), "
        "parameters('endpoint'), parameters('deployment'))]"
    )
    capacity = {"minimum": "[string(parameters('minimum'))]", "maximum": "[string(parameters('maximum'))]",
                "default": "[string(parameters('minimum'))]"}  # fmt: skip

    def rule(operator: str, threshold: int, direction: str) -> dict[str, Any]:
        return {
            "metricTrigger": {
                "metricName": "GpuUtilizationPercentage",
                "metricResourceUri": deployment_id,
                "timeGrain": "PT1M",
                "statistic": "Average",
                "timeWindow": "PT10M",
                "timeAggregation": "Average",
                "operator": operator,
                "threshold": threshold,
            },
            # A new GPU instance takes 12 to 18 minutes to answer: sooner it would be decided twice.
            "scaleAction": {"direction": direction, "type": "ChangeCount", "value": "1", "cooldown": "PT20M"},
        }

    parameter = {"type": "string"}
    return {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "parameters": {
            "workspace": parameter,
            "endpoint": {**parameter, "defaultValue": site.online},
            "deployment": parameter,
            "minimum": {"type": "int", "defaultValue": 1},
            "maximum": {"type": "int", "defaultValue": 3},
        },
        "resources": [{
            "type": "Microsoft.Insights/autoscaleSettings",
            "apiVersion": "2022-10-01",
            "name": "[concat(parameters('endpoint'), '-', parameters('deployment'))]",
            "location": "[resourceGroup().location]",
            "properties": {
                "name": "[concat(parameters('endpoint'), '-', parameters('deployment'))]",
                "enabled": True,
                "targetResourceUri": deployment_id,
                "profiles": [{
                    "name": "by the GPUs' work",
                    "capacity": capacity,
                    "rules": [rule("GreaterThan", 80, "Increase"), rule("LessThan", 20, "Decrease")],
                }],
            },
        }],
    }  # fmt: skip


def _identity(site: Site) -> dict[str, Any]:
    if site.identity is None:
        return {}
    return {"identity": {"type": "user_assigned", "user_assigned_identities": [{"resource_id": site.identity}]}}


def _common(plan: Plan, site: Site, endpoint_name: str) -> dict[str, Any]:
    return {
        "name": slug(plan.wanted.variant),
        "endpoint_name": endpoint_name,
        "model": model_of(plan.wanted.variant, site),
        "code_configuration": {"code": "../../score", "scoring_script": "score.py"},
        "environment": ONLINE,
    }


def _serving(plan: Plan, request_s: int) -> dict[str, Any]:
    places, patience = admitted(plan), patience_s(plan)
    start_s = patience + _PROBE["period"] * _PROBE["failure_threshold"]
    return {
        "request_settings": {
            "request_timeout_ms": request_s * 1000,
            "max_concurrent_requests_per_instance": places // 2,
        },
        "environment_variables": {
            **engine_of(plan),
            "LLAMA_MAX_NUM_SEQS": "1",
            "LLAMA_QUEUE": str(places - 1),
            "LLAMA_DEADLINE_S": str(request_s - 2),
            "LLAMA_LOG_PROMPTS": "false",
            "WORKER_COUNT": "1",
            "WORKER_PRELOAD": "false",
            "WORKER_TIMEOUT": str(start_s),
            "GUNICORN_CMD_ARGS": f"--threads {places + SPARE_THREADS} --graceful-timeout {request_s}",
            "APP_INSIGHTS_LOG_RESPONSE_ENABLED": "false",
        },
        "app_insights_enabled": False,
        "liveness_probe": {**_PROBE, "initial_delay": patience},
        "readiness_probe": {
            **_PROBE,
            "initial_delay": _EARLY_S,
            "failure_threshold": (start_s - _EARLY_S) // _PROBE["period"],
        },
    }


def _resources(plan: Plan) -> dict[str, Any]:
    assert plan.chosen is not None  # noqa: S101  (`deployable` has looked)
    gpus = str(plan.chosen.placement.gpus)
    memory = f"{16 + math.ceil(plan.copy_bytes / _GIB)}Gi"
    return {"requests": {"cpu": "4", "memory": memory, "nvidia.com/gpu": gpus},
            "limits": {"cpu": "8", "memory": memory, "nvidia.com/gpu": gpus}}  # fmt: skip


def _machine(plan: Plan) -> str:
    assert plan.chosen is not None  # noqa: S101
    placed, memory = plan.chosen.placement, plan.chosen.memory
    return (f"{placed.gpus} x {placed.sku.gpu.name}: the weights take {memory.weights / 1024:.1f} GiB in {placed.precision}, all "
            f"together {memory.total / 1024:.1f}; `llama-endpoints plan` shows the arithmetic.")  # fmt: skip


def _notes(plan: Plan, deadline_s: int) -> Notes:
    places = admitted(plan)
    variables = ("environment_variables",)
    return {
        ("request_settings", "max_concurrent_requests_per_instance"): f"The front answers 429 above twice this: {places} = 1 in work + "
        f"{places - 1} that wait (LLAMA_MAX_NUM_SEQS + LLAMA_QUEUE).",
        (*variables, "LLAMA_MAX_NUM_SEQS"): f"One request at a time on the GPU; more than {places - 1} that wait would not end in "
        "time.",
        (*variables, "LLAMA_DEADLINE_S"): f"{deadline_s} s: 2 s before the front gives up, so that the answer is ours.",
        (*variables, "WORKER_COUNT"): "Every worker would load the weights again.",
        (*variables, "WORKER_PRELOAD"): "A forked process can't use the CUDA context of its parent.",
        (*variables, "WORKER_TIMEOUT"): "gunicorn kills a worker whose init() takes longer. The same time as the liveness probe allows.",
        (*variables, "GUNICORN_CMD_ARGS"): f"Threads: {places} requests + {SPARE_THREADS}, so that a probe always finds a free one. A "
        "drain lasts as long as a request may.",
        (*variables, "APP_INSIGHTS_LOG_RESPONSE_ENABLED"): "It is on by default, and then completions go to the log.",
        ("app_insights_enabled",): "Both would keep what callers send. data_collector is off where it is not given.",
        ("liveness_probe",): f"`/` answers once init() has returned. {plan.copy_bytes / 1e9:.1f} GB take {plan.start_s[1]:.0f} s on a "
        "slow day (25 MB/s), and a probe that gives up sooner restarts the container for ever.",
        ("readiness_probe",): "Asks from early on, so that a fast start takes traffic at once, and goes on for as "
        "long.",
    }  # fmt: skip
