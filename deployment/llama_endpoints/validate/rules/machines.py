"""Sizes of machines: whether they exist, are for rent, for this use, and hold the model."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

from llama_endpoints.azure.limits import NODE_SIZE
from llama_endpoints.planning import sizing, skus
from llama_endpoints.planning.planner import USUAL_TOKENS
from llama_endpoints.planning.sizing import Fit, Precision, Runner, Workload
from llama_endpoints.planning.skus import Cloud, Offer, Sku
from llama_endpoints.validate import sizes as names_of_sizes
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, Kind
from llama_endpoints.validate.ours import is_ours
from llama_endpoints.validate.rules.limits import shown
from llama_endpoints.validate.rules.references import asset, cluster, elsewhere
from llama_endpoints.validate.serving import SEQUENCES, Serving, variant_name
from llama_endpoints.validate.spec_files import Spec, Tree

_OFFER: Final = {
    Kind.MANAGED_DEPLOYMENT: Offer.MANAGED_ONLINE,
    Kind.COMPUTE: Offer.BATCH,
}
_PRECISION: Final = {"bfloat16": Precision.BF16, "float16": Precision.FP16}
GPUS: Final = "nvidia.com/gpu"
"""As a cluster calls them."""
_TYPING_ERROR: Final = 0.93
"""How alike two names are that differ by a letter."""


def sizes() -> dict[str, Sku]:
    """Azure's, by their names."""
    return {sku.name: sku for sku in skus.SKUS.values() if sku.cloud is Cloud.AZURE}


def instance_type(spec: Spec, tree: Tree) -> Spec | None:
    """The file of the type of instance that a deployment on Kubernetes names, if it is there."""
    return tree.named(spec.text("instance_type"), Kind.INSTANCE_TYPE)


def machine_of(spec: Spec, tree: Tree) -> Sku | None:
    """Of a deployment, with the GPUs that it gets, or of a compute's file."""
    if spec.kind is Kind.BATCH_DEPLOYMENT:
        compute = cluster(spec, tree)
        return machine_of(compute, tree) if compute else None
    if spec.kind is Kind.KUBERNETES_DEPLOYMENT:
        made = instance_type(spec, tree)
        return _node(made) if made else None
    return skus.azure_size(spec.text(*_place(spec)))


def _node(made: Spec) -> Sku | None:
    sku = skus.azure_size(made.text("spec", "nodeSelector", NODE_SIZE))
    gpus = made.number("spec", "resources", "limits", GPUS, default=0)
    return replace(sku, gpus=min(sku.gpus, gpus)) if sku and gpus > 0 else None


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of deployments and clusters."""
    if spec.kind in _OFFER:
        yield from _size(spec, tree)
    if spec.kind in DEPLOYMENTS:
        yield from _model(spec, tree)
        yield from _memory(spec, tree)


def _place(spec: Spec) -> Place:
    places = {Kind.COMPUTE: "size", Kind.BATCH_DEPLOYMENT: "compute"}
    return (places.get(spec.kind, "instance_type"),)


def _size(spec: Spec, tree: Tree) -> Iterator[Finding]:
    place = _place(spec)
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
    reasons = _reasons(spec, sku, serving)
    if reasons:
        yield spec.find(
            Rule.MEMORY, _place(spec),
            f"can't run {serving.variant.name} with LLAMA_DTYPE {serving.settings.dtype}, a context of "
            f"{_context(serving):,} and {_concurrency(serving)} at a time on {sku.gpus} x {sku.gpu.name}: "
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
            f"is {_concurrency(serving)}, and memory has not room for as many of the usual {USUAL_TOKENS:,} tokens: "
            f"{'; '.join(fit.reasons)}. Those beyond it wait, or are computed again. Lower it where yours are not shorter.",
        )  # fmt: skip


def _weights(spec: Spec, sku: Sku, serving: Serving) -> Iterator[Finding]:
    """Of a server that is not ours it is known that it holds the weights, and no more."""
    there, weights = sku.gpus * sku.gpu.memory_mib, serving.weight_bytes / 2**20
    if serving.variant is not None and weights > there:
        yield spec.find(
            Rule.MEMORY, _place(spec),
            f"has {sku.gpus} x {sku.gpu.name} with {there:,} MiB together, and {serving.variant.name} takes {weights:,.0f} MiB in "
            f"{serving.precision or '16 bits'}. `llama-endpoints plan` names a machine that holds it.",
        )  # fmt: skip


def _context(serving: Serving) -> int:
    trained = serving.variant.trained_positions.value if serving.variant else 0
    return serving.settings.context or trained


def _concurrency(serving: Serving) -> int:
    return 1 if _runner(serving) is Runner.PIPELINE else serving.settings.max_num_seqs


_RUNNERS: Final = {"pipeline": Runner.PIPELINE, "vllm": Runner.VLLM}


def _runner(serving: Serving) -> Runner | None:
    return _RUNNERS.get(serving.engine)


def fit_of(spec: Spec, sku: Sku, serving: Serving, usual: int = 1) -> Fit | None:
    """A deployment's model on a machine; None where it is not known, or not there. What has 32 bits is taken for 16.

    Args:
        spec: the deployment.
        sku: the machine.
        serving: what it serves with.
        usual: tokens that each of vLLM's sequences shall have room for, beside one at its longest.
    """
    if serving.variant is None or serving.is_elsewhere:
        return None
    workload = Workload(_context(serving), _concurrency(serving), usual if serving.has_vllm else None)
    own_disk = spec.kind is not Kind.KUBERNETES_DEPLOYMENT
    precision = serving.precision or _PRECISION.get(_dtype(serving), Precision.FP16)
    options = serving.options if serving.has_vllm else sizing.USUAL_OPTIONS
    return sizing.fit(
        serving.variant,
        workload,
        precision,
        _shared(sku, serving),
        _runner(serving),
        options=options,
        own_disk=own_disk,
    )


def _shared(sku: Sku, serving: Serving) -> Sku:
    """The machine with as much of its memory as vLLM is given, where that is not what is planned with."""
    share = serving.settings.vllm_gpu_share
    if not serving.has_vllm or share == sizing.USABLE:
        return sku
    return replace(sku, gpu=replace(sku.gpu, memory_mib=round(sku.gpu.memory_mib * share / sizing.USABLE)))


def _dtype(serving: Serving) -> str:
    given = serving.settings.dtype
    return serving.variant.dtype if given == "auto" and serving.variant else given


def _reasons(spec: Spec, sku: Sku, serving: Serving) -> tuple[str, ...]:
    fit = fit_of(spec, sku, serving)
    if fit is None:
        return ()
    if _dtype(serving) in _PRECISION:
        return fit.reasons
    takes = 2 * (fit.memory.total - fit.memory.overhead) + fit.memory.overhead  # float32: all but CUDA's own
    return (
        (f"in float32 it takes {takes:,.0f} MiB where {fit.placement.limit_mib:,.0f} may be used",)
        if takes > fit.placement.limit_mib
        else ()
    )
