"""Completion prompts: BOS and the text, or the client's own ids."""

from llama_serving.catalog import ModelVariant
from llama_serving.contract.request import Completion, TokenIds
from llama_serving.errors import BadRequest
from llama_serving.prompts.segments import Ids, Segments, Special, Text


def segments(prompt: Completion, variant: ModelVariant) -> Segments:
    """Return `<s>{text}`."""
    return (Special("BOS", variant.bos_id), Text(prompt.text))


def from_ids(prompt: TokenIds, variant: ModelVariant) -> Segments:
    """Return the client's ids, exactly: no BOS is added.

    Raises:
        BadRequest: an id is outside the model's vocabulary.
    """
    outside = next((i for i in prompt.ids if i >= variant.shape.vocab), None)
    if outside is not None:
        raise BadRequest(
            f"The token id {outside} is outside the vocabulary: {variant.name} has the ids 0 to "
            f"{variant.shape.vocab - 1}.",
            code="invalid_value",
        )
    return (Ids(prompt.ids),)
