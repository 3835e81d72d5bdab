"""The engine: whether the image has it, whether its GPUs suffice, and whether the settings apply to it."""

from collections.abc import Iterator
from typing import Final

from llama_endpoints.planning.sizing import Precision, Runner, spreads
from llama_endpoints.validate.document import Place
from llama_endpoints.validate.findings import Finding, Rule
from llama_endpoints.validate.kinds import DEPLOYMENTS, SpecKind
from llama_endpoints.validate.llama_deployments import OURS
from llama_endpoints.validate.machines import machine_of
from llama_endpoints.validate.serving import ENGINE, TENSOR_PARALLEL, VLLM, Serving
from llama_endpoints.validate.spec_files import SpecFile, SpecTree
from llama_endpoints.validate.values import shown
from llama_serving.service.engine_factory import UNUSED, UPSTREAM_ONLY, VLLM_ONLY
from llama_serving.settings import Settings

_WITH_VLLM: Final = {True: "azureml:llama-gpu-batch:1", False: "azureml:llama-gpu:1"}
_WITH_TORCH: Final = {True: "azureml:llama-batch:1", False: "azureml:llama-online:1"}
"""Environments that have each engine, online and batch."""


def rules(spec: SpecFile, tree: SpecTree) -> Iterator[Finding]:
    """Yield the findings of deployments that run our code."""
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
    """Return the settings that differ from their defaults."""
    unset = Settings()
    return [name for name in names if getattr(serving.settings, name) != getattr(unset, name)]


def _at(serving: Serving, name: str) -> Place:
    return (*serving.place, name)


def _image(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    """Yield a finding if the image does not have the engine."""
    batch = spec.kind is SpecKind.BATCH_DEPLOYMENT
    if serving.has_vllm and not serving.settings.vllm:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            f"is vllm, but the image has no vLLM (it does not set {VLLM}). Use the environment {_WITH_VLLM[batch]}, or another engine.",
        )  # fmt: skip
    only_vllm = serving.images.get(ENGINE) == "vllm"
    if only_vllm and serving.engine in {"pipeline", "batching"}:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            f"is {shown(serving.engine)}, but the image has torch for vLLM only. Remove it, or use {_WITH_TORCH[batch]} as the "
            "environment.",
        )  # fmt: skip


def _settings(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    """Yield findings for settings with which the server refuses to start: missing ones, and those of another engine."""
    engine = serving.engine
    if engine == "upstream" and serving.settings.upstream_url is None:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            "is upstream, but LLAMA_UPSTREAM_URL is not set. Set it to the server's address, or use vllm, which starts its own.",
        )  # fmt: skip
    for name in _set(serving, UPSTREAM_ONLY) if engine != "upstream" else ():
        yield spec.find(
            Rule.ENGINE, _at(serving, f"{OURS}{name.upper()}"),
            f"prevents the start: the engine {engine} uses no other server. Remove it, or set {ENGINE} to upstream.",
        )  # fmt: skip
    for name in _set(serving, VLLM_ONLY) if engine != "vllm" else ():
        yield spec.find(
            Rule.ENGINE, _at(serving, f"{OURS}{name.upper()}"),
            f"prevents the start: the engine is {engine}. Remove it, or set {ENGINE} to vllm.",
        )  # fmt: skip
    not_of = UNUSED.get(engine, {})
    for name in _set(serving, tuple(not_of)):
        yield spec.find(
            Rule.ENGINE, _at(serving, f"{OURS}{name.upper()}"),
            f"prevents the start: the engine {engine} {not_of[name]}. Remove it.",
        )  # fmt: skip


def _quantized(spec: SpecFile, serving: Serving) -> Iterator[Finding]:
    reads = serving.has_vllm or serving.is_elsewhere or serving.engine == "batching"
    if serving.precision is not None and not reads:
        yield spec.find(
            Rule.ENGINE, _at(serving, ENGINE),
            f"is {serving.engine}, but the model's weights are in {serving.precision}, which only vllm and, on a CPU, batching read. Set {ENGINE} to vllm, or "
            "use a 16-bit model.",
        )  # fmt: skip


def _gpus(spec: SpecFile, serving: Serving, tree: SpecTree) -> Iterator[Finding]:
    """Yield a finding unless there are enough GPUs, and each layer splits evenly over them."""
    sku, settings = machine_of(spec, tree), serving.settings
    if sku is None or serving.variant is None:
        return
    batch = spec.kind is SpecKind.BATCH_DEPLOYMENT and settings.batch_gpus is not None
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
            f"is {settings.vllm_tensor_parallel}{of_groups}, but {sku.name} has {there} GPUs, and a layer of {serving.variant.name} "
            f"must split evenly. {can}",
        )  # fmt: skip
