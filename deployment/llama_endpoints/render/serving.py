"""Settings shared by managed and Kubernetes deployments: code, queue, threads, timeouts, probes.

Values that must agree are computed from the plan once: admitted requests with threads and timeouts, probes with bytes.
"""

import math
from typing import Any, Final

from llama_endpoints.azure.limits import (
    ANSWER_S,
    ANSWER_TOKENS,
    DISK_BYTES_S,
    SPARE_THREADS,
    VLLM_START_S,
    Front,
)
from llama_endpoints.planning.planner import MOST_AT_A_TIME, DeployablePlan
from llama_endpoints.planning.sizing import Runner, full_length
from llama_endpoints.render.spec import ONLINE, Notes, Site, engine_of, has_vllm, slug

MOST_WAITING: Final = {Runner.PIPELINE: 15, Runner.VLLM: 64}
"""The most waiting requests: each holds a thread. Our limit; vLLM's is the default of `LLAMA_QUEUE`."""
_EARLY_S: Final = 30
_PROBE: Final = {
    "initial_delay": 10,
    "period": 10,
    "timeout": 2,
    "success_threshold": 1,
    "failure_threshold": 30,
}


def answer_s(plan: DeployablePlan) -> float:
    """Return the seconds of GPU time that an answer of the usual length takes."""
    return ANSWER_TOKENS / plan.chosen.speed.all


def running(plan: DeployablePlan) -> int:
    """Return the requests computed at a time."""
    return plan.request.workload.concurrency


def admitted(plan: DeployablePlan, front: Front) -> int:
    """Return the requests admitted at a time: those that run, and those that can still end within the time limit."""
    in_time, most = math.floor(front.deadline_s / answer_s(plan)), MOST_WAITING[plan.chosen.placement.runner]
    return max(running(plan), min(running(plan) + most, in_time))


def reading_s(plan: DeployablePlan) -> int:
    """Return the seconds to read the weights from a slow disk to the GPUs."""
    return math.ceil(plan.copy_bytes / DISK_BYTES_S)


def loading_s(plan: DeployablePlan) -> int:
    """Return the seconds until the container answers."""
    return reading_s(plan) + (VLLM_START_S if has_vllm(plan) else 0)


def machine(plan: DeployablePlan) -> str:
    """Return a sentence about the machine."""
    placed, memory = plan.chosen.placement, plan.chosen.memory
    return (f"{placed.gpus} x {placed.sku.gpu.name}: the weights take {memory.weights / 1024:.1f} GiB in {placed.precision}, in total "
            f"{memory.total / 1024:.1f} GiB are used; `llama-endpoints plan` shows the arithmetic.")  # fmt: skip


def identity(site: Site) -> dict[str, Any]:
    """Return an endpoint's identity; empty lets Azure create one."""
    if site.identity is None:
        return {}
    return {"identity": {"type": "user_assigned", "user_assigned_identities": [{"resource_id": site.identity}]}}


def code(plan: DeployablePlan, site: Site, endpoint_name: str, folder: str, model: str) -> dict[str, Any]:
    """Return the fields that say what runs behind which endpoint.

    Args:
        plan: the deployment's plan.
        site: names.
        endpoint_name: name of its endpoint.
        folder: the folder of its file.
        model: Azure's reference to the model.
    """
    return {
        "name": slug(plan.request.variant),
        "endpoint_name": endpoint_name,
        "model": model,
        "code_configuration": {"code": site.path("score", folder), "scoring_script": "score.py"},
        "environment": ONLINE[plan.chosen.placement.runner],
    }


def serving(plan: DeployablePlan, front: Front) -> dict[str, Any]:
    """Return queue, threads, timeouts and probes of a scoring script behind azmlinfsrv."""
    places = admitted(plan, front)
    start_s = _start_s(plan)
    return {
        "request_settings": _requests(plan, front),
        "environment_variables": {
            **_variables(plan, front),
            "WORKER_COUNT": "1",
            "WORKER_PRELOAD": "false",
            "WORKER_TIMEOUT": str(start_s),
            "GUNICORN_CMD_ARGS": f"--threads {places + SPARE_THREADS} --graceful-timeout {front.request_s}",
            "APP_INSIGHTS_LOG_RESPONSE_ENABLED": "false",
        },
        "app_insights_enabled": False,
        "liveness_probe": {**_PROBE, "initial_delay": _patience_s(plan)},
        "readiness_probe": _readiness(start_s),
    }


def serving_ourselves(plan: DeployablePlan, front: Front) -> dict[str, Any]:
    """Return the same for our own server, which answers probes at once and needs no thread per request."""
    return {
        "request_settings": _requests(plan, front),
        "environment_variables": _variables(plan, front),
        "app_insights_enabled": False,
        "liveness_probe": _PROBE,
        "readiness_probe": _readiness(_start_s(plan)),
    }


def _requests(plan: DeployablePlan, front: Front) -> dict[str, Any]:
    return {
        "request_timeout_ms": front.request_s * 1000,
        "max_concurrent_requests_per_instance": math.ceil(admitted(plan, front) / front.passes),
    }


def _variables(plan: DeployablePlan, front: Front) -> dict[str, str]:
    return {
        **engine_of(plan),
        **({"LLAMA_VLLM_START_S": str(_start_s(plan))} if has_vllm(plan) else {}),
        "LLAMA_MAX_NUM_SEQS": str(running(plan)),
        "LLAMA_QUEUE": str(admitted(plan, front) - running(plan)),
        "LLAMA_DEADLINE_S": str(front.deadline_s),
        "LLAMA_LOG_PROMPTS": "false",
    }


def _start_s(plan: DeployablePlan) -> int:
    """Return the seconds until the last probe gives up."""
    return _patience_s(plan) + _PROBE["period"] * _PROBE["failure_threshold"]


def _readiness(start_s: int) -> dict[str, int]:
    """Return a readiness probe that starts early and lasts as long as a start may take."""
    tries = (start_s - _EARLY_S) // _PROBE["period"]
    return {**_PROBE, "initial_delay": _EARLY_S, "failure_threshold": tries}


def notes(plan: DeployablePlan, front: Front) -> Notes:
    """Return the notes to these fields."""
    variables = "environment_variables"
    return {
        **(_of_vllm(plan, front) if has_vllm(plan) else _of_pipeline(plan, front)),
        f"{variables}.LLAMA_DEADLINE_S": f"{ANSWER_S} s before Azure's front end gives up, so that the error is ours.",
        f"{variables}.WORKER_TIMEOUT": "gunicorn kills a worker whose init() takes longer. As long as the liveness probe allows.",
        f"{variables}.GUNICORN_CMD_ARGS": f"Threads: LLAMA_MAX_NUM_SEQS + LLAMA_QUEUE + {SPARE_THREADS}, so that a probe "
        "always finds a free one. A drain may take as long as a request.",
        f"{variables}.APP_INSIGHTS_LOG_RESPONSE_ENABLED": "Keeps completions out of Application Insights even if it is enabled.",
        "app_insights_enabled": "Both would store requests. data_collector is off by default.",
        "liveness_probe": f"`/` answers once {_read(plan)}. (The copy to that disk precedes the container's start.) A probe that "
        "gives up sooner restarts the container forever.",
        "readiness_probe": "Asks from early on, so that a fast start takes traffic at once, and goes on for as "
        "long.",
    }  # fmt: skip


def _of_pipeline(plan: DeployablePlan, front: Front) -> Notes:
    variables = "environment_variables"
    return {
        f"{variables}.LLAMA_MAX_NUM_SEQS": f"One request at a time on the GPU; {_waiting(plan, front)}.",
        f"{variables}.WORKER_COUNT": "Every worker would load the weights again.",
        f"{variables}.WORKER_PRELOAD": "A forked process cannot use its parent's CUDA context.",
    }


def _of_vllm(plan: DeployablePlan, front: Front) -> Notes:
    variables = "environment_variables"
    return {
        **_vllm_notes(plan, front),
        f"{variables}.WORKER_COUNT": "Every worker would start its own vLLM.",
        f"{variables}.WORKER_PRELOAD": "A forked process does not have the thread that talks to vLLM.",
    }


def _vllm_notes(plan: DeployablePlan, front: Front) -> Notes:
    variables, placed = "environment_variables", plan.chosen.placement
    shared = (
        "They share each layer (tensor parallelism)."
        if placed.gpus > 1
        else "Number of GPUs that share each layer."
    )
    return {
        "environment": "Its vLLM needs driver 580 or newer.",
        f"{variables}.LLAMA_VLLM_TENSOR_PARALLEL": shared,
        f"{variables}.LLAMA_VLLM_GPU_SHARE": "Share of each GPU's memory, as in the plan.",
        f"{variables}.LLAMA_VLLM_START_S": "As long as the probes wait.",
        f"{variables}.LLAMA_MAX_NUM_SEQS": f"{sequences_note(plan)} {_waiting(plan, front).capitalize()}.",
    }


def sequences_note(plan: DeployablePlan) -> str:
    """Return how the number of sequences was determined."""
    work = plan.request.workload
    longest = full_length(plan.chosen, plan.request.variant.shape, work)
    if work.length == work.context:
        return (
            f"As many sequences of {work.context:,} tokens as fit beside the weights, at most {MOST_AT_A_TIME}."
        )
    return (
        f"As many sequences of {work.length:,} tokens as fit beside the weights, at most {MOST_AT_A_TIME}. Of {work.context:,} tokens "
        f"{longest} fit; if more grow so long, vLLM preempts the youngest."
    )


def server_notes(plan: DeployablePlan, front: Front) -> Notes:
    """Return the notes to a deployment behind our own server."""
    variables = "environment_variables"
    return {
        **_vllm_notes(plan, front),
        "model": "No code_configuration: the container runs the code inside the packaged model.",
        f"{variables}.LLAMA_DEADLINE_S": f"{ANSWER_S} s before Azure's front end gives up, so that the error is ours.",
        "app_insights_enabled": "It would store requests. data_collector is off by default.",
        "liveness_probe": "/health/live answers at once.",
        "readiness_probe": f"/health/ready answers once {_read(plan)}. (The copy to that disk precedes the container's start.)",
    }  # fmt: skip


def _read(plan: DeployablePlan) -> str:
    """Return what the probes wait for."""
    placed = plan.chosen.placement
    to = "the GPU" if placed.gpus == 1 else f"{placed.gpus} GPUs"
    read = f"{plan.copy_bytes / 1e9:.1f} GB from the node's disk to {to}, {reading_s(plan)} s at {DISK_BYTES_S / 1e6:.0f} MB/s"
    if not has_vllm(plan):
        return f"init() has returned: {read}"
    return f"vLLM is healthy and init() has returned: {read}, and about {VLLM_START_S} s in which vLLM compiles and captures"


def _patience_s(plan: DeployablePlan) -> int:
    """Return the seconds after which a probe may give up: loading plus a tenth, in whole minutes."""
    return 60 * math.ceil(1.1 * loading_s(plan) / 60)


def _waiting(plan: DeployablePlan, front: Front) -> str:
    number = admitted(plan, front) - running(plan)
    if number == 0:
        return f"no request that waits for an answer of {ANSWER_TOKENS} tokens would end in time"
    if number < MOST_WAITING[plan.chosen.placement.runner]:
        return f"with answers of {ANSWER_TOKENS} tokens, at most {number} waiting requests end in time"
    return f"{number} requests waiting for answers of {ANSWER_TOKENS} tokens end in time"
