"""The engine and the image: who computes, whether it is in there, and over which GPUs."""

from collections.abc import Iterator
from typing import Final

from deployment.sizing import Runner, spreads
from deployment.validate.findings import Finding, Rule
from deployment.validate.kinds import DEPLOYMENTS
from deployment.validate.machines import machine_of
from deployment.validate.ranges import shown
from deployment.validate.serving import ENGINE, OURS, UPSTREAM, UPSTREAM_GPUS, UPSTREAM_URL, Serving
from deployment.validate.tree import Spec, Tree
from deployment.validate.variables import SUPERVISOR
from llama_serving.settings import Settings

_NOT_IN_THE_IMAGE: Final = (UPSTREAM_URL, "LLAMA_UPSTREAM_KEY")
_OF_WHO_COMPUTES: Final = ("kv_memory", "threads", "backend", "quantization")
_FOR_VLLM: Final = "azureml:llama-vllm:1 (environments/vllm)"


def rules(spec: Spec, tree: Tree) -> Iterator[Finding]:
    """Of deployments that run our code."""
    serving = Serving.of(spec, tree) if spec.kind in DEPLOYMENTS else None
    if serving is None or not serving.ours:
        return
    if serving.starts_vllm:
        yield from _with_vllm(spec, serving)
        yield from _gpus(spec, serving, tree)
    elif serving.image_known:
        yield from _without_vllm(spec, serving)
    if serving.settings.engine == UPSTREAM:
        yield from _computes_nothing(spec, serving)


def _given(serving: Serving, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if serving.variables.get(name, "").strip()]


def _computes_nothing(spec: Spec, serving: Serving) -> Iterator[Finding]:
    unset = Settings()
    for name in _OF_WHO_COMPUTES:
        if getattr(serving.settings, name) != getattr(unset, name):
            yield spec.find(
                Rule.ENGINE, (*serving.place, f"{OURS}{name.upper()}"),
                f"stops the start: the engine {UPSTREAM} computes nothing itself. Leave it out.",
            )  # fmt: skip


def _with_vllm(spec: Spec, serving: Serving) -> Iterator[Finding]:
    engine = serving.variables[ENGINE].strip()
    if engine not in {"", UPSTREAM}:
        yield spec.find(
            Rule.ENGINE, (*serving.place, ENGINE),
            f"is {shown(engine)}, and the image starts vLLM, whose start refuses any other engine than {UPSTREAM}. Leave it out, or "
            "name an environment without vLLM.",
        )  # fmt: skip
    for name in _given(serving, _NOT_IN_THE_IMAGE):
        yield spec.find(
            Rule.ENGINE, (*serving.place, name),
            "stops the start: the image starts the server itself, and says where it is. Leave it out.",
        )  # fmt: skip
    if not _given(serving, (UPSTREAM_GPUS,)):
        yield spec.find(
            Rule.ENGINE, (*serving.place, UPSTREAM_GPUS),
            "is missing, and the image's start needs it. Set how many GPUs share the model.",
        )  # fmt: skip


def _without_vllm(spec: Spec, serving: Serving) -> Iterator[Finding]:
    if serving.has_vllm:
        yield spec.find(
            Rule.ENGINE, (*serving.place, ENGINE),
            f"is {UPSTREAM}, and there is nobody to ask: the image starts no vLLM. Name {_FOR_VLLM} as the environment, or another "
            f"engine; {UPSTREAM_URL} names a server elsewhere.",
        )  # fmt: skip
    for name in _given(serving, tuple(SUPERVISOR)):
        yield spec.find(
            Rule.ENGINE, (*serving.place, name),
            f"is for an image that starts vLLM, and this one does not. Leave it out, or name {_FOR_VLLM} as the environment.",
        )  # fmt: skip


def _gpus(spec: Spec, serving: Serving, tree: Tree) -> Iterator[Finding]:
    """As many as there are, and as cut each layer without a rest."""
    sku, given, variant = machine_of(spec, tree), serving.gpus, serving.variant
    if sku is None or given is None or variant is None:
        return
    allowed = spreads(variant.shape, sku.gpus, Runner.VLLM)
    if given not in allowed:
        yield spec.find(
            Rule.GPUS, (*serving.place, UPSTREAM_GPUS),
            f"is {given}. {sku.name} has {sku.gpus} for it, and each layer of {variant.name} is cut without a rest by "
            f"{', '.join(map(str, allowed))}. Set one of these.",
        )  # fmt: skip
