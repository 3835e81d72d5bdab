"""The managed endpoint and its deployments."""

from typing import Any, Final

from llama_endpoints.azure.limits import MANAGED, REQUEST_MS, schema
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.render import monitoring
from llama_endpoints.render.monitoring import Collection
from llama_endpoints.render.serving import (
    admitted,
    code,
    identity,
    machine,
    notes,
    server_notes,
    serving,
    serving_ourselves,
)
from llama_endpoints.render.spec import SERVER, FrontServer, Notes, RenderedFile, Site, has_vllm, model_of, slug
from llama_serving.errors import SetupError

FOLDER: Final = "yaml/online"


def endpoint(site: Site) -> RenderedFile:
    """Return the managed endpoint."""
    values: dict[str, Any] = {
        "$schema": schema("managedOnlineEndpoint"),
        "name": site.online,
        "description": "Code Llama behind /score.",
        "auth_mode": "key",
        "public_network_access": "enabled" if site.public else "disabled",
        **identity(site),
    }
    open_to_all = (
        "Requests need a key and use the public address. `disabled` needs a private endpoint of the workspace."
    )
    return RenderedFile(
        values,
        {
            "name": "Unique in the region. If it is taken, pass another one as `--name`.",
            "public_network_access": open_to_all
            if site.public
            else "Requests use the workspace's private endpoint.",
            "": "No traffic yet: Azure refuses it before a deployment exists.",
        },
    )


def deployment(plan: DeployablePlan, site: Site, collection: Collection | None = None) -> RenderedFile:
    """Return a deployment behind azmlinfsrv, or behind our own server.

    Args:
        plan: of the model.
        site: names.
        collection: what it collects; None collects nothing.

    Raises:
        SetupError: our own server is requested with another engine than vLLM.
    """
    ours = site.front is FrontServer.SERVER
    if ours and not has_vllm(plan):
        raise SetupError(
            "--front server needs the image with vLLM. Remove --engine pipeline, or --front server."
        )
    model = model_of(plan.request.variant, site)
    what = {
        "name": slug(plan.request.variant),
        "endpoint_name": site.online,
        "model": model,
        "environment": SERVER,
    }
    values: dict[str, Any] = {
        "$schema": schema("managedOnlineDeployment"),
        **(what if ours else code(plan, site, site.online, FOLDER, model)),
        "instance_type": plan.chosen.sku.name,
        "instance_count": plan.request.instances,
        **(serving_ourselves(plan, MANAGED) if ours else serving(plan, MANAGED)),
        **monitoring.fields(collection),
    }
    values["environment_variables"] |= monitoring.variables(collection)
    told = server_notes(plan, MANAGED) if ours else notes(plan, MANAGED)
    return RenderedFile(values, {**_notes(plan), **told, **monitoring.notes(collection)})


def _notes(plan: DeployablePlan) -> Notes:
    places = admitted(plan, MANAGED)
    return {
        "instance_type": machine(plan),
        "instance_count": "Azure Monitor may change it, by autoscale.json.",
        "request_settings.request_timeout_ms": f"The most that Azure allows. The default of {REQUEST_MS // 1000} s is too short "
        "for a long completion.",
        "request_settings.max_concurrent_requests_per_instance": f"LLAMA_MAX_NUM_SEQS + LLAMA_QUEUE = {places}. Azure's "
        f"front end lets {MANAGED.passes} times as many through, and answers {MANAGED.refusal} above.",
    }  # fmt: skip


def local(site: Site, image: RenderedFile) -> RenderedFile:
    """Return a deployment for `az ml online-deployment create --local`: the embedded model in our image, on your own machine.

    Args:
        site: names.
        image: the environment of the online deployments.
    """
    build = {**image.values["build"], "path": site.path("environments/online", FOLDER)}
    values: dict[str, Any] = {
        "$schema": schema("managedOnlineDeployment"),
        "name": "local",
        "endpoint_name": site.online,
        "model": {"type": "custom_model", "path": site.path("build/local/model", FOLDER)},
        "code_configuration": {"code": site.path("score", FOLDER), "scoring_script": "score.py"},
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
    return RenderedFile(
        values,
        {
            "": "For --local only: it refers to files of this machine. See docs/azure-ml.md.",
            "model": "llama-endpoints package --checkpoint nano --output build/local/model (the parent folder is mounted and "
            "must hold nothing else).",
            "instance_type": "Required, but ignored here.",
        },
    )
