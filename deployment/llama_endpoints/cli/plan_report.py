"""A plan as text of 80 columns, with the terms of every sum."""

import textwrap
from collections.abc import Iterator
from typing import Final

from llama_endpoints.azure.limits import START_MIN
from llama_endpoints.cli.tables import table
from llama_endpoints.planning.advice import advice
from llama_endpoints.planning.planner import Plan, PlanRequest
from llama_endpoints.planning.sizing import (
    CONTEXT_MIB,
    GRAPHS_MIB,
    USABLE,
    Fit,
    Precision,
    Workload,
    full_length,
)
from llama_endpoints.planning.skus import Cloud, Sku

_GB: Final = 10**9
_WIDTH: Final = 80
_LEFT: Final = ("MACHINE", "NOTES", "")


def of(plan: Plan) -> str:
    """Return the whole report."""
    return "\n".join((
        _title(plan.request),
        "",
        *(_chosen(plan, plan.chosen) if plan.chosen else _none(plan)),
        *_others(plan),
        *_misfits(plan),
    ))  # fmt: skip


def _title(request: PlanRequest) -> str:
    sequences, work = _count(request.workload.concurrency, "sequence"), request.workload
    usually = f" (usually {work.length:,})" if work.length < work.context else ""
    return f"{request.variant.name} in {request.precision}: {sequences} of {work.context:,} tokens{usually}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _short(sku: Sku) -> str:
    return sku.name.removeprefix("Standard_")


def _none(plan: Plan) -> Iterator[str]:
    request = plan.request
    yield f"No {request.cloud} machine offered for {request.offer} holds it."
    if any(one.fits for one in plan.alternatives):
        yield "The first machine below would hold it: pass it as --sku if you can get it."
        return
    yield "One of these options would make it fit:"
    yield from (f"  {option:<16}  {_short(sku)}" for option, sku in advice(request))


def _chosen(plan: Plan, one: Fit) -> Iterator[str]:
    yield from _memory(plan, one)
    yield ""
    if one.fits:
        placed = one.placement
        where = f"{placed.gpus} of {_count(one.sku.gpus, 'GPU')}, {one.sku.gpu.name}"
        yield f"{one.sku.name} runs it with {placed.runner} on {where}."
        yield from (f"  {line}" for line in _consequences(plan, one))
    else:
        yield f"{one.sku.name} cannot run it:"
        for reason in one.reasons:
            yield from textwrap.wrap(f"{reason}.", _WIDTH, initial_indent="  ", subsequent_indent="    ")


def _memory(plan: Plan, one: Fit) -> Iterator[str]:
    variant, workload, placed = plan.request.variant, plan.request.workload, one.placement
    kv = placed.kv_bytes_per_token(variant.shape)
    rows = placed.prompt_rows(workload)
    made_of = {
        "weights": f"{variant.shape.parameters:,} in {placed.precision}",
        "kv_cache": f"{_cached(workload)} x {kv:,} bytes",
        "activations": f"{rows:,} prompt tokens in one layer, and the logits",
        "overhead": f"CUDA, {CONTEXT_MIB} on each of {_count(placed.gpus, 'GPU')}",
        "graphs": f"CUDA graphs of vLLM, {GRAPHS_MIB} on each GPU (an assumption)",
        "total": f"of {placed.limit_mib:,.1f}: {USABLE:.0%} of {placed.gpus} x {one.sku.gpu.memory_mib:,}",
    }
    items = [(name, f"{mib:,.1f}", made_of[name]) for name, mib in one.memory.to_dict().items() if mib]
    yield table([("", "MiB", ""), *items], left=_LEFT)


def _cached(work: Workload) -> str:
    if work.concurrency * work.length < work.context:
        return f"{work.context:,} tokens of one sequence"
    return f"{work.length:,} tokens x {_count(work.concurrency, 'sequence')}"


def _consequences(plan: Plan, one: Fit) -> Iterator[str]:
    speed, (usual, slow) = one.speed, plan.start_s
    yield f"about {speed.one:,.0f} tokens/s for one sequence (theoretical limit {speed.limit:,.0f})"
    yield f"  {speed.all:,.0f} for all sequences, {speed.prompt:,.0f} for prompts"
    yield from _longest(plan, one)
    if plan.request_s is not None:
        yield f"up to {plan.longest_answer:,} tokens for each within the request limit of {plan.request_s} s"
    yield f"{plan.copy_bytes / _GB:,.1f} GB to copy to a new instance: usually {usual:,.0f} s, at worst {slow:,.0f} s"
    if one.sku.cloud is Cloud.AZURE:
        yield "  (Azure took {} to {} minutes to start a GPU instance)".format(*START_MIN)
        yield from _quota(plan, one.sku)
    if one.sku.name in plan.prices:
        yield f"{plan.prices[one.sku.name] * plan.request.instances:,.2f} an hour"
    yield from _warnings(plan, one)


def _longest(plan: Plan, one: Fit) -> Iterator[str]:
    """Yield what happens if sequences are longer than usual."""
    work = plan.request.workload
    if work.length < work.context:
        number = full_length(one, plan.request.variant.shape, work)
        yield f"room for {number:,} at {work.context:,} tokens each; beyond, vLLM preempts the youngest"


def _quota(plan: Plan, sku: Sku) -> Iterator[str]:
    request, needed = plan.request.instances, plan.quota_instances
    yield f"quota: {plan.quota_cores:,} cores of {sku.family}, {_count(needed, 'instance')} of {sku.cores}"
    if needed > request:
        yield f"  ({request}, plus 20 % for upgrades, rounded up)"


def _warnings(plan: Plan, one: Fit) -> Iterator[str]:
    request = plan.request
    if one.sku.retired:
        yield f"Warning: the machine is retired ({one.sku.retired.value})."
    if one.sku.cloud is Cloud.AZURE and not one.sku.is_offered(request.offer):
        yield f"Warning: it is unknown whether the machine is offered for {request.offer}." if request.offer not in one.sku.offered else (
            f"Warning: the machine is not offered for {request.offer}.")  # fmt: skip
    if request.precision is Precision.FP8 and not one.sku.gpu.fp8:
        yield f"Warning: {one.sku.gpu.name} has no fp8; vLLM widens the weights."
    if request.workload.context > request.variant.trained_positions.value:
        yield f"Warning: the model was trained on {request.variant.trained_positions.value:,} tokens and extrapolates beyond."


def _others(plan: Plan) -> Iterator[str]:
    fitting = [one for one in plan.alternatives if one.fits]
    if not fitting:
        return
    priced = bool(plan.prices)
    header = ("MACHINE", "GPUS", "MiB", "OF", "TOKENS/S", "CORES", *(("HOURLY",) if priced else ()), "NOTES")
    yield ""
    yield table([header, *(_row(plan, one, priced=priced) for one in fitting)], left=_LEFT)


def _row(plan: Plan, one: Fit, *, priced: bool) -> tuple[str, ...]:
    price = plan.prices.get(one.sku.name)
    return (
        _short(one.sku),
        str(one.placement.gpus),
        f"{one.memory.total:,.0f}",
        f"{one.placement.limit_mib:,.0f}",
        f"{one.speed.all:,.0f}",
        str(one.sku.cores),
        *(("-" if price is None else f"{price:,.2f}",) if priced else ()),
        "; ".join(_notes(plan, one)),
    )


def _notes(plan: Plan, one: Fit) -> Iterator[str]:
    if one.sku.retired:
        yield "retired"
    elif one.sku.cloud is Cloud.AZURE and not one.sku.is_offered(plan.request.offer):
        yield "no offer" if plan.request.offer in one.sku.offered else "unknown"


def _misfits(plan: Plan) -> Iterator[str]:
    lines = [
        (_short(one.sku), "; ".join(shortfall.short for shortfall in one.shortfalls))
        for one in plan.alternatives
        if not one.fits
    ]
    if lines:
        yield ""
        yield table([("MACHINE", "CANNOT RUN IT"), *lines], left=("MACHINE", "CANNOT RUN IT"))
