"""From a checkpoint and settings to a running vLLM engine."""

import logging
import os
from pathlib import Path

from llama_serving.catalog import ModelVariant
from llama_serving.engine.batching.memory import free_bytes
from llama_serving.engine.vllm.command import kv_bytes
from llama_serving.engine.vllm.engine import VllmEngine
from llama_serving.engine.vllm.installation import find
from llama_serving.engine.vllm.options import ServedModel, VllmOptions
from llama_serving.llama_config import load, positions_of

_log = logging.getLogger(__name__)
_BYTES = {"float32": 4}


def start(
    checkpoint: Path, variant: ModelVariant, *, dtype: str, context: int, options: VllmOptions
) -> VllmEngine:
    """A running engine.

    Args:
        checkpoint: a folder with `config.json`, `tokenizer.json` and safetensors.
        variant: its row.
        dtype: of the computation.
        context: tokens that one sequence may come to.
        options: the operator's.

    Raises:
        SetupError: there is no vLLM, it can't serve the model, or it is not healthy in time.
    """
    installation = find(options.python)
    width = _BYTES.get(dtype, 2)
    model = ServedModel(
        checkpoint=checkpoint.resolve(),
        name=variant.name,
        dtype=dtype,
        context=context,
        positions=positions_of(load(checkpoint), checkpoint),
        kv_bytes=variant.shape.kv_bytes_per_token(width),
        weight_bytes=variant.shape.weight_bytes(width),
    )
    kv_memory = kv_bytes(installation, model, options, free_bytes=free_bytes())
    _log.info(
        "starting vLLM %s of %s on %s",
        installation.version,
        installation.python,
        "the CPU" if installation.cpu else "the GPU",
    )
    return VllmEngine(installation, model, options, kv_memory=kv_memory, environment=os.environ)
