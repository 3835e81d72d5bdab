"""Requests of every kind that asks for a receipt, and replays of what they were answered with."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llama_endpoints.replay.claims import claims
from llama_endpoints.replay.replay import Replayer
from llama_endpoints.replay.requests import of_body
from llama_endpoints.replay.verdict import Verdict
from llama_serving.service.service import Service
from tests.support.endpoints import asked

Asked = tuple[str, dict[str, Any]]
"""A path, and a body for it."""

PROMPT: Final = "def f(x):\n    return"
CHAT: Final = [{"role": "user", "content": "Reverse a list"}]
_SCHEMA: Final = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"]}
_OPTIONS: Final = {"num_predict": 7, "temperature": 0.9}
_FUNCTION: Final = {"type": "function", "function": {"name": "f", "parameters": _SCHEMA}}
SAMPLED: Final = {"max_tokens": 7, "temperature": 1.2, "top_p": 1}

BODIES: Final[Mapping[str, Asked]] = {
    "score": ("/score", {"input_data": {"input_string": [PROMPT, "é", "class A:"], "parameters": {**SAMPLED, "n": 2}}}),
    "texts": ("/score", {"input_data": [PROMPT], "params": {**SAMPLED, "return_full_text": True, "logprobs": 2}}),
    "dialog": ("/score", {"input_data": {"input_string": CHAT}, "params": {**SAMPLED, "n": 3}}),
    "infilling": ("/score", {"input_data": {"input_string": ["def f(<FILL_ME>):"]}, "params": {**SAMPLED, "editor_stops": True}}),
    "mlflow": ("/invocations", {"inputs": [PROMPT], "params": {**SAMPLED, "repetition_penalty": 1.3, "seed": 3}}),
    "completion": ("/v1/completions", {"prompt": [PROMPT, "x"], **SAMPLED, "n": 2, "stop": ["e"], "return_token_ids": True}),
    "ids": ("/v1/completions", {"prompt": [1, 300, 301], **SAMPLED, "stop_token_ids": [13], "ignore_eos": True}),
    "held": ("/v1/completions", {"prompt": PROMPT, **SAMPLED, "n": 2, "stop": ["zq"], "logit_bias": {"300": 1}, "structured_outputs": {"regex": "[a-z]{1,9}"}}),
    "biased": ("/v1/completions", {"prompt": PROMPT, **SAMPLED, "logit_bias": {"300": 3.5, "13": -100}, "prompt_logprobs": 1}),
    "shortened": ("/v1/completions", {"prompt": PROMPT, **SAMPLED, "truncate_prompt_tokens": 3}),
    "nothing": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 0, "echo": True, "logprobs": 0}),
    "suffix": ("/v1/completions", {"prompt": "def f(", "suffix": "):", **SAMPLED, "max_tokens": 5}),
    "chat": ("/v1/chat/completions", {"messages": CHAT, **SAMPLED, "logprobs": True, "top_logprobs": 1}),
    "call": ("/v1/chat/completions", {"messages": CHAT, **SAMPLED, "max_tokens": 60, "tools": [_FUNCTION], "tool_choice": "required"}),
    "greedy": ("/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "temperature": 0}),
    "ollama": ("/api/generate", {"prompt": PROMPT, "raw": True, "stream": False, "options": _OPTIONS}),
    "ollama chat": ("/api/chat", {"messages": CHAT, "stream": False, "options": {**_OPTIONS, "seed": 9}, "format": _SCHEMA}),
    "llama.cpp": ("/completion", {"prompt": PROMPT, "n_predict": 7, "temperature": 0.9, "t_max_predict_ms": 60_000}),
    "llama.cpp infill": ("/infill", {"input_prefix": "def f(", "input_suffix": "):\n", "n_predict": 7, "response_fields": ["content"]}),
}  # fmt: skip
"""By name: each protocol, and each kind of input and of parameter."""


def with_receipt(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body, which asks for a receipt."""
    for place in ("params", "parameters"):
        if place in body:
            return {**body, place: {**body[place], "receipt": True}}
    if isinstance(body.get("input_data"), dict) and "parameters" in body["input_data"]:
        return {**body, "input_data": with_receipt(body["input_data"])}
    return {**body, "receipt": True}


def answered(service: Service, path: str, body: Mapping[str, Any]) -> Any:
    """The answer to the body with a receipt, as its client reads it."""
    return json.loads(json.dumps(asked(service, path, with_receipt(body))))


def replayed(service: Service, body: Mapping[str, Any], answer: Any) -> Sequence[Verdict]:
    """The verdicts on all receipts of an answer."""
    replayer = Replayer(service)
    return [
        replayer.replay(of_body(with_receipt(body), claim.receipt["protocol"]), claim)
        for claim in claims(answer)
    ]
