"""Selects and starts the engine: the one that the settings name, or what `auto` finds on this machine."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Final

from llama_serving.catalog import ModelVariant
from llama_serving.engine.base import Engine
from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

UNUSED: Final[Mapping[str, Mapping[str, str]]] = {
    "pipeline": {
        "kv_memory": "has no cache of its own",
        "backend": "has none to choose from",
        "cpu_instructions": "has no kernels of its own",
        "quantization": "serves the weights as they are",
        "speculative_tokens": "generates one token in a step",
    },
    "upstream": dict.fromkeys(
        ("kv_memory", "threads", "backend", "cpu_instructions", "quantization", "speculative_tokens"),
        "computes nothing itself",
    ),
    "vllm": {
        "backend": "has its own kernels",
        "cpu_instructions": "has its own kernels",
        "quantization": "reads quantized checkpoints and quantizes none itself",
        "speculative_tokens": "has LLAMA_VLLM_SPECULATIVE_TOKENS",
    },
}
"""For each engine, the settings that it does not use, and the reason."""
UPSTREAM_ONLY: Final = ("upstream_url", "upstream_key")
VLLM_ONLY: Final = tuple(field.name for field in fields(Settings) if field.name.startswith("vllm_"))
"""`LLAMA_VLLM` itself is not among them: an image sets it to say where vLLM is, whichever engine is used."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected engine.

    Attributes:
        why: reason of `auto` for selecting it; empty if the settings name it.
    """

    name: str
    why: str = ""


def dtype_of(variant: ModelVariant, settings: Settings) -> str:
    """Return the type that the model is computed in."""
    return variant.dtype if settings.dtype == "auto" else settings.dtype


def select_engine(settings: Settings, dtype: str) -> Selection:
    """Return the engine that the settings name. `auto` is vLLM on a GPU, batching on a CPU, else pipeline."""
    from llama_serving.engine.vllm.installation import gpu_here

    if settings.engine != "auto":
        return Selection(settings.engine)
    if gpu_here():
        return _on_gpu(settings)
    from llama_serving.engine.batching.factory import DTYPES, gpu_in_torch

    if gpu_in_torch():
        return _on_gpu(settings)
    if dtype in DTYPES:
        return Selection("batching", "there is no GPU")
    return Selection("pipeline", f"there is no GPU, and the batching engine does not compute in {dtype}")


def _on_gpu(settings: Settings) -> Selection:
    from llama_serving.engine.vllm.installation import find

    try:
        found = find(settings.vllm)
    except SetupError as error:
        return Selection("pipeline", f"there is a GPU, and vLLM can't be had. {error}")
    return Selection("vllm", f"there is a GPU, and vLLM {found.version}".rstrip())


def start_engine(
    files: ModelFiles, *, dtype: str, context: int, settings: Settings
) -> tuple[Engine, Selection]:
    """Start the engine that `select_engine` returns.

    Raises:
        SetupError: the checkpoint cannot be loaded, a setting does not apply to the engine, or the upstream server is unusable.
    """
    selection = select_engine(settings, dtype)
    _check(settings, selection)
    return _STARTS[selection.name](files, dtype, context, settings), selection


def _check(settings: Settings, selection: Selection) -> None:
    """Refuse settings that the engine would ignore. Under `auto`, vLLM's settings only cause a warning.

    Raises:
        SetupError: there is such a setting.
    """
    name = selection.name
    if name != "upstream":
        for setting in _set(settings, UPSTREAM_ONLY):
            raise SetupError(
                f"{setting} is set, but the engine is not `upstream`. Set LLAMA_ENGINE=upstream, or unset it."
            )
    for setting in _set(settings, VLLM_ONLY) if name != "vllm" else ():
        if settings.engine != "auto":
            raise SetupError(
                f"{setting} is set, but the engine is not `vllm`. Set LLAMA_ENGINE=vllm, or unset it."
            )
        _log.warning("%s has no effect: the engine is %s, because %s", setting, name, selection.why)
    for field, why in UNUSED.get(name, {}).items():
        for setting in _set(settings, (field,)):
            raise SetupError(f"{setting} is set, but the {name} engine {why}. Unset it.")


def _set(settings: Settings, names: tuple[str, ...]) -> list[str]:
    """Return the environment names of those settings that differ from their defaults."""
    unset = Settings()
    return [f"LLAMA_{name.upper()}" for name in names if getattr(settings, name) != getattr(unset, name)]


def _start_batching(files: ModelFiles, dtype: str, context: int, settings: Settings) -> Engine:
    from llama_serving.engine.batching.factory import start

    return start(files.checkpoint, dtype=dtype, context=context, settings=settings)


def _start_pipeline(files: ModelFiles, dtype: str, context: int, settings: Settings) -> Engine:
    from llama_serving.engine.pipeline import PipelineEngine

    del context
    return PipelineEngine(files.checkpoint, dtype=dtype, threads=settings.threads)


def _start_upstream(files: ModelFiles, dtype: str, context: int, settings: Settings) -> Engine:
    from llama_serving.engine.upstream.client import UpstreamClient
    from llama_serving.engine.upstream.engine import ServerMonitor, UpstreamEngine

    del dtype, context
    if settings.upstream_url is None:
        raise SetupError(
            "LLAMA_ENGINE=upstream needs LLAMA_UPSTREAM_URL, where the model's server is, such as http://127.0.0.1:8000."
        )
    url, key = settings.upstream_url, settings.upstream_key
    return UpstreamEngine(
        lambda: UpstreamClient(url, key=key),
        monitor=ServerMonitor.at(url),
        model=files.variant.name,
        max_num_seqs=settings.max_num_seqs,
    )


def _start_vllm(files: ModelFiles, dtype: str, context: int, settings: Settings) -> Engine:
    from llama_serving.engine.vllm.start import start

    return start(files.checkpoint, files.variant, dtype=dtype, context=context, settings=settings)


_STARTS: Final[Mapping[str, Callable[[ModelFiles, str, int, Settings], Engine]]] = {
    "batching": _start_batching,
    "pipeline": _start_pipeline,
    "upstream": _start_upstream,
    "vllm": _start_vllm,
}
