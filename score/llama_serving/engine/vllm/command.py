"""vLLM's command line and environment, made from a model and settings. Pure functions."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from llama_serving.engine.vllm.installation import Installation
from llama_serving.engine.vllm.served_model import ServedModel
from llama_serving.errors import SetupError
from llama_serving.settings import Settings

KEY: Final = "VLLM_API_KEY"
"""vLLM reads its key from this variable. (An argument would be visible in the list of processes.)"""
LOOKUP_TOKENS: Final = 4
"""The longest end of a text that prompt lookup searches for."""
STRUCTURED_OUTPUTS: Final = json.dumps({"backend": "guidance"})
"""llguidance, as our own engines: the same keywords are held. By itself vLLM chooses a library for each request."""
CPU_BLOCK: Final = 128
"""Tokens in a block of vLLM's cache on a CPU; each sequence may leave one of them partly empty."""
CPU_SHARE: Final = 0.5
"""Share of the free memory beside the weights that keys and values may take on a CPU."""

_FIXED: Final[Mapping[str, str]] = {
    # Everything comes with the model: nothing is downloaded, no usage is reported.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_PLUGINS": "",
    # The log is parsed.
    "PYTHONUNBUFFERED": "1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
    "VLLM_LOGGING_PREFIX": "",
    "VLLM_LOGGING_COLOR": "0",
}
_DROPPED: Final = ("LLAMA_", "PYTHON", "VIRTUAL_ENV", "__PYVENV", "VLLM_CPU_KVCACHE_SPACE", KEY)
"""Prefixes of variables that are ours or our interpreter's, and are not passed on."""
_SECRET: Final = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|CONNECTION_STRING|_SAS)$", re.IGNORECASE
)


def arguments(
    installation: Installation,
    model: ServedModel,
    settings: Settings,
    *,
    socket: Path,
    kv_memory: int | None,
) -> tuple[str, ...]:
    """Return the command that serves a model on a Unix socket.

    Args:
        installation: the environment that has vLLM.
        model: to serve.
        settings: of the operator.
        socket: where vLLM listens.
        kv_memory: bytes for keys and values; None is vLLM's default.
    """
    named: dict[str, object] = {
        "uds": socket,
        "model": model.checkpoint,
        "served-model-name": model.name,
        "dtype": model.dtype,
        "max-model-len": model.context,
        "max-num-seqs": settings.max_num_seqs,
        "tensor-parallel-size": settings.vllm_tensor_parallel,
        "pipeline-parallel-size": settings.vllm_pipeline_parallel,
        "gpu-memory-utilization": settings.vllm_gpu_share,
        "kv-cache-dtype": settings.vllm_kv_dtype,
        "load-format": "safetensors",  # never a pickle
        "generation-config": "vllm",  # not the checkpoint's sampling settings
        "structured-outputs-config": STRUCTURED_OUTPUTS,
        **_optional(model, settings, kv_memory),
    }
    switches = [
        "--enable-prefix-caching" if settings.vllm_prefix_caching else "--no-enable-prefix-caching",
        "--no-enable-log-requests",
        "--disable-uvicorn-access-log",
        *(["--enforce-eager"] if settings.vllm_eager else []),
    ]
    words = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    return (str(installation.python), "-m", "vllm.entrypoints.openai.api_server", *words, *switches)


def _optional(model: ServedModel, settings: Settings, kv_memory: int | None) -> dict[str, object]:
    found: dict[str, object] = {}
    if kv_memory is not None:
        # For vLLM this is per worker: each holds its part of every token's keys and values.
        found["kv-cache-memory-bytes"] = kv_memory // (
            settings.vllm_tensor_parallel * settings.vllm_pipeline_parallel
        )
    if settings.vllm_prefill_tokens is not None:
        found["max-num-batched-tokens"] = settings.vllm_prefill_tokens
    if settings.vllm_speculative_tokens:
        found["speculative-config"] = json.dumps(
            {
                "method": "ngram",
                "num_speculative_tokens": settings.vllm_speculative_tokens,
                "prompt_lookup_max": LOOKUP_TOKENS,
            }
        )
    if model.positions is not None and model.context > model.positions:
        # vLLM sizes its rotary table by this and refuses longer contexts. Frequencies are not scaled.
        found["hf-overrides"] = json.dumps({"max_position_embeddings": model.context})
    return found


def environment(
    inherited: Mapping[str, str], installation: Installation, settings: Settings, *, key: str
) -> dict[str, str]:
    """Return vLLM's environment: ours without our settings, our interpreter's variables and secrets.

    Args:
        inherited: our own environment.
        installation: the environment that has vLLM.
        settings: of the operator.
        key: bearer token that vLLM must require.
    """
    kept = {
        name: text
        for name, text in inherited.items()
        if not name.startswith(_DROPPED) and not _SECRET.search(name)
    }
    # Compilers and other tools of its environment come before ours.
    path = ":".join(filter(None, (str(installation.python.parent), kept.get("PATH", ""))))
    found = {**kept, **_FIXED, "PATH": path, KEY: key}
    if installation.cpu and settings.threads is not None:
        # By default vLLM binds its threads to cores that it selects, and overrides OMP_NUM_THREADS.
        found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(settings.threads)}
    return found


def kv_bytes(
    installation: Installation, model: ServedModel, settings: Settings, *, free_bytes: int
) -> int | None:
    """Return the bytes for keys and values; None leaves them to vLLM's share of a GPU.

    On a CPU vLLM would take its share of the whole machine, whatever else runs there. Half of the memory that is free beside
    the weights is enough, and never more than all sequences can use.

    Raises:
        SetupError: the free memory is too small for one sequence.
    """
    if settings.kv_memory is not None or not installation.cpu:
        return settings.kv_memory
    most = (model.context + CPU_BLOCK) * settings.max_num_seqs * model.kv_bytes
    budget = int((free_bytes - model.weight_bytes) * CPU_SHARE)
    if budget < (model.context + CPU_BLOCK) * model.kv_bytes:
        raise SetupError(
            f"{free_bytes:,} bytes of memory are free, which is too little for {model.weight_bytes:,} bytes of weights and "
            f"a context of {model.context} tokens. Lower LLAMA_CONTEXT, set LLAMA_KV_MEMORY, or use a machine with more memory."
        )
    return min(most, budget)
