"""Infilling: the two ends of a text with special ids between them (arXiv 2308.12950, section 2.3).

The formats are those of `infilling_prompt_tokens` in Meta's github.com/meta-llama/codellama.
"""

from collections.abc import Sequence
from typing import Final

from llama_serving.catalog import InfillOrder, InfillTokens, ModelVariant
from llama_serving.contract.request import Infill
from llama_serving.errors import BadRequest
from llama_serving.prompts.segments import Continuation, Ids, Segment, Segments, Special, Text
from llama_serving.prompts.tokenizer import Tokenizer

MARKS: Final = ("<PRE>", " <SUF>", " <MID>")
"""Text of the special tokens, as clients write them that build the prompt themselves: `<PRE> {prefix} <SUF>{suffix} <MID>`."""
_SUFFIX_SHARE: Final = 4
"""A suffix that does not fit gets a fourth of the room, as llama.cpp has it: the prefix matters more."""


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
    return _ordered(
        (Text(prompt.prefix),), (Continuation(prompt.suffix),), _extra(prompt.extra), tokens, variant
    )


def fitted(prompt: Infill, variant: ModelVariant, tokenizer: Tokenizer, room: int) -> tuple[Segments, bool]:
    """Return a prompt of at most `room` tokens, and whether something was left out.

    What is farthest from the gap is left out: the oldest extra texts first, then the end of the suffix and the beginning
    of the prefix.

    Raises:
        BadRequest: the model has no infilling.
    """
    tokens = tokens_of(variant)
    room -= 4  # BOS and the three marks
    # Texts are cut before they are encoded: none of megabytes is.
    reach = room * tokenizer.max_piece_chars
    prefix, suffix = prompt.prefix[-reach:], prompt.suffix[:reach]
    before, after = tokenizer.encode(prefix), tokenizer.encode_continuation(suffix)
    kept_after = after[: max(room // _SUFFIX_SHARE, room - len(before))]
    kept_before = before[-(room - len(kept_after)) :] if room > len(kept_after) else []
    room -= len(kept_before) + len(kept_after)
    extra: list[Segment] = []
    for text in reversed(prompt.extra):
        ids = tokenizer.encode(text) if tokenizer.fewest_tokens(len(text)) <= room else None
        if ids is None or len(ids) > room:
            break
        room -= len(ids)
        extra.insert(0, Ids(tuple(ids)))
    cut = (
        (len(prefix), len(suffix)) != (len(prompt.prefix), len(prompt.suffix))
        or (len(kept_before), len(kept_after)) != (len(before), len(after))
        or len(extra) < len(prompt.extra)
    )
    ends = (Ids(tuple(kept_before)),), (Ids(tuple(kept_after)),)
    return _ordered(*ends, tuple(extra), tokens, variant), cut


def unmarked(text: str) -> Infill | None:
    """Return the infilling prompt that a text is, if it is one from its first mark to its last."""
    text = text.removeprefix("<s>").strip(" ")
    pre, suf, mid = (mark.strip() for mark in MARKS)
    if not (
        text.startswith(pre)
        and text.endswith(mid)
        and text.count(pre) == text.count(suf) == text.count(mid) == 1
    ):
        return None
    prefix, _, rest = text.removeprefix(pre).removesuffix(mid).partition(suf)
    # One space in front of each mark, and behind the first, belongs to the format.
    return Infill(prefix.removeprefix(" ").removesuffix(" "), rest.removesuffix(" "))


def _ordered(
    prefix: Segments, suffix: Segments, extra: Segments, tokens: InfillTokens, variant: ModelVariant
) -> Segments:
    """Return the parts in the variant's order, behind the extra texts: their tokens stay the same while somebody types."""
    pre, suf = Special("PRE", tokens.prefix), Special("SUF", tokens.suffix)
    mid, bos = Special("MID", tokens.middle), Special("BOS", variant.bos_id)
    if tokens.order is InfillOrder.PSM:
        # <s> <PRE> {prefix} <SUF>{suffix} <MID>
        return (bos, *extra, pre, *prefix, suf, *suffix, mid)
    # <s> <PRE> <SUF>{suffix} <MID> {prefix}
    return (bos, *extra, pre, suf, *suffix, mid, *prefix)


def _extra(texts: Sequence[str]) -> Segments:
    return tuple(map(Text, texts))
