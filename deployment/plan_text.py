"""A plan as a person reads it: every number with what it was made of."""

from collections.abc import Iterator, Sequence
from typing import Final

from deployment.planner import REQUEST_S, RESERVE, Plan, Wanted
from deployment.sizing import CONTEXT_MIB, USABLE, Fit
from deployment.skus import Cloud, Offer
from deployment.tables import table

_GB: Final = 10**9
_LEFT: Final = ("MACHINE", "ENGINE", "NOTES", "")


def of(plan: Plan) -> str:
    """All of it, in lines."""
    wanted = plan.wanted
    return "\n".join((
        _title(wanted),
        "",
        *(_chosen(plan, plan.chosen) if plan.chosen else _none(plan)),
        "",
        *_others(plan),
    ))  # fmt: skip


def _title(wanted: Wanted) -> str:
    workload = wanted.workload
    return (
        f"{wanted.variant.name} in {wanted.precision}, {workload.context:,} tokens of context, "
        f"{_count(workload.concurrency, 'sequence')} at a time"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _none(plan: Plan) -> Iterator[str]:
    wanted = plan.wanted
    yield f"No machine of {wanted.cloud} that is offered for {wanted.offer} holds it."
    if any(one.fits for one in plan.alternatives):
        yield "The first of these would: give it as --sku if you can have it."
    else:
        yield "Ask for less --context or --concurrency, or for another --dtype or --cloud."


def _chosen(plan: Plan, one: Fit) -> Iterator[str]:
    yield from _memory(plan, one)
    yield ""
    yield _verdict(one)
    if one.fits:
        yield from (f"  {line}" for line in _consequences(plan, one))


def _verdict(one: Fit) -> str:
    placed = one.placement
    if not one.fits:
        return f"{one.sku.name} can't run it: {'; '.join(one.reasons)}."
    return f"{one.sku.name} runs it, on {placed.gpus} of {_count(one.sku.gpus, 'GPU')} ({one.sku.gpu.name}), engine {placed.runner}."


def _memory(plan: Plan, one: Fit) -> Iterator[str]:
    variant, workload, placed = plan.wanted.variant, plan.wanted.workload, one.placement
    kv = variant.shape.kv_bytes_per_token()
    made_of = {
        "weights": f"{variant.shape.parameters:,} in {placed.precision}",
        "kv_cache": f"{workload.context:,} tokens x {_count(workload.concurrency, 'sequence')} x {kv:,} bytes",
        "activations": "of a whole prompt in one layer, and the logits",
        "overhead": f"CUDA, {CONTEXT_MIB} on each of {_count(placed.gpus, 'GPU')}",
        "total": f"of {placed.limit_mib:,.1f}: {USABLE:.0%} of {placed.gpus} x {one.sku.gpu.memory_mib:,}",
    }
    rows = [(name, f"{mib:,.1f}", made_of[name]) for name, mib in one.memory.to_dict().items()]
    yield table([("", "MiB", ""), *rows], left=_LEFT)


def _consequences(plan: Plan, one: Fit) -> Iterator[str]:
    wanted, speed, (usual, slow) = plan.wanted, one.speed, plan.start_s
    yield (f"about {speed.one:,.0f} tokens/s for one sequence ({speed.limit:,.0f} if the GPU lost nothing), {speed.all:,.0f} for all, "
           f"{speed.prompt:,.0f} of prompts")  # fmt: skip
    yield f"{plan.copy_bytes / _GB:,.1f} GB to copy before an instance answers: {usual:,.0f} s, on a slow day {slow:,.0f} s"
    yield f"up to {plan.longest_answer:,} tokens for each within the {REQUEST_S} s that a managed endpoint allows"
    if one.sku.cloud is Cloud.AZURE:
        reserve = (
            f", {RESERVE - 1:.0%} more for upgrades"
            if wanted.offer is Offer.MANAGED_ONLINE and one.sku.reserve
            else ""
        )
        yield f"quota: {plan.quota_cores} cores of {one.sku.family} ({_count(wanted.instances, 'instance')} of {one.sku.cores}{reserve})"
    if one.sku.name in plan.prices:
        yield f"{plan.prices[one.sku.name] * wanted.instances:,.2f} an hour"
    yield from _warnings(plan, one)


def _warnings(plan: Plan, one: Fit) -> Iterator[str]:
    wanted = plan.wanted
    if one.sku.retired:
        yield f"Warning: it is retired ({one.sku.retired.value})."
    if one.sku.cloud is Cloud.AZURE and not one.sku.is_offered(wanted.offer):
        yield f"Warning: whether it is offered for {wanted.offer} is not known." if wanted.offer not in one.sku.offered else (
            f"Warning: it is not offered for {wanted.offer}.")  # fmt: skip
    if wanted.workload.context > wanted.variant.trained_positions.value:
        yield f"Warning: it was trained on {wanted.variant.trained_positions.value:,} tokens; beyond that it extrapolates."


def _others(plan: Plan) -> Iterator[str]:
    header = ("MACHINE", "GPUS", "ENGINE", "MiB", "OF", "TOKENS/S", "CORES", "AN HOUR", "NOTES")
    yield table([header, *(_row(plan, one) for one in plan.alternatives)], left=_LEFT)


def _row(plan: Plan, one: Fit) -> Sequence[str]:
    placed, price = one.placement, plan.prices.get(one.sku.name)
    return (
        one.sku.name,
        str(placed.gpus),
        placed.runner,
        f"{one.memory.total:,.0f}",
        f"{placed.limit_mib:,.0f}",
        f"{one.speed.all:,.0f}" if one.fits else "-",
        str(one.sku.cores),
        "-" if price is None else f"{price:,.2f}",
        "; ".join(_notes(plan, one)),
    )


def _notes(plan: Plan, one: Fit) -> Iterator[str]:
    yield from one.reasons
    if one.sku.retired:
        yield f"retired ({one.sku.retired.value})"
    if one.sku.cloud is Cloud.AZURE and not one.sku.is_offered(plan.wanted.offer):
        known = plan.wanted.offer in one.sku.offered
        yield f"not offered for {plan.wanted.offer}" if known else f"not known for {plan.wanted.offer}"
