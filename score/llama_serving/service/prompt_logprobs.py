"""The log-probabilities of one prompt, which its first sequence has the engine compute, and all its sequences share."""

from collections.abc import Sequence
from itertools import starmap

from llama_serving.contract.request import Alternative, TokenLogprob
from llama_serving.engine.handle import Handle
from llama_serving.errors import InternalError
from llama_serving.prompts.builder import Prompt
from llama_serving.prompts.tokenizer import TextDecoder, Tokenizer


class PromptLogprobs:
    """See the module.

    Args:
        handle: of the prompt's first sequence.
        prompt: whose tokens they are.
        tokenizer: of the model.
    """

    def __init__(self, handle: Handle, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self._handle, self._prompt, self._tokenizer = handle, prompt, tokenizer
        self._made: dict[int, tuple[TokenLogprob, ...]] = {}

    def tokens(self, number: int) -> tuple[TokenLogprob, ...]:
        """Return the prompt's tokens with `number` alternatives each; the first one has no log-probability.

        They are there when the first token is generated, and at the end, unless a deadline came before.

        Raises:
            InternalError: the engine ended without them.
        """
        if number not in self._made:
            self._made[number] = self._tokens(number)
        return self._made[number]

    def _tokens(self, number: int) -> tuple[TokenLogprob, ...]:
        first, *rest = ids = self._prompt.token_ids
        read = self._handle.prompt
        whole = len(read) == len(rest)
        if not whole and self._handle.finish_reason not in ("deadline", "cancelled"):
            raise InternalError("The log-probabilities of the prompt are missing. Send the request again.")
        offsets = self._offsets(ids)
        return (
            TokenLogprob(self._alternative(first, None), (), offsets[0]),
            *(
                TokenLogprob(
                    self._alternative(token.id, token.logprob),
                    tuple(starmap(self._alternative, token.top[:number])),
                    offset,
                    token.rank,
                )
                for token, offset in zip(read, offsets[1:], strict=whole)
            ),
        )

    def _offsets(self, ids: Sequence[int]) -> list[int]:
        """Return where each token begins in the prompt's text, which lacks the space that encoding put in front."""
        decoder, ends = TextDecoder(self._tokenizer), [0]
        for token in ids:
            ends.append(ends[-1] + len(decoder.push(token)))
        missing = ends[-1] + len(decoder.finish()) - len(self._prompt.before)
        return [max(0, end - max(0, missing)) for end in ends[:-1]]

    def _alternative(self, token_id: int, logprob: float | None) -> Alternative:
        return Alternative(token_id, self._tokenizer.piece(token_id), logprob)
