"""The batch endpoint, its deployments and their clusters."""

from typing import Any, Final

from llama_endpoints.azure.limits import schema
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.planning.skus import Sku
from llama_endpoints.render.serving import sequences_note
from llama_endpoints.render.spec import (
    BATCH,
    Notes,
    RenderedFile,
    Site,
    compute_name,
    engine_of,
    has_vllm,
    model_of,
    slug,
)

DAY_S: Final = 86_400
FOLDER: Final = "yaml/batch"


def endpoint(site: Site) -> RenderedFile:
    """Return the batch endpoint."""
    return RenderedFile(
        {
            "$schema": schema("batchEndpoint"),
            "name": site.batch,
            "description": "Code Llama over files of rows.",
            "auth_mode": "aad_token",
        },
        {
            "name": "Unique in the region. If it is taken, pass another one as `--name`.",
            "auth_mode": "Batch endpoints have no other.",
            "": "No default deployment yet: it must exist first (`az ml batch-deployment create --set-default`).",
        },
    )


def compute(sku: Sku, instances: int) -> RenderedFile:
    """Return a cluster of such machines, with as many as a job requests."""
    return RenderedFile(
        {
            "$schema": schema("amlCompute"),
            "name": compute_name(sku),
            "type": "amlcompute",
            "size": sku.name,
            "tier": "dedicated",
            "min_instances": 0,
            "max_instances": instances,
            "idle_time_before_scale_down": 900,
            "ssh_public_access_enabled": False,
        },
        {
            "min_instances": "No machine is billed between jobs.",
            "idle_time_before_scale_down": "Keeps the node and its image for the next job of a series.",
        },
    )


def deployment(plan: DeployablePlan, site: Site) -> RenderedFile:
    """Return a batch deployment of type `model`."""
    placed = plan.chosen.placement
    sequences = {"LLAMA_MAX_NUM_SEQS": str(plan.request.workload.concurrency)} if has_vllm(plan) else {}
    settings: dict[str, Any] = {
        "mini_batch_size": 1,
        "max_concurrency_per_instance": 1,
        "output_action": "append_row",
        "output_file_name": "predictions.jsonl",
        "retry_settings": {"timeout": DAY_S, "max_retries": 2},
        "error_threshold": 0,
        "logging_level": "info",
        "environment_variables": {**engine_of(plan), **sequences},
    }
    values: dict[str, Any] = {
        "$schema": schema("modelBatchDeployment"),
        "name": slug(plan.request.variant),
        "endpoint_name": site.batch,
        "type": "model",
        "model": model_of(plan.request.variant, site),
        "code_configuration": {"code": site.path("score", FOLDER), "scoring_script": "batch_driver.py"},
        "environment": BATCH[placed.runner],
        "compute": f"azureml:{compute_name(placed.sku)}",
        "resources": {"instance_count": plan.request.instances},
        "settings": settings,
    }
    return RenderedFile(values, {**_NOTES, **_of_engine(plan)})


def _of_engine(plan: DeployablePlan) -> Notes:
    """Return the notes about the engine."""
    variables, placed = "settings.environment_variables", plan.chosen.placement
    if has_vllm(plan):
        return {
            "environment": "Its vLLM needs driver 580 or newer.",
            f"{variables}.LLAMA_MAX_NUM_SEQS": sequences_note(plan),
        }
    if placed.gpus == 1:
        return {}
    said = f"One sequence, and one of the {placed.gpus} GPUs, at a time."
    return {f"{variables}.LLAMA_ENGINE": said}


_NOTES: Final = {
    "code_configuration": "Azure's own driver for MLflow models reads only CSV and parquet.",
    "settings.mini_batch_size": "Counts files, not rows.",
    "settings.max_concurrency_per_instance": "A second process would load the weights again on the same GPU.",
    "settings.output_action": "One JSON record per row, all in one file.",
    "settings.retry_settings.timeout": "Seconds for a whole file; the default is 30. After a timeout, finished rows are kept, "
    "and the next try resumes there.",
    "settings.error_threshold": "A failed file fails the job; the default of -1 ignores all failures. A bad row does not fail "
    "its file: its record holds the error.",
}
