"""Completion: BOS, then the text as it is (or the ids that the client chose itself)."""

from llama_serving.catalog import ModelVariant
from llama_serving.contract.request import Completion, TokenIds
from llama_serving.errors import BadRequest
from llama_serving.prompts.segments import Ids, Segments, Special, Text


def segments(prompt: Completion, variant: ModelVariant) -> Segments:
    """`<s>{text}`."""
    return (Special("BOS", variant.bos_id), Text(prompt.text))


def from_ids(prompt: TokenIds, variant: ModelVariant) -> Segments:
    """The client's own ids, exactly: no BOS is added.

    Raises:
        BadRequest: an id lies outside the model's vocabulary.
    """
    outside = next((i for i in prompt.ids if i >= variant.shape.vocab), None)
    if outside is not None:
        raise BadRequest(
            f"The token id {outside} is outside the vocabulary: {variant.name} has the ids 0 to "
            f"{variant.shape.vocab - 1}.",
            code="invalid_value",
        )
    return (Ids(prompt.ids),)
