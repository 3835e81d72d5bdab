"""Sizes of machines: whether they exist, are for rent, for this use, and hold the model."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

from llama_endpoints.planning import skus
from llama_endpoints.planning.planner import USUAL_TOKENS
from llama_endpoints.planning.skus import Offer, Sku
from llama_endpoints.validate import sizes as names_of_sizes
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, Kind
from llama_endpoints.validate.machines import (
    concurrency_of,
    context_of,
    fit_of,
    machine_of,
    reasons_against,
    size_place,
    sizes,
)
from llama_endpoints.validate.ours import is_ours
from llama_endpoints.validate.references import asset, cluster, elsewhere
from llama_endpoints.validate.serving import SEQUENCES, Serving, variant_name
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import shown

_OFFER: Final = {
    Kind.MANAGED_DEPLOYMENT: Offer.MANAGED_ONLINE,
    Kind.COMPUTE: Offer.BATCH,
}
_TYPING_ERROR: Final = 0.93
"""How alike two names are that differ by a letter."""


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of deployments and clusters."""
    if spec.kind in _OFFER:
        yield from _size(spec, tree)
    if spec.kind in DEPLOYMENTS:
        yield from _model(spec, tree)
        yield from _memory(spec, tree)


def _size(spec: Spec, tree: Tree) -> Iterator[Finding]:
    place = size_place(spec)
    name = spec.text(*place)
    sku = skus.azure_size(name)
    if sku is None:
        if name:  # (that it is missing is Azure's to say)
            yield from _unknown(spec, tree, place, name)
        return
    if sku.retired is not None:
        gone = sku.retired.value.startswith("since")
        yield spec.find(
            Rule.RETIRED if gone else Rule.RETIRING, place,
            f"is {name}, which Azure retires ({sku.retired.value}; {sku.retired.source}). Take another: "
            "`llama-endpoints plan` names one that holds the model.",
        )  # fmt: skip
    offer = _OFFER[spec.kind]
    if offer in sku.offered and not sku.offered[offer].value:
        yield spec.find(
            Rule.OFFER, place,
            f"is {name}, which is not offered for {offer} ({sku.offered[offer].source}). Offered: "
            f"{', '.join(_offered(offer))}.",
        )  # fmt: skip
    elif offer not in sku.offered:
        yield spec.find(
            Rule.OFFER_UNKNOWN, place,
            f"is {name}, of which nobody here knows whether it is offered for {offer}. Known to be: "
            f"{', '.join(_offered(offer))}.",
        )  # fmt: skip


def _offered(offer: Offer) -> list[str]:
    return [sku.name for sku in sizes().values() if sku.is_offered(offer) and sku.retired is None]


def _unknown(spec: Spec, tree: Tree, place: Place, name: str) -> Iterator[Finding]:
    """A size that the planner has no row for: ours is asked for a GPU, others may run on anything that Azure has."""
    if is_ours(spec, tree):
        alive = [sku.name for sku in sizes().values() if sku.retired is None]
        close = get_close_matches(name, alive, n=3, cutoff=0.6)
        nearest = f"The closest: {', '.join(close)}." if close else f"Known: {', '.join(alive)}."
        yield spec.find(
            Rule.SIZE, place,
            f"must be a size of machine with GPUs that is known here, not {shown(name)}. {nearest}",
        )  # fmt: skip
        return
    exists = names_of_sizes.exists(name)
    near = names_of_sizes.nearest(name, 0.6 if exists is False else _TYPING_ERROR)
    closest = f" The closest: {', '.join(near)}." if near else ""
    if exists is False:
        yield spec.find(Rule.SIZE, place, f"must be a size of Azure's, not {shown(name)}.{closest}")
    elif exists is None and near:
        yield spec.find(
            Rule.OFFER_UNKNOWN, place, f"is {name}, of which nobody here knows whether Azure has it.{closest}"
        )


def _model(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Whether it can be said which model is deployed; without that, nothing can be said of memory and probes."""
    value = spec.at("model")
    serving = Serving.of(spec, tree)
    if not isinstance(value, str | dict) or not serving.ours or serving.variant is not None:
        return
    if isinstance(value, str) and asset(value, Kind.MODEL, tree) is None and not elsewhere(value, Kind.MODEL):
        return  # (said already: it is no reference, or no file describes it)
    inline = value if isinstance(value, dict) else None
    model = asset(value, Kind.MODEL, tree)
    given = variant_name(inline if inline is not None else model.document.root if model else {})
    said = (
        f"says {shown(given)}, which is not in the catalog"
        if given
        else "does not say which of the catalog it is"
    )
    yield spec.find(
        Rule.MODEL_UNKNOWN, ("model",),
        f"{said}, so that memory and probes can't be checked. Give the model's file properties: {{variant: "
        "NAME}, with a name of `llama-endpoints models`.",
    )  # fmt: skip


def _memory(spec: Spec, tree: Tree) -> Iterator[Finding]:
    sku, serving = machine_of(spec, tree), Serving.of(spec, tree)
    if spec.kind is Kind.BATCH_DEPLOYMENT:
        compute = cluster(spec, tree)
        if compute is not None and sku is None and serving.variant is not None:
            yield spec.find(
                Rule.SIZE, ("compute",),
                f"names {compute.name}, a cluster of {shown(compute.at('size'))}: no machine with GPUs that "
                f"is known here. {serving.variant.name} needs one.",
            )  # fmt: skip
            return
        if sku is not None and serving.settings.batch_gpus:
            sku = replace(sku, gpus=min(sku.gpus, serving.settings.batch_gpus))
    if sku is None or serving.variant is None or serving.is_elsewhere:
        return
    if not serving.ours:
        yield from _weights(spec, sku, serving)
        return
    if serving.has_vllm:
        sku = replace(sku, gpus=min(sku.gpus, serving.gpus))
    reasons = reasons_against(spec, sku, serving)
    if reasons:
        yield spec.find(
            Rule.MEMORY, size_place(spec),
            f"can't run {serving.variant.name} with LLAMA_DTYPE {serving.settings.dtype}, a context of "
            f"{context_of(serving):,} and {concurrency_of(serving)} at a time on {sku.gpus} x {sku.gpu.name}: "
            f"{'; '.join(reasons)}. `llama-endpoints plan` names a machine that can.",
        )  # fmt: skip
    elif serving.has_vllm:
        yield from _crowded(spec, sku, serving)


def _crowded(spec: Spec, sku: Sku, serving: Serving) -> Iterator[Finding]:
    """VLLM serves with any cache that holds one sequence; what has no room in it waits, or is computed again."""
    fit = fit_of(spec, sku, serving, USUAL_TOKENS)
    if fit is not None and fit.reasons:
        yield spec.find(
            Rule.CROWDED, (*serving.place, SEQUENCES),
            f"is {concurrency_of(serving)}, and memory has not room for as many of the usual {USUAL_TOKENS:,} tokens: "
            f"{'; '.join(fit.reasons)}. Those beyond it wait, or are computed again. Lower it where yours are not shorter.",
        )  # fmt: skip


def _weights(spec: Spec, sku: Sku, serving: Serving) -> Iterator[Finding]:
    """Of a server that is not ours it is known that it holds the weights, and no more."""
    there, weights = sku.gpus * sku.gpu.memory_mib, serving.weight_bytes / 2**20
    if serving.variant is not None and weights > there:
        yield spec.find(
            Rule.MEMORY, size_place(spec),
            f"has {sku.gpus} x {sku.gpu.name} with {there:,} MiB together, and {serving.variant.name} takes {weights:,.0f} MiB in "
            f"{serving.precision or '16 bits'}. `llama-endpoints plan` names a machine that holds it.",
        )  # fmt: skip
