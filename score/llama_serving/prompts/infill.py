"""Infilling: the two ends of a text with special ids between them (arXiv 2308.12950, section 2.3).

The formats are those of `infilling_prompt_tokens` in Meta's github.com/meta-llama/codellama.
"""

from llama_serving.catalog import InfillOrder, InfillTokens, ModelVariant
from llama_serving.contract.request import Infill
from llama_serving.errors import BadRequest
from llama_serving.prompts.segments import Continuation, Segments, Special, Text


def tokens_of(variant: ModelVariant) -> InfillTokens:
    """Return the variant's infilling ids.

    Raises:
        BadRequest: the model has no infilling.
    """
    tokens = variant.infill.value
    if tokens is None:
        raise BadRequest(
            f"{variant.name} can't fill in the middle ({variant.infill.source}). Send a plain prompt, or use "
            "CodeLlama 7B or 13B, base or Instruct.",
            code="infilling_unsupported",
        )
    return tokens


def segments(prompt: Infill, variant: ModelVariant) -> Segments:
    """Return prefix-suffix-middle or suffix-prefix-middle, as the variant's row says."""
    tokens = tokens_of(variant)
    pre, suf = Special("PRE", tokens.prefix), Special("SUF", tokens.suffix)
    mid, bos = Special("MID", tokens.middle), Special("BOS", variant.bos_id)
    prefix, suffix = Text(prompt.prefix), Continuation(prompt.suffix)
    if tokens.order is InfillOrder.PSM:
        # <s> <PRE> {prefix} <SUF>{suffix} <MID>
        return (bos, pre, prefix, suf, suffix, mid)
    # <s> <PRE> <SUF>{suffix} <MID> {prefix}
    return (bos, pre, suf, suffix, mid, prefix)
