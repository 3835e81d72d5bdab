"""Starts a vLLM engine from a checkpoint and settings."""

import logging
import os
from dataclasses import replace
from pathlib import Path

from llama_serving.catalog import ModelVariant
from llama_serving.engine.batching.cache_size import free_bytes
from llama_serving.engine.cpus import within_quota
from llama_serving.engine.vllm.command import kv_bytes
from llama_serving.engine.vllm.engine import VllmEngine
from llama_serving.engine.vllm.installation import find
from llama_serving.engine.vllm.served_model import ServedModel
from llama_serving.errors import SetupError
from llama_serving.llama_config import QUANTIZED, load, positions_of
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)
_BYTES = {"float32": 4}


def start(
    checkpoint: Path, variant: ModelVariant, *, dtype: str, context: int, settings: Settings
) -> VllmEngine:
    """Start an engine.

    Args:
        checkpoint: a folder with `config.json`, `tokenizer.json` and safetensors.
        variant: the model's row of the catalog.
        dtype: of the computation.
        context: most tokens of one sequence.
        settings: of the operator.

    Raises:
        SetupError: vLLM was not found, cannot serve the model, or is not healthy in time.
    """
    if settings.vllm_prefill_tokens is not None and settings.vllm_prefill_tokens < settings.max_num_seqs:
        raise SetupError(
            f"LLAMA_VLLM_PREFILL_TOKENS={settings.vllm_prefill_tokens} is below LLAMA_MAX_NUM_SEQS={settings.max_num_seqs}, and vLLM "
            "computes at least a token of each sequence in a step. Raise the one, or lower the other."
        )
    installation = find(settings.vllm)
    width = _BYTES.get(dtype, 2)
    model = ServedModel(
        checkpoint=checkpoint.resolve(),
        name=variant.name,
        dtype=dtype,
        context=context,
        positions=positions_of(load(checkpoint), checkpoint),
        kv_bytes=variant.shape.kv_bytes_per_token(width),
        weight_bytes=_weight_bytes(checkpoint, variant, width),
    )
    kv_memory = kv_bytes(installation, model, settings, free_bytes=free_bytes())
    _log.info(
        "starting vLLM %s of %s on %s",
        installation.version,
        installation.python,
        "the CPU" if installation.cpu else "the GPU",
    )
    settings = replace(settings, threads=settings.threads or within_quota())
    return VllmEngine(installation, model, settings, kv_memory=kv_memory, environment=os.environ)


def _weight_bytes(checkpoint: Path, variant: ModelVariant, width: int) -> int:
    """Return the bytes of the weights in memory: quantized ones as in their files, others possibly widened."""
    files = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    return (
        min(files, variant.shape.weight_bytes(width))
        if load(checkpoint).get(QUANTIZED)
        else variant.shape.weight_bytes(width)
    )
