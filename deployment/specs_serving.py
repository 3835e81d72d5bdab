"""What managed deployments and those on Kubernetes are told alike: code, queue, threads, times, probes.

What has to agree is computed from the plan once: requests that are let in with threads and time, probes with bytes.
"""

import math
from typing import Any, Final

from deployment.limits import ANSWER_S, ANSWER_TOKENS, DISK_BYTES_S, SPARE_THREADS, VLLM_START_S, Front
from deployment.planner import MOST_AT_A_TIME, Plan
from deployment.sizing import Runner
from deployment.specs import ONLINE, VLLM, Site, chosen, engine_of, has_vllm, slug

MOST_WAITING: Final = {Runner.PIPELINE: 15, Runner.VLLM: 4 * MOST_AT_A_TIME}
"""Requests, at most: each holds a thread. Ours; vLLM's as `LLAMA_QUEUE` has it."""
_EARLY_S: Final = 30
_PROBE: Final = {
    "initial_delay": 10,
    "period": 10,
    "timeout": 2,
    "success_threshold": 1,
    "failure_threshold": 30,
}
Notes = dict[tuple[str, ...], str]


def answer_s(plan: Plan) -> float:
    """Seconds that an answer of the usual length takes of the GPUs."""
    return ANSWER_TOKENS / chosen(plan).speed.all


def running(plan: Plan) -> int:
    """Requests that are computed at a time."""
    return plan.wanted.workload.concurrency


def admitted(plan: Plan, front: Front) -> int:
    """Requests that are let in at a time: those that run, and those that wait and have a chance to end within the time limit."""
    in_time, most = math.floor(front.deadline_s / answer_s(plan)), MOST_WAITING[chosen(plan).placement.runner]
    return max(running(plan), min(running(plan) + most, in_time))


def reading_s(plan: Plan) -> int:
    """Seconds until the weights are on the GPUs, from a slow disk."""
    return math.ceil(plan.copy_bytes / DISK_BYTES_S)


def loading_s(plan: Plan) -> int:
    """Seconds until the container answers."""
    return reading_s(plan) + (VLLM_START_S if has_vllm(plan) else 0)


def machine(plan: Plan) -> str:
    """A sentence about what runs on it."""
    placed, memory = chosen(plan).placement, chosen(plan).memory
    return (f"{placed.gpus} x {placed.sku.gpu.name}: the weights take {memory.weights / 1024:.1f} GiB in {placed.precision}, all "
            f"together {memory.total / 1024:.1f}; `llama-endpoints plan` shows the arithmetic.")  # fmt: skip


def identity(site: Site) -> dict[str, Any]:
    """Of an endpoint; Azure makes one where none is given."""
    if site.identity is None:
        return {}
    return {"identity": {"type": "user_assigned", "user_assigned_identities": [{"resource_id": site.identity}]}}


def code(plan: Plan, site: Site, endpoint_name: str, folder: str, model: str) -> dict[str, Any]:
    """What runs behind which endpoint.

    Args:
        plan: of the deployment.
        site: names.
        endpoint_name: that it stands behind.
        folder: that its file is in.
        model: as Azure names it.
    """
    return {
        "name": slug(plan.wanted.variant),
        "endpoint_name": endpoint_name,
        "model": model,
        "code_configuration": {"code": site.path("score", folder), "scoring_script": "score.py"},
        "environment": VLLM if has_vllm(plan) else ONLINE,
    }


def serving(plan: Plan, front: Front) -> dict[str, Any]:
    """Queue, threads, times and probes."""
    places, patience = admitted(plan, front), _patience_s(plan)
    start_s = patience + _PROBE["period"] * _PROBE["failure_threshold"]
    return {
        "request_settings": {
            "request_timeout_ms": front.request_s * 1000,
            "max_concurrent_requests_per_instance": math.ceil(places / front.passes),
        },
        "environment_variables": {
            **engine_of(plan),
            "LLAMA_MAX_NUM_SEQS": str(running(plan)),
            "LLAMA_QUEUE": str(places - running(plan)),
            "LLAMA_DEADLINE_S": str(front.deadline_s),
            "LLAMA_LOG_PROMPTS": "false",
            "WORKER_COUNT": "1",
            "WORKER_PRELOAD": "false",
            "WORKER_TIMEOUT": str(start_s),
            "GUNICORN_CMD_ARGS": f"--threads {places + SPARE_THREADS} --graceful-timeout {front.request_s}",
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


def notes(plan: Plan, front: Front) -> Notes:
    """Sentences to that."""
    variables = ("environment_variables",)
    return {
        **(_of_vllm(plan, front) if has_vllm(plan) else _of_pipeline(plan, front)),
        (*variables, "LLAMA_DEADLINE_S"): f"{ANSWER_S} s before the front gives up, so that the answer is ours.",
        (*variables, "WORKER_TIMEOUT"): "gunicorn kills a worker whose init() takes longer. The same time as the liveness probe allows.",
        (*variables, "GUNICORN_CMD_ARGS"): f"Threads: LLAMA_MAX_NUM_SEQS + LLAMA_QUEUE + {SPARE_THREADS}, so that a probe "
        "always finds a free one. A drain lasts as long as a request may.",
        (*variables, "APP_INSIGHTS_LOG_RESPONSE_ENABLED"): "It is on by default, and then completions go to the log.",
        ("app_insights_enabled",): "Both would keep what callers send. data_collector is off where it is not given.",
        ("liveness_probe",): f"`/` answers once {_read(plan)}. (The copy to that disk comes before the container starts.) A probe that "
        "gives up sooner restarts the container for ever.",
        ("readiness_probe",): "Asks from early on, so that a fast start takes traffic at once, and goes on for as "
        "long.",
    }  # fmt: skip


def _of_pipeline(plan: Plan, front: Front) -> Notes:
    variables = ("environment_variables",)
    return {
        (*variables, "LLAMA_MAX_NUM_SEQS"): f"One request at a time on the GPU; {_waiting(plan, front)}.",
        (*variables, "WORKER_COUNT"): "Every worker would load the weights again.",
        (*variables, "WORKER_PRELOAD"): "A forked process can't use the CUDA context of its parent.",
    }


def _of_vllm(plan: Plan, front: Front) -> Notes:
    variables, context = ("environment_variables",), plan.wanted.workload.context
    return {
        ("environment",): "It starts vLLM beside the scoring script, and needs a driver from 580 on.",
        (*variables, "LLAMA_UPSTREAM_GPUS"): "They share each layer (tensor parallel), so that all work at once.",
        (*variables, "LLAMA_MAX_NUM_SEQS"): f"As many as have room for {context:,} tokens each beside the weights, {MOST_AT_A_TIME} at "
        f"most; {_waiting(plan, front)}.",
        (*variables, "WORKER_COUNT"): "There is one server to ask: a second worker would have a queue of its own.",
        (*variables, "WORKER_PRELOAD"): "A forked process has not the thread that asks vLLM.",
    }  # fmt: skip


def _read(plan: Plan) -> str:
    """What the probes have to sit out."""
    placed = chosen(plan).placement
    to = "the GPU" if placed.gpus == 1 else f"{placed.gpus} GPUs"
    read = f"{plan.copy_bytes / 1e9:.1f} GB from the node's disk to {to}, {reading_s(plan)} s at {DISK_BYTES_S / 1e6:.0f} MB/s"
    if not has_vllm(plan):
        return f"init() has returned: {read}"
    return f"vLLM is healthy and init() has returned: {read}, and about {VLLM_START_S} s in which vLLM compiles and captures"


def _patience_s(plan: Plan) -> int:
    """Until a probe may give up: a tenth more than loading takes, in whole minutes."""
    return 60 * math.ceil(1.1 * loading_s(plan) / 60)


def _waiting(plan: Plan, front: Front) -> str:
    number = admitted(plan, front) - running(plan)
    if number == 0:
        return f"none that waits for one of {ANSWER_TOKENS} tokens would end in time"
    if number < MOST_WAITING[chosen(plan).placement.runner]:
        return f"of answers of {ANSWER_TOKENS} tokens, more than {number} that wait would not end in time"
    return f"{number} that wait for answers of {ANSWER_TOKENS} tokens end in time"
