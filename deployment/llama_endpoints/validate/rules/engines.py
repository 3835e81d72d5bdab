"""The engine and the image: who computes, whether it is in there, over which GPUs, and which settings are its own."""

from collections.abc import Iterator
from typing import Final

from llama_endpoints.planning.sizing import Precision, Runner, spreads
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, Kind
from llama_endpoints.validate.machines import machine_of
from llama_endpoints.validate.ours import OURS
from llama_endpoints.validate.serving import ENGINE, TENSOR_PARALLEL, VLLM, Serving
from llama_endpoints.validate.spec_files import Spec, Tree
from llama_endpoints.validate.values import shown
from llama_serving.service.engine_factory import UNUSED, UPSTREAM_ONLY, VLLM_ONLY
from llama_serving.settings import Settings

_WITH_VLLM: Final = {True: "azureml:llama-gpu-batch:1", False: "azureml:llama-gpu:1"}
_WITH_TORCH: Final = {True: "azureml:llama-batch:1", False: "azureml:llama-online:1"}
"""By whether it is for batch."""


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of deployments that run our code."""
    serving = Serving.of(spec, tree) if spec.kind in DEPLOYMENTS else None
    if serving is None or not serving.ours:
        return
    if serving.image_known:
        yield from _image(spec, serving)
    yield from _settings(spec, serving)
    yield from _quantized(spec, serving)
    if serving.has_vllm:
        yield from _gpus(spec, serving, tree)


def _set(serving: Serving, names: tuple[str, ...]) -> list[str]:
    """Those that differ from what they are by default."""
    unset = Settings()
    return [name for name in names if getattr(serving.settings, name) != getattr(unset, name)]


def _at(serving: Serving, name: str) -> Place:
    return (*serving.place, name)


def _image(spec: Spec, serving: Serving) -> Iterator[Finding]:
    """Whether the engine is in there."""
    batch = spec.kind is Kind.BATCH_DEPLOYMENT
    if serving.has_vllm and not serving.settings.vllm:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            f"is vllm, and the image has no vLLM (it sets no {VLLM}). Name {_WITH_VLLM[batch]} as the environment, or another engine.",
        )  # fmt: skip
    only_vllm = serving.images.get(ENGINE) == "vllm"
    if only_vllm and serving.engine in {"pipeline", "batching"}:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            f"is {shown(serving.engine)}, and the image has torch for vLLM alone. Leave it out, or name {_WITH_TORCH[batch]} as the "
            "environment.",
        )  # fmt: skip


def _settings(spec: Spec, serving: Serving) -> Iterator[Finding]:
    """What stops the start, since the engine does not look at it, or misses it."""
    engine = serving.engine
    if engine == "upstream" and serving.settings.upstream_url is None:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            "is upstream, and LLAMA_UPSTREAM_URL does not say which server is asked. Set it, or name another engine; vllm starts one.",
        )  # fmt: skip
    for name in _set(serving, UPSTREAM_ONLY) if engine != "upstream" else ():
        yield spec.find(
            Rule.ENGINE, _at(serving, f"{OURS}{name.upper()}"),
            f"stops the start: the engine is {engine}, and asks no other server. Leave it out, or set {ENGINE} to upstream.",
        )  # fmt: skip
    for name in _set(serving, VLLM_ONLY) if engine != "vllm" else ():
        yield spec.find(
            Rule.ENGINE, _at(serving, f"{OURS}{name.upper()}"),
            f"stops the start: the engine is {engine}. Leave it out, or set {ENGINE} to vllm.",
        )  # fmt: skip
    not_of = UNUSED.get(engine, {})
    for name in _set(serving, tuple(not_of)):
        yield spec.find(
            Rule.ENGINE, _at(serving, f"{OURS}{name.upper()}"),
            f"stops the start: the engine {engine} {not_of[name]}. Leave it out.",
        )  # fmt: skip


def _quantized(spec: Spec, serving: Serving) -> Iterator[Finding]:
    if serving.precision is not None and not serving.has_vllm and not serving.is_elsewhere:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            f"is {serving.engine}, and the model's weights are in {serving.precision}, which vllm alone reads. Set {ENGINE} to vllm, or "
            "name a model in 16 bits.",
        )  # fmt: skip


def _gpus(spec: Spec, serving: Serving, tree: Tree) -> Iterator[Finding]:
    """As many as there are, and as cut each layer without a rest."""
    sku, settings = machine_of(spec, tree), serving.settings
    if sku is None or serving.variant is None:
        return
    batch = spec.kind is Kind.BATCH_DEPLOYMENT and settings.batch_gpus is not None
    there = min(sku.gpus, settings.batch_gpus or sku.gpus) if batch else sku.gpus
    groups = settings.vllm_pipeline_parallel
    precision = serving.precision or Precision.BF16
    spread = spreads(serving.variant.shape, there, Runner.VLLM, groups, precision)
    allowed = [gpus // groups for gpus in spread]
    if settings.vllm_tensor_parallel not in allowed:
        of_groups = f" in {groups} groups (LLAMA_VLLM_PIPELINE_PARALLEL)" if groups > 1 else ""
        can = f"Set {' or '.join(map(str, allowed))}." if allowed else "Lower one of the two."
        yield spec.find(
            Rule.GPUS, _at(serving, TENSOR_PARALLEL),
            f"is {settings.vllm_tensor_parallel}{of_groups}. {sku.name} has {there} GPUs for it, and a layer of {serving.variant.name} "
            f"must be cut without a rest. {can}",
        )  # fmt: skip
