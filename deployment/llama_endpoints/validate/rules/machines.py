"""Machine sizes: whether they exist, are available for this use, and hold the model."""

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
from llama_endpoints.validate.kinds import DEPLOYMENTS, SpecKind
from llama_endpoints.validate.llama_deployments import runs_our_code
from llama_endpoints.validate.machines import (
    concurrency_of,
    context_of,
    fit_of,
    machine_of,
    reasons_against,
    size_place,
    sizes,
)
from llama_endpoints.validate.references import asset, cluster, elsewhere
from llama_endpoints.validate.serving import SEQUENCES, Serving, variant_name
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown

_OFFER: Final = {
    SpecKind.MANAGED_DEPLOYMENT: Offer.MANAGED_ONLINE,
    SpecKind.COMPUTE: Offer.BATCH,
}
_TYPING_ERROR: Final = 0.93
"""The similarity of two names that differ by a letter."""


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of deployments and clusters."""
    if spec.kind in _OFFER:
        yield from _size(spec, tree)
    if spec.kind in DEPLOYMENTS:
        yield from _model(spec, tree)
        yield from _memory(spec, tree)


def _size(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    place = size_place(spec)
    name = spec.text(*place)
    sku = skus.azure_size(name)
    if sku is None:
        if name:  # Azure's schema reports a missing size
            yield from _unknown(spec, tree, place, name)
        return
    if sku.retired is not None:
        gone = sku.retired.value.startswith("since")
        yield spec.find(
            Rule.RETIRED if gone else Rule.RETIRING, place,
            f"is {name}, which Azure retires ({sku.retired.value}; {sku.retired.source}). Choose another with "
            "`llama-endpoints plan`.",
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
            f"is {name}; it is unknown whether it is offered for {offer}. Known to be offered: "
            f"{', '.join(_offered(offer))}.",
        )  # fmt: skip


def _offered(offer: Offer) -> list[str]:
    return [sku.name for sku in sizes().values() if sku.is_offered(offer) and sku.retired is None]


def _unknown(spec: SpecFile, tree: SpecTree, place: Place, name: str) -> Iterator[Finding]:
    """Yield findings for a size without a row in the planner: our code needs a known GPU, others may run on any size."""
    if runs_our_code(spec, tree):
        alive = [sku.name for sku in sizes().values() if sku.retired is None]
        close = get_close_matches(name, alive, n=3, cutoff=0.6)
        nearest = f"The closest: {', '.join(close)}." if close else f"Known: {', '.join(alive)}."
        yield spec.find(
            Rule.SIZE, place,
            f"must be a known machine size with GPUs, not {shown(name)}. {nearest}",
        )  # fmt: skip
        return
    exists = names_of_sizes.exists(name)
    near = names_of_sizes.nearest(name, 0.6 if exists is False else _TYPING_ERROR)
    closest = f" The closest: {', '.join(near)}." if near else ""
    if exists is False:
        yield spec.find(Rule.SIZE, place, f"must be an Azure machine size, not {shown(name)}.{closest}")
    elif exists is None and near:
        yield spec.find(
            Rule.OFFER_UNKNOWN, place, f"is {name}; it is unknown whether Azure has this size.{closest}"
        )


def _model(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield a finding if the model is unknown: then memory and probes cannot be checked."""
    value = spec.at("model")
    serving = Serving.of(spec, tree)
    if not isinstance(value, str | dict) or not serving.ours or serving.variant is not None:
        return
    if (
        isinstance(value, str)
        and asset(value, SpecKind.MODEL, tree) is None
        and not elsewhere(value, SpecKind.MODEL)
    ):
        return  # another rule reports a malformed reference or a missing file
    inline = value if isinstance(value, dict) else None
    model = asset(value, SpecKind.MODEL, tree)
    given = variant_name(inline if inline is not None else model.document.root if model else {})
    said = f"says {shown(given)}, which is not in the catalog" if given else "does not identify a catalog model"
    yield spec.find(
        Rule.MODEL_UNKNOWN, ("model",),
        f"{said}, so memory and probes cannot be checked. Add properties: {{variant: NAME}} to the model's file, with "
        "a name from `llama-endpoints models`.",
    )  # fmt: skip


def _memory(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    sku, serving = machine_of(spec, tree), Serving.of(spec, tree)
    if spec.kind is SpecKind.BATCH_DEPLOYMENT:
        compute = cluster(spec, tree)
        if compute is not None and sku is None and serving.variant is not None:
            yield spec.find(
                Rule.SIZE, ("compute",),
                f"is {compute.name}, a cluster of {shown(compute.at('size'))}, which is not a known machine with GPUs. "
                f"{serving.variant.name} needs one.",
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
            f"cannot run {serving.variant.name} with LLAMA_DTYPE {serving.settings.dtype}, a context of "
            f"{context_of(serving):,} and {concurrency_of(serving)} at a time on {sku.gpus} x {sku.gpu.name}: "
            f"{'; '.join(reasons)}. `llama-endpoints plan` chooses a machine that can.",
        )  # fmt: skip
    elif serving.has_vllm:
        yield from _crowded(spec, sku, serving)


def _crowded(spec: SpecFile, sku: Sku, serving: Serving) -> Iterator[Finding]:
    """Yield a finding if vLLM's cache is too small for the concurrency: more sequences wait, or are computed again."""
    fit = fit_of(spec, sku, serving, USUAL_TOKENS)
    if fit is not None and fit.reasons:
        yield spec.find(
            Rule.CROWDED, (*serving.place, SEQUENCES),
            f"is {concurrency_of(serving)}, but memory cannot hold as many sequences of the usual {USUAL_TOKENS:,} tokens: "
            f"{'; '.join(fit.reasons)}. The others wait, or are preempted. Lower it, unless your sequences are shorter.",
        )  # fmt: skip


def _weights(spec: SpecFile, sku: Sku, serving: Serving) -> Iterator[Finding]:
    """Check only the weights of a server that is not ours; nothing else is known about it."""
    there, weights = sku.gpus * sku.gpu.memory_mib, serving.weight_bytes / 2**20
    if serving.variant is not None and weights > there:
        yield spec.find(
            Rule.MEMORY, size_place(spec),
            f"has {sku.gpus} x {sku.gpu.name} with {there:,} MiB in total, but {serving.variant.name} takes {weights:,.0f} MiB in "
            f"{serving.precision or '16 bits'}. `llama-endpoints plan` chooses a machine that holds it.",
        )  # fmt: skip
