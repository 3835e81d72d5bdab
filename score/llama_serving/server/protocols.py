"""Which protocol is spoken at which path."""

from typing import Final

from llama_serving.contract import llamacpp, ollama, openai
from llama_serving.contract.adapter import ProtocolAdapter
from llama_serving.contract.azure import Azure
from llama_serving.contract.llamacpp import LlamaCpp
from llama_serving.contract.mlflow import MLflow
from llama_serving.contract.ollama import Ollama
from llama_serving.contract.ollama_models import UNSUPPORTED
from llama_serving.contract.openai import OpenAI

PROTOCOLS: Final[dict[str, ProtocolAdapter]] = {
    "/score": Azure(),
    "/invocations": MLflow(),
    **{f"{prefix}/completions": OpenAI(openai.parse_completion) for prefix in openai.PREFIXES},
    **{f"{prefix}/chat/completions": OpenAI(openai.parse_chat) for prefix in openai.PREFIXES},
    "/api/generate": Ollama(ollama.parse_generate),
    "/api/chat": Ollama(ollama.parse_chat),
    "/completion": LlamaCpp(llamacpp.parse_completion),
    "/infill": LlamaCpp(llamacpp.parse_infill),
}
"""Protocol of every route that generates."""
INFO: Final = tuple(f"{prefix}/info" for prefix in openai.PREFIXES)
"""Where Azure's inference clients ask for the model's description."""
OLLAMA: Final = ("/api/tags", "/api/ps", "/api/show", "/api/version")
"""Ollama's paths that describe the model."""
LLAMACPP: Final = ("/props", "/slots")
"""llama.cpp's paths that describe the server."""
TOKENS: Final = ("/tokenize", "/detokenize")
"""Paths of vLLM and llama.cpp that encode and decode."""
ROOT: Final = "/"
"""Where Ollama's clients look whether there is a server."""
KNOWN: Final = frozenset(
    (*PROTOCOLS, *INFO, *OLLAMA, *UNSUPPORTED, *LLAMACPP, *TOKENS, ROOT, "/v1/models", "/models", "/version", "/metrics",
     "/openapi.json")
)  # fmt: skip
"""Routes that metrics distinguish, besides the probes; arbitrary paths would make arbitrarily many labels."""


def spoken_at(path: str) -> ProtocolAdapter | None:
    """Return the protocol of a path's error responses."""
    if path.startswith("/api/"):
        return PROTOCOLS["/api/generate"]
    if path in (*LLAMACPP, *TOKENS):
        return PROTOCOLS["/completion"]
    openais = path.startswith(("/v1/", "/models")) or path in INFO
    return PROTOCOLS["/v1/completions"] if openais else PROTOCOLS.get(path)
