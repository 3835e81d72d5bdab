"""Answers with their words and numbers taken out, to compare what is left with the shape that a protocol has."""

from typing import Any

from llama_serving.contract.request import Alternative, Generation, TokenLogprob, Usage
from llama_serving.sampling_params import FinishReason


def shape(value: Any) -> Any:
    """The same JSON value with "text" for every string and 0 for every number."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, str):
        return "text"
    return value if value is None or isinstance(value, bool) else 0


def generation(
    text: str = "out",
    *,
    before: str = "",
    reason: FinishReason = "stop",
    usage: tuple[int, int] = (3, 2),
    logprobs: tuple[TokenLogprob, ...] | None = None,
) -> Generation:
    """A sequence as the service hands it back."""
    return Generation(text, before + text, reason, Usage(*usage), logprobs)


LOGPROBS = (
    TokenLogprob(Alternative(5, b"a", -0.5), (Alternative(5, b"a", -0.5), Alternative(6, b"b", -1.5)), 0),
    TokenLogprob(Alternative(7, "é".encode(), -0.25), (Alternative(7, "é".encode(), -0.25),), 1),
)
"""Of the text `aé`."""
