"""Suggest options with which a model fits: one change each, and the resulting machine."""

from collections.abc import Iterator
from dataclasses import replace

from llama_endpoints.planning.planner import LEAST_CONTEXT, PlanRequest, plan
from llama_endpoints.planning.sizing import (
    SIXTEEN_BITS,
    USUAL_OPTIONS,
    KvDtype,
    Precision,
    Runner,
    is_for_pipeline,
)
from llama_endpoints.planning.skus import Cloud, Sku


def advice(wanted: PlanRequest) -> list[tuple[str, Sku]]:
    """Return options of `llama-endpoints plan` that would make it fit, each alone, with the machine."""
    return [(option, found.chosen.sku) for option, one in _changes(wanted) if (found := plan(one)).chosen]


def _changes(wanted: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    for precision in Precision:
        runs = wanted.runner is not Runner.PIPELINE or precision in SIXTEEN_BITS
        if precision is not wanted.precision and runs:
            yield f"--dtype {precision}", replace(wanted, precision=precision)
    if wanted.options.kv_dtype is not KvDtype.AUTO:
        yield "--kv-dtype auto", replace(wanted, options=replace(wanted.options, kv_dtype=KvDtype.AUTO))
    elif wanted.runner is not Runner.PIPELINE:
        yield "--kv-dtype fp8", replace(wanted, options=replace(wanted.options, kv_dtype=KvDtype.FP8))
    if wanted.runner is Runner.VLLM and is_for_pipeline(wanted.workload, wanted.precision):
        yield "--engine pipeline", replace(wanted, runner=Runner.PIPELINE, options=USUAL_OPTIONS)
    if wanted.workload.concurrency > 1:
        yield "--concurrency 1", replace(wanted, workload=replace(wanted.workload, concurrency=1))
    context = _context(wanted)
    if context is not None:
        yield f"--context {context}", replace(wanted, workload=replace(wanted.workload, context=context))
    if wanted.cloud is not Cloud.AZURE:
        yield "--cloud azure", replace(wanted, cloud=Cloud.AZURE, sku=None)


def _context(wanted: PlanRequest) -> int | None:
    """Return the longest context that fits, among a half, a quarter and so on."""
    context = wanted.workload.context // 2
    while context >= LEAST_CONTEXT:
        if plan(replace(wanted, workload=replace(wanted.workload, context=context))).chosen:
            return context
        context //= 2
    return None
