"""Ollama's description of the model: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from llama_serving.catalog import DialogFormat, ModelVariant
from llama_serving.contract.ollama import timestamp
from llama_serving.contract.request import Body
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import validate

TAG: Final = ":latest"
"""Ollama's clients write it behind a name that has no tag."""
API: Final = "0.12.11"
"""Ollama's version whose API this is: its clients compare it. (That version added `logprobs`.)"""
NEVER: Final = "9999-12-31T23:59:59Z"
"""When the model is unloaded."""
_QUANTIZATION: Final = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_MARKED: Final = "{{- if .Suffix }}<PRE> {{ .Prompt }} <SUF>{{ .Suffix }} <MID>{{- else }}"
_INST: Final = (
    "[INST] {{ if .System }}<<SYS>>\n{{ .System }}\n<</SYS>>\n\n{{ end }}{{ .Prompt }} [/INST] {{ .Response }}"
)
_SOURCE: Final = (
    "Source: system\n\n {{ .System }}<step>Source: user\n\n {{ .Prompt }}<step>"
    "Source: assistant\nDestination: user\n\n {{ .Response }}"
)
_PLAIN: Final = "{{ .Prompt }}{{ .Response }}"

UNSUPPORTED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("/api/pull", "/api/create", "/api/copy", "/api/push"),
        "This server has one model, which it loaded at its start, and stores none. Ask without pulling: any name is "
        "answered. For another model, start a server with `llama-endpoints serve --model MODEL`.",
    ),
    "/api/delete": "This server has one model, which stays loaded. To end it, stop the server.",
    **dict.fromkeys(
        ("/api/embed", "/api/embeddings"),
        "These models have no embeddings. Use a server with an embedding model for them.",
    ),
}
"""Ollama's other paths, and what to do instead."""


@dataclass(frozen=True, slots=True)
class Served:
    """The model as it is served.

    Attributes:
        context: tokens of prompt and completion together.
        since: when the server was started.
    """

    variant: ModelVariant
    context: int
    since: datetime


def parse_show(body: Body) -> str | None:
    """Return the name of the model that a body of `/api/show` asks for.

    Raises:
        BadRequest: the body is invalid.
    """
    body = present(body)
    validate(body, "ollama#/$defs/show")
    name = body.get("model") or body.get("name")
    return None if name is None else str(name)


def version(server: str) -> dict[str, Any]:
    """Return the version of the API, and our own."""
    return {"version": API, "server": server}


def tags(served: Served) -> dict[str, Any]:
    """Return the list of models."""
    return {"models": [{**_listed(served), "modified_at": timestamp(served.since)}]}


def running(served: Served) -> dict[str, Any]:
    """Return the list of loaded models."""
    one = {**_listed(served), "expires_at": NEVER, "size_vram": 0, "context_length": served.context}
    return {"models": [one]}


def show(served: Served) -> dict[str, Any]:
    """Return the model's facts; `template` and `capabilities` tell clients whether it fills in."""
    variant = served.variant
    defaults = {"num_ctx": served.context, "temperature": variant.temperature, "top_p": variant.top_p}
    parameters = "\n".join(f"{name} {value}" for name, value in defaults.items())
    return {
        "modelfile": f"# Served by llama-endpoints\nFROM {variant.name}\n",
        "parameters": parameters,
        "template": _template(variant),
        "details": _details(variant),
        "model_info": _info(served),
        "capabilities": ["completion", *(["insert"] if variant.infill.value else [])],
        "modified_at": timestamp(served.since),
    }


def _listed(served: Served) -> dict[str, Any]:
    variant = served.variant
    name = f"{variant.name}{TAG}"
    row = json.dumps(variant.to_dict(), sort_keys=True).encode()
    return {
        "name": name,
        "model": name,
        "size": variant.shape.weight_bytes(4 if variant.dtype == "float32" else 2),
        "digest": hashlib.sha256(row).hexdigest(),
        "details": _details(variant),
    }


def _details(variant: ModelVariant) -> dict[str, Any]:
    millions = variant.shape.parameters / 1e6
    quantized = variant.quantization
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": f"{millions / 1e3:.1f}B" if millions >= 1e3 else f"{millions:.1f}M",
        "quantization_level": quantized.weights.upper()
        if quantized
        else _QUANTIZATION.get(variant.dtype, variant.dtype),
    }


def _info(served: Served) -> dict[str, Any]:
    shape = served.variant.shape
    return {
        "general.architecture": "llama",
        "general.basename": served.variant.name,
        "general.parameter_count": shape.parameters,
        "llama.context_length": served.context,
        "llama.embedding_length": shape.hidden,
        "llama.block_count": shape.layers,
        "llama.feed_forward_length": shape.ffn,
        "llama.attention.head_count": shape.heads,
        "llama.attention.head_count_kv": shape.kv_heads,
        "llama.rope.freq_base": served.variant.rope_theta,
        "llama.vocab_size": shape.vocab,
    }


def _template(variant: ModelVariant) -> str:
    """Return the dialog's format in Go's template language, with the infilling one in front where there is one."""
    dialogs = {DialogFormat.INST: _INST, DialogFormat.SOURCE: _SOURCE, None: _PLAIN}
    plain = dialogs[variant.dialog]
    return f"{_MARKED}{plain}{{{{- end }}}}" if variant.infill.value else plain
