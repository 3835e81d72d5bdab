"""vLLM's `/tokenize` and `/detokenize`. Its other bodies are OpenAI's, with fields of its own."""

from typing import Any

from llama_serving.contract import inputs, tools
from llama_serving.contract.request import Body, Dialog
from llama_serving.contract.strict_json import present
from llama_serving.contract.validation import validate


def parse_tokenize(body: Body) -> tuple[str | Dialog, bool]:
    """Return the text or dialog to encode, and whether a text begins as a prompt does.

    Raises:
        BadRequest: the body is invalid.
    """
    body = present(body)
    if "messages" not in body:
        validate(body, "vllm#/$defs/tokenize")
        return body["prompt"], body.get("add_special_tokens", True)
    validate(body, "vllm#/$defs/tokenize_dialog")
    continued = bool(body.get("continue_final_message"))
    return inputs.dialog(tools.told(body["messages"]), "messages", continued=continued), True


def tokens(ids: list[int], context: int, names: list[str] | None) -> dict[str, Any]:
    """Return the response of `/tokenize`; `names` are those of the ids in the vocabulary, if they are requested."""
    return {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": names}


def parse_detokenize(body: Body) -> list[int]:
    """Return the ids to decode.

    Raises:
        BadRequest: the body is invalid.
    """
    body = present(body)
    validate(body, "vllm#/$defs/detokenize")
    return [int(i) for i in body["tokens"]]


def text(decoded: str) -> dict[str, Any]:
    """Return the response of `/detokenize`, with the text under vLLM's name and llama.cpp's."""
    return {"prompt": decoded, "content": decoded}
