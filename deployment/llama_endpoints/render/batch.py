"""The batch endpoint, its deployments and the clusters that they run on."""

from collections.abc import Mapping
from typing import Any, Final

from llama_endpoints.azure.limits import schema
from llama_endpoints.planning.planner import DeployablePlan
from llama_endpoints.planning.skus import Sku
from llama_endpoints.render.serving import sequences_note
from llama_endpoints.render.spec import BATCH, Site, Spec, compute_name, engine_of, has_vllm, model_of, slug

DAY_S: Final = 86_400
FOLDER: Final = "yaml/batch"


def endpoint(site: Site) -> Spec:
    """The batch endpoint."""
    return Spec(
        {
            "$schema": schema("batchEndpoint"),
            "name": site.batch,
            "description": "Code Llama over files of rows.",
            "auth_mode": "aad_token",
        },
        {
            ("name",): "Unique in its region: give another one with `--name` where this is taken.",
            ("auth_mode",): "The only one that batch endpoints have.",
            (): "No default deployment here: it has to exist first (`az ml batch-deployment create --set-default`).",
        },
    )


def compute(sku: Sku, instances: int) -> Spec:
    """A cluster of such machines, as many as a job asks for."""
    return Spec(
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
            ("min_instances",): "Nothing is paid for between jobs.",
            (
                "idle_time_before_scale_down",
            ): "Long enough that the next job of a series finds the node up, and the image pulled.",
        },
    )


def deployment(plan: DeployablePlan, site: Site) -> Spec:
    """A batch deployment of type `model`."""
    placed = plan.chosen.placement
    sequences = {"LLAMA_MAX_NUM_SEQS": str(plan.wanted.workload.concurrency)} if has_vllm(plan) else {}
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
        "name": slug(plan.wanted.variant),
        "endpoint_name": site.batch,
        "type": "model",
        "model": model_of(plan.wanted.variant, site),
        "code_configuration": {"code": site.path("score", FOLDER), "scoring_script": "batch_driver.py"},
        "environment": BATCH[placed.runner],
        "compute": f"azureml:{compute_name(placed.sku)}",
        "resources": {"instance_count": plan.wanted.instances},
        "settings": settings,
    }
    return Spec(values, {**_NOTES, **_of_engine(plan)})


def _of_engine(plan: DeployablePlan) -> Mapping[tuple[str, ...], str]:
    """What is said of what computes."""
    variables, placed = ("settings", "environment_variables"), plan.chosen.placement
    if has_vllm(plan):
        return {
            ("environment",): "Its vLLM needs a driver from 580 on.",
            (*variables, "LLAMA_MAX_NUM_SEQS"): sequences_note(plan),
        }
    if placed.gpus == 1:
        return {}
    said = f"One sequence after the other, and one of the {placed.gpus} GPUs at a time."
    return {(*variables, "LLAMA_ENGINE"): said}


_NOTES: Final = {
    ("code_configuration",): "Azure's own driver for MLflow models reads CSV and parquet only.",
    ("settings", "mini_batch_size"): "Files, not rows.",
    (
        "settings",
        "max_concurrency_per_instance",
    ): "A second process would load the weights a second time on the same GPU.",
    ("settings", "output_action"): "One JSON record a row, all in one file.",
    (
        "settings",
        "retry_settings",
        "timeout",
    ): "Seconds for one whole file; what is done by then is kept, and the next try goes on from "
    "there. The default is 30.",
    (
        "settings",
        "error_threshold",
    ): "A file that fails fails the job. The default of -1 ignores every failure. A bad row fails no "
    "file: its record says what was wrong.",
}
