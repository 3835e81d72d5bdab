"""The model that vLLM is started with."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The checkpoint that vLLM serves.

    Attributes:
        checkpoint: folder of config.json, tokenizer and safetensors.
        name: the model's name in requests.
        dtype: of weights and computation.
        context: tokens of prompt and completion together.
        positions: `max_position_embeddings` of its config.json; None if missing.
        kv_bytes: bytes of keys and values for one token.
        weight_bytes: bytes of all weights.
    """

    checkpoint: Path
    name: str
    dtype: str
    context: int
    positions: int | None
    kv_bytes: int
    weight_bytes: int
