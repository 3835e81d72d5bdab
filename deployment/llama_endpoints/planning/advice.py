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


def advice(request: PlanRequest) -> list[tuple[str, Sku]]:
    """Return options of `llama-endpoints plan` that would make it fit, each alone, with the machine."""
    return [(option, found.chosen.sku) for option, one in _changes(request) if (found := plan(one)).chosen]


def _changes(request: PlanRequest) -> Iterator[tuple[str, PlanRequest]]:
    for precision in Precision:
        runs = request.runner is not Runner.PIPELINE or precision in SIXTEEN_BITS
        if precision is not request.precision and runs:
            yield f"--dtype {precision}", replace(request, precision=precision)
    if request.options.kv_dtype is not KvDtype.AUTO:
        yield "--kv-dtype auto", replace(request, options=replace(request.options, kv_dtype=KvDtype.AUTO))
    elif request.runner is not Runner.PIPELINE:
        yield "--kv-dtype fp8", replace(request, options=replace(request.options, kv_dtype=KvDtype.FP8))
    if request.runner is Runner.VLLM and is_for_pipeline(request.workload, request.precision):
        yield "--engine pipeline", replace(request, runner=Runner.PIPELINE, options=USUAL_OPTIONS)
    if request.workload.concurrency > 1:
        yield "--concurrency 1", replace(request, workload=replace(request.workload, concurrency=1))
    context = _context(request)
    if context is not None:
        yield f"--context {context}", replace(request, workload=replace(request.workload, context=context))
    if request.cloud is not Cloud.AZURE:
        yield "--cloud azure", replace(request, cloud=Cloud.AZURE, sku=None)


def _context(request: PlanRequest) -> int | None:
    """Return the longest context that fits, among a half, a quarter and so on."""
    context = request.workload.context // 2
    while context >= LEAST_CONTEXT:
        if plan(replace(request, workload=replace(request.workload, context=context))).chosen:
            return context
        context //= 2
    return None
