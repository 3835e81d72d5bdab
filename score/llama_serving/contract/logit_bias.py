"""OpenAI's `logit_bias`: what is added to the logits of some tokens."""

from collections.abc import Mapping

from llama_serving.errors import BadRequest


def parse(name: str, value: Mapping[str, float], at: str) -> tuple[tuple[int, float], ...] | None:
    """Return the pairs of a token id and its bias, by id; None if there are none. The published schema has accepted the value.

    Args:
        name: of the field.
        value: of the field.
        at: its path in the body.

    Raises:
        BadRequest: two keys are the same token id.
    """
    del name
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if int(key) in biases:
            raise BadRequest(
                f"`{at}` has the token id {int(key)} twice. Send it once.", code="invalid_value", param=at
            )
        biases[int(key)] = float(bias)
    return tuple(sorted((token, bias) for token, bias in biases.items() if bias)) or None
