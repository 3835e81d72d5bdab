"""Any input -> the model's prompt."""

from dataclasses import dataclass
from typing import Final

from llama_serving.catalog import ModelVariant
from llama_serving.contract.request import UNLIMITED, Completion, Dialog, Infill, Input, Request, TokenIds
from llama_serving.errors import BadRequest, ServingError
from llama_serving.prompts import chat, completion, infill, segments
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import DEFAULT_MAX_NEW_TOKENS


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the model.

    Attributes:
        text: without special tokens, in the order in which the model reads it.
        before: text in front of the generated text, if the full text is requested.
        after: text behind it: the suffix of an infilling prompt.
        token_ids: all ids, special ones included.
        stop_ids: ids that end the completion.
        infill: whether `before` and `after` are the two ends of a gap.
        truncated: part of it was left out, as the request allowed.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_ids: frozenset[int]
    before: str
    after: str = ""
    infill: bool = False
    truncated: bool = False


MOST_ENCODED: Final = 131_072
"""Characters that are encoded where a prompt need not fit the context, at most; or, if those are more, so many for each of its
tokens:"""
CHARACTERS: Final = 8
LEAST_MIDDLE: Final = 64
"""Tokens that an infilling prompt which is fitted into the context leaves for the middle, if as many are asked for."""


@dataclass(frozen=True, slots=True)
class PromptBuilder:
    """Builds prompts for one model.

    Attributes:
        context: tokens that the prompt and one generated token must fit into.
    """

    tokenizer: Tokenizer
    variant: ModelVariant
    context: int

    def build_one(self, request: Request, index: int) -> Prompt:
        """Return the prompt of one input of a request.

        Raises:
            BadRequest: as in `build`, with the input's path and index.
        """
        try:
            given, most = request.inputs[index], request.parameters.max_new_tokens
            least = LEAST_MIDDLE if isinstance(given, Infill) and given.fitted else 1
            new_tokens = least if most is None or most == UNLIMITED else most
            kept = request.truncate_prompt_tokens
            if kept is not None:
                given = self._shortened(given, kept, most)
            return self.build(given, new_tokens, request.called("max_new_tokens"))
        except BadRequest as error:
            raise located(error, request, index) from None

    def build(self, prompt: Input, new_tokens: int = 1, called: str = "max_new_tokens") -> Prompt:
        """Return the prompt of one input.

        Args:
            prompt: the client's input.
            new_tokens: tokens requested, for the error message.
            called: the client's name of that parameter.

        Raises:
            BadRequest: the model lacks the format, or the prompt leaves no room in the context.
        """
        prompt = self._unmarked(prompt)
        if isinstance(prompt, Infill) and prompt.fitted:
            return self._fitted(prompt, new_tokens)
        parts = self._segments(prompt)
        at_least = self.tokenizer.fewest_tokens(segments.characters(parts))
        if at_least >= self.context:
            raise self.too_long(at_least, new_tokens, called, at_least=True)
        ids = segments.encode(parts, self.tokenizer)
        if len(ids) >= self.context:
            raise self.too_long(len(ids), new_tokens, called)
        if isinstance(prompt, TokenIds):
            text = self._decoded(prompt.ids)
            return Prompt(text, ids, self._stop_ids(prompt), before=text, truncated=prompt.shortened)
        text = segments.shown(parts)
        if isinstance(prompt, Infill):
            return Prompt(text, ids, self._stop_ids(prompt), prompt.prefix, prompt.suffix, infill=True)
        return Prompt(text, ids, self._stop_ids(prompt), before=text)

    def encode(self, prompt: Input) -> tuple[int, ...]:
        """Return the ids of one input, however many they are.

        Raises:
            BadRequest: the model lacks the format, or the text is much longer than the context.
        """
        parts = self._segments(prompt)
        characters, most = segments.characters(parts), max(MOST_ENCODED, CHARACTERS * self.context)
        if characters > most:
            raise BadRequest(
                f"The prompt has {characters} characters; at most {most} are encoded. Send a shorter text.",
                code="invalid_value",
            )
        return segments.encode(parts, self.tokenizer)

    def _shortened(self, prompt: Input, kept: int, new_tokens: int | None) -> Input:
        """Return the last `kept` tokens of a prompt that has more; if it is -1, as many as leave room for new ones.

        `new_tokens` are requested; a prompt that fits the context alone is not shortened for them.
        """
        ids = self.encode(prompt)
        if kept == -1:
            wanted = DEFAULT_MAX_NEW_TOKENS if new_tokens is None else max(new_tokens, 1)
            kept = len(ids) if len(ids) < self.context else self.context - min(wanted, self.context // 2)
        return prompt if len(ids) <= kept else TokenIds(ids[-kept:], shortened=True)

    def _fitted(self, prompt: Infill, new_tokens: int) -> Prompt:
        """Return an infilling prompt of which as much is left out as does not fit."""
        room = self.context - min(new_tokens, LEAST_MIDDLE, self.context // 2)
        parts, truncated = infill.fitted(prompt, self.variant, self.tokenizer, room)
        ids, stop_ids = segments.encode(parts, self.tokenizer), self._stop_ids(prompt)
        text = self._decoded(ids) if truncated else segments.shown(infill.segments(prompt, self.variant))
        return Prompt(text, ids, stop_ids, prompt.prefix, prompt.suffix, infill=True, truncated=truncated)

    def _unmarked(self, prompt: Input) -> Input:
        """Return the infilling prompt that a client wrote with its marks, where the model has infilling."""
        if self.variant.infill.value is None:
            return prompt
        if isinstance(prompt, Completion) and prompt.marked:
            return infill.unmarked(prompt.text) or prompt
        if isinstance(prompt, Dialog) and prompt.marked:
            return infill.unmarked(prompt.messages[0].content) or prompt
        return prompt

    def too_long(self, tokens: int, new_tokens: int, called: str, *, at_least: bool = False) -> BadRequest:
        """Return the error of a prompt that does not fit together with the requested tokens.

        Clients recognize a full context by "maximum context length is", which is OpenAI's wording.
        """
        return BadRequest(
            f"This model's maximum context length is {self.context} tokens, and this request exceeds it: the prompt has "
            f"{'at least ' if at_least else ''}{tokens} tokens, and {new_tokens} new "
            f"token{'' if new_tokens == 1 else 's'} may follow. Shorten the prompt or lower `{called}`.",
            code="context_exceeded",
        )

    def _segments(self, prompt: Input) -> segments.Segments:
        match prompt:
            case Completion():
                return completion.segments(prompt, self.variant)
            case TokenIds():
                return completion.from_ids(prompt, self.variant)
            case Infill():
                return infill.segments(prompt, self.variant)
            case Dialog():
                return chat.segments(prompt, self.variant)

    def _decoded(self, ids: tuple[int, ...]) -> str:
        text = b"".join(map(self.tokenizer.piece, ids)).decode("utf-8", "replace")
        return text.removeprefix(" ")  # the dummy space that encoding put in front

    def _stop_ids(self, prompt: Input) -> frozenset[int]:
        if isinstance(prompt, Infill):
            return frozenset({infill.tokens_of(self.variant).eot, self.variant.eos_id})
        return self.variant.stop_ids


def located(error: BadRequest, request: Request, index: int) -> ServingError:
    """Return the error with the path of its input, and the input's index if it is in a list.

    An error that names a parameter concerns all inputs and is returned as it is.
    """
    if error.param is not None:
        return error
    path = request.paths[index]
    return error.at(param=path, index=index if path.endswith("]") else None)
