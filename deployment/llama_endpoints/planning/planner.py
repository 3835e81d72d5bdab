"""Choose a machine for a model and a workload, and explain why others do not fit."""

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final

from llama_endpoints.azure.limits import ANSWER_TOKENS, KUBERNETES, MANAGED, MOST_INSTANCES
from llama_endpoints.planning.sizing import (
    SIXTEEN_BITS,
    USUAL_OPTIONS,
    Fit,
    Precision,
    Runner,
    VllmSizingOptions,
    Workload,
    fit,
    weight_bytes,
)
from llama_endpoints.planning.skus import SKUS, Cloud, Offer, Sku
from llama_serving.catalog import ModelVariant
from llama_serving.errors import SetupError

COPY_BYTES_S: Final = 200e6
SLOW_COPY_BYTES_S: Final = 25e6
"""Bytes a second from a registry or storage account to a node: usually, and at worst. Assumptions."""
REQUESTS_S: Final[Mapping[Offer, int]] = MappingProxyType(
    {Offer.MANAGED_ONLINE: MANAGED.deadline_s, Offer.KUBERNETES: KUBERNETES.deadline_s}
)
"""The time limit of a request in seconds. Rows of a batch job have none."""
LEAST_CONTEXT: Final = 16
MOST_AT_A_TIME: Final = 256
"""The default number of concurrent sequences, vLLM's own default on most GPUs (vLLM 0.32, engine/arg_utils.py,
get_batch_defaults). Its CUDA graphs are captured up to here; beyond it a step of 7B is compute-bound."""
USUAL_TOKENS: Final = 2048
"""The usual tokens of a finished sequence, prompt and completion. An assumption: a file of code as prompt and a long answer.
vLLM's cache is paged and sized for this many; if more sequences grow longer, vLLM preempts the youngest."""
RESERVE: Final = 1.2
"""Managed endpoints need quota for 20 % more instances, rounded up, to replace running ones during updates
(azure-ai-docs, quota-allocation-online-deployment.md). The families of large GPUs are exempt."""

Prices = Mapping[str, float]
"""Hourly prices by machine name."""


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What to plan for.

    Attributes:
        variant: the model.
        workload: the context and the number of sequences.
        precision: type of the weights.
        offer: the Azure ML offer the machine must support.
        cloud: the cloud to choose from.
        sku: the only machine to consider; None considers all.
        runner: the only engine to consider; None considers all.
        instances: number of machines.
        options: vLLM's options.
    """

    variant: ModelVariant
    workload: Workload
    precision: Precision = Precision.BF16
    offer: Offer = Offer.MANAGED_ONLINE
    cloud: Cloud = Cloud.AZURE
    sku: Sku | None = None
    runner: Runner | None = None
    instances: int = 1
    options: VllmSizingOptions = USUAL_OPTIONS


@dataclass(frozen=True, slots=True)
class Plan:
    """A machine for a request, and the alternatives.

    Attributes:
        request: the request.
        chosen: the smallest machine that holds the model (with prices: the cheapest), or the requested one; None if there is none.
        alternatives: all other machines, those that fit first, ordered by size (with prices: by price).
        prices: hourly prices by machine.
    """

    request: PlanRequest
    chosen: Fit | None
    alternatives: tuple[Fit, ...]
    prices: Prices

    @property
    def fits(self) -> bool:
        """Whether a machine holds the model."""
        return self.chosen is not None and self.chosen.fits

    @property
    def copy_bytes(self) -> int:
        """Bytes that a new instance copies before it answers: the checkpoint, quantized if requested."""
        return round(weight_bytes(self.request.variant.shape, self.request.precision))

    @property
    def start_s(self) -> tuple[float, float]:
        """Seconds to copy it: usually, and at worst."""
        return self.copy_bytes / COPY_BYTES_S, self.copy_bytes / SLOW_COPY_BYTES_S

    @property
    def quota_instances(self) -> int:
        """Instances to request quota for, including those a managed endpoint reserves."""
        request, chosen = self.request, self.chosen
        reserved = request.offer is Offer.MANAGED_ONLINE and chosen is not None and chosen.sku.reserve
        return math.ceil(request.instances * RESERVE) if reserved else request.instances

    @property
    def quota_cores(self) -> int:
        """Cores of quota to request."""
        if self.chosen is None or self.chosen.sku.cloud is not Cloud.AZURE:
            return 0
        return self.chosen.sku.cores * self.quota_instances

    @property
    def request_s(self) -> int | None:
        """The time limit of a request in seconds; None if there is none."""
        return REQUESTS_S.get(self.request.offer) if self.request.cloud is Cloud.AZURE else None

    @property
    def spread(self) -> int:
        """The number of GPUs that hold the model."""
        return self.chosen.placement.gpus if self.chosen else 0

    @property
    def answers_in_time(self) -> bool:
        """Whether an answer of the usual length ends within the time limit, even if all prompts arrive at once."""
        return self.longest_answer >= min(ANSWER_TOKENS, self.request.workload.context)

    @property
    def longest_answer(self) -> int:
        """Tokens that each concurrent sequence gets within the time limit, after all their prompts are read."""
        if self.chosen is None:
            return 0
        workload, speed = self.request.workload, self.chosen.speed
        if self.request_s is None:
            return workload.context
        reading_s = workload.cached_tokens / speed.prompt
        tokens = math.floor((self.request_s - reading_s) * speed.all / workload.concurrency)
        return min(max(0, tokens), workload.context)


@dataclass(frozen=True, slots=True)
class DeployablePlan(Plan):
    """A plan whose machine holds the model and is available.

    Attributes:
        chosen: the machine.
    """

    chosen: Fit


def deployable(plan: Plan) -> DeployablePlan:
    """Return the plan as deployable.

    Raises:
        SetupError: it cannot be deployed; the message says why.
    """
    why = _obstacles(plan)
    if plan.chosen is None or why:
        raise SetupError(
            f"{plan.request.variant.name} cannot be deployed: {'; '.join(why)}. Run `llama-endpoints plan` for alternatives."
        )
    return DeployablePlan(plan.request, plan.chosen, plan.alternatives, plan.prices)


def _obstacles(plan: Plan) -> list[str]:
    """Return why the machine cannot be used. Unknown facts do not count."""
    if plan.chosen is None:
        return [f"no machine offered for {plan.request.offer} holds it"]
    sku, offer = plan.chosen.sku, plan.request.offer
    found = list(plan.chosen.reasons)
    if sku.retired:
        found.append(f"Azure retires {sku.name} ({sku.retired.value})")
    if offer in sku.offered and not sku.offered[offer].value:
        found.append(f"{sku.name} is not offered for {offer}")
    return found


def plan_with_max_concurrency(
    request: PlanRequest, skus: Collection[Sku] = SKUS.values(), prices: Prices | None = None
) -> Plan:
    """Plan with the highest useful concurrency, as `render` writes and `plan` shows by default.

    The machine is the smallest that holds one sequence of full length. vLLM then gets as many sequences as the same GPUs hold at
    their usual length, if each still gets `ANSWER_TOKENS` within the time limit; at most `MOST_AT_A_TIME`.

    Args:
        request: the request, with one sequence.
        skus: the machines to choose from.
        prices: their hourly prices, if known.

    Raises:
        SetupError: as for `plan`.
    """
    found = plan(request, skus, prices)
    if found.chosen is None or not found.fits or found.chosen.placement.runner is Runner.PIPELINE:
        return found
    one = found.chosen
    usual_tokens = min(request.workload.usual or USUAL_TOKENS, request.workload.context)
    for_vllm = replace(request, sku=one.sku, runner=Runner.VLLM)

    def with_sequences(number: int) -> Plan:
        workload = replace(request.workload, concurrency=number, usual=usual_tokens)
        return replace(
            found,
            request=replace(for_vllm, workload=workload),
            chosen=fit_of(replace(for_vllm, workload=workload), one.sku),
        )

    def will_do(number: int) -> bool:
        more = with_sequences(number)
        return more.fits and more.spread == found.spread and more.answers_in_time

    # If a number of sequences fits, every lower number fits too, and is as fast for each.
    most = min(MOST_AT_A_TIME, request.options.prefill_tokens or MOST_AT_A_TIME)
    number = bisect_left(range(2, most + 1), x=True, key=lambda number: not will_do(number)) + 1
    workload = replace(request.workload, concurrency=number, usual=usual_tokens)
    return plan(replace(for_vllm, workload=workload), skus, prices)


def plan(request: PlanRequest, skus: Collection[Sku] = SKUS.values(), prices: Prices | None = None) -> Plan:
    """Choose a machine.

    Args:
        request: the request.
        skus: the machines to choose from.
        prices: their hourly prices, if known; then the cheapest is chosen.

    Raises:
        SetupError: the context is too long for the model, a number is out of range, or two options exclude each other.
    """
    _check(request)
    known = prices or {}
    order = _order(known)
    fits = [fit_of(request, sku) for sku in skus if sku.cloud is request.cloud]
    fits.sort(key=lambda one: (not one.fits, order(one)))
    may = (
        (one for one in fits if one.sku is request.sku)
        if request.sku
        else (one for one in fits if _may_be_chosen(one, request))
    )
    chosen = next(may, None)
    return Plan(request, chosen, tuple(one for one in fits if one is not chosen), known)


def fit_of(request: PlanRequest, sku: Sku) -> Fit:
    """Return how a request fits on a machine."""
    own_disk = request.offer is not Offer.KUBERNETES  # the owner of a cluster chooses its nodes' disks
    return fit(
        request.variant,
        request.workload,
        request.precision,
        sku,
        request.runner,
        options=request.options,
        own_disk=own_disk,
    )


def _may_be_chosen(one: Fit, request: PlanRequest) -> bool:
    offered = one.sku.cloud is not Cloud.AZURE or one.sku.is_offered(request.offer)
    return one.fits and one.sku.retired is None and offered


def _order(prices: Prices) -> Callable[[Fit], tuple[float, ...]]:
    """Return a sort key: the lowest price first, unknown prices last; without prices the fewest GPUs, then the smallest machine."""

    def key(one: Fit) -> tuple[float, ...]:
        price = prices.get(one.sku.name, math.inf) if prices else 0.0
        return price, one.sku.gpus, one.sku.memory_mib, one.sku.cores, one.sku.ram_gib

    return key


def _check(request: PlanRequest) -> None:
    context, reach = request.workload.context, request.variant.max_context.value
    if not LEAST_CONTEXT <= context <= reach:
        raise SetupError(
            f"{request.variant.name} supports a context of {LEAST_CONTEXT} to {reach:,} tokens, not {context:,}."
        )
    if request.workload.concurrency < 1:
        raise SetupError("Concurrency must be at least 1.")
    if request.workload.usual is not None and request.workload.usual < LEAST_CONTEXT:
        raise SetupError(f"A sequence has at least {LEAST_CONTEXT} tokens, not {request.workload.usual:,}.")
    if not 1 <= request.instances <= MOST_INSTANCES:
        raise SetupError(f"A deployment has 1 to {MOST_INSTANCES} instances, not {request.instances:,}.")
    if request.sku and request.sku.cloud is not request.cloud:
        raise SetupError(
            f"{request.sku.name} is a machine of {request.sku.cloud}, not of {request.cloud}. Change one of them."
        )
    prefill = request.options.prefill_tokens
    if prefill is not None and prefill < request.workload.concurrency:
        raise SetupError(
            f"vLLM computes at least one token per sequence and step: {request.workload.concurrency:,} sequences need a prefill "
            f"budget of at least as many tokens, not {prefill:,}."
        )
    if request.runner is Runner.PIPELINE:
        _check_pipeline(request)


def _check_pipeline(request: PlanRequest) -> None:
    if request.workload.concurrency > 1:
        raise SetupError(
            f"The engine pipeline computes one sequence at a time, not {request.workload.concurrency:,}. "
            "Use a concurrency of 1, or the engine vllm."
        )
    if request.precision not in SIXTEEN_BITS:
        raise SetupError(
            f"The engine pipeline has no {request.precision} weights. Use bf16 or fp16, or the engine vllm."
        )
    if request.options != USUAL_OPTIONS:
        raise SetupError(
            "The fp8 cache, pipeline parallelism, a prefill budget and speculative tokens require the engine vllm. Remove them, or use "
            "that engine."
        )


def to_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain JSON."""
    request, chosen = plan.request, plan.chosen
    usual, slow = plan.start_s
    about = {
        "model": request.variant.name,
        "dtype": request.precision,
        "context": request.workload.context,
        "concurrency": request.workload.concurrency,
        "usual_tokens": request.workload.length,
        "instances": request.instances,
        "offer": request.offer,
        "cloud": request.cloud,
        "fits": plan.fits,
        "quota_cores": plan.quota_cores,
        "copy": {"bytes": plan.copy_bytes, "seconds": round(usual), "seconds_on_a_slow_day": round(slow)},
        "request_limit_s": plan.request_s,
        "longest_answer_tokens": plan.longest_answer,
        "alternatives": [_fit(one, plan.prices) for one in plan.alternatives],
    }
    nothing: dict[str, Any] = {
        "sku": None,
        "gpus": 0,
        "engine": None,
        "memory_mib": None,
        "limit_mib": None,
        "reasons": [],
    }
    return {**about, **(_fit(chosen, plan.prices) if chosen else nothing)}


def _fit(one: Fit, prices: Prices) -> dict[str, Any]:
    sku = one.sku
    return {
        "sku": sku.name,
        "gpus": one.placement.gpus,
        "gpu": sku.gpu.name,
        "engine": one.placement.runner,
        "kv_dtype": one.placement.options.kv_dtype,
        "fits": one.fits,
        "reasons": list(one.reasons),
        "retired": sku.retired.value if sku.retired else None,
        "offered": {offer: sku.offered[offer].value if offer in sku.offered else None for offer in Offer},
        "memory_mib": one.memory.to_dict(),
        "limit_mib": round(one.placement.limit_mib, 1),
        "tokens_per_second": one.speed.to_dict(),
        "cores": sku.cores,
        "ram_gib": sku.ram_gib,
        "disk_gib": sku.disk_gib,
        "price_per_hour": prices.get(sku.name),
    }
