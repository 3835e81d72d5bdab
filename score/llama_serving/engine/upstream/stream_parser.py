"""Parses the events of one response into tokens. Pure; anything unexpected is an error."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn

from llama_serving.engine.handle import Token
from llama_serving.engine.upstream import error_mapping
from llama_serving.sampling_params import FinishReason, SamplingParams

_TOKEN: Final = re.compile(r"token_id:([0-9]{1,9})")
_DONE: Final = "[DONE]"


class StreamedCompletion:
    """One sequence as the upstream server streams it.

    Attributes:
        finish_reason: why it ended, once a chunk has it.
        complete: its end and its token count were received.
        prompt: the prompt's tokens after the first, with their log-probabilities, if they are requested.
    """

    def __init__(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        self._prompt_ids = tuple(prompt_ids)
        self._params = params
        self._count = 0
        self._last: int | None = None
        self._prompt_seen = self._counted = False
        self._most = max(params.max_new_tokens, 1)
        self.finish_reason: FinishReason | None = None
        self.complete = False
        self.prompt: list[Token] = []

    def read(self, data: str) -> list[Token]:
        """Return the tokens in one event's data.

        Raises:
            ServingError: the event reports an error, or does not belong to this response.
        """
        if data == _DONE:
            if self.finish_reason is None or not self._counted:
                _malformed("a stream that ends before its sequence does")
            if self._params.prompt_logprobs is not None and len(self.prompt) != len(self._prompt_ids) - 1:
                _malformed("no log-probabilities of the prompt")
            self.complete = True
            return []
        chunk = _object(data)
        if chunk.get("error") is not None:
            raise error_mapping.in_stream(chunk["error"])
        choices = chunk.get("choices")
        if not isinstance(choices, list) or len(choices) > 1:
            _malformed("a chunk without its one choice")
        tokens = self._tokens(choices[0]) if choices else []
        if isinstance(chunk.get("usage"), dict) and not choices:
            self._check(chunk["usage"])
        return tokens

    def _tokens(self, choice: Any) -> list[Token]:
        if not isinstance(choice, dict) or choice.get("index") != 0:
            _malformed("a choice that is not the one asked for")
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids):
            _malformed("a chunk without token ids")
        if ids and self.finish_reason is not None:
            _malformed("tokens behind the end")
        self._check_prompt(choice.get("prompt_token_ids"))
        if not self._prompt_seen and ids:
            _malformed("tokens without the ids of their prompt")
        tokens = _with_logprobs(ids, self._after_prompt(choice), self._params.logprobs)
        self._count += len(ids)
        self._last = ids[-1] if ids else self._last
        if self._count > self._most:
            _malformed("more tokens than were asked for")
        if choice.get("finish_reason") is not None:
            self.finish_reason = self._reason(choice.get("stop_reason"), choice["finish_reason"])
        return tokens

    def _after_prompt(self, choice: Mapping[str, Any]) -> Any:
        """Return a chunk's log-probabilities of the text, once those of the prompt are read."""
        number, logprobs = self._params.prompt_logprobs, choice.get("logprobs")
        if number is None or self.prompt:
            return logprobs
        try:
            if choice.get("prompt_logprobs") is not None:
                _, *steps = choice["prompt_logprobs"]
                self.prompt = [
                    _of_prompt(token, step, number)
                    for token, step in zip(self._prompt_ids[1:], steps, strict=True)
                ]
            elif logprobs is not None and logprobs["token_logprobs"][:1] == [None]:
                return self._after_echo(logprobs, number)
        except (TypeError, KeyError, ValueError, AttributeError):
            _malformed("log-probabilities of the prompt that can't be read")
        return logprobs

    def _after_echo(self, logprobs: Mapping[str, list[Any]], number: int) -> Mapping[str, list[Any]]:
        """Read the log-probabilities of a prompt that stand before those of the text; return the latter."""
        end = len(self._prompt_ids)
        self.prompt = _with_logprobs(
            self._prompt_ids[1:], {name: each[1:end] for name, each in logprobs.items()}, number
        )
        self.prompt = [replace(token, rank=_rank(token)) for token in self.prompt]
        return {name: each[end:] for name, each in logprobs.items()}

    def _check_prompt(self, ids: Any) -> None:
        """Check that the server has read exactly our prompt."""
        if ids is None:
            return
        if not isinstance(ids, list) or tuple(ids) != self._prompt_ids:
            _malformed("the ids of another prompt")
        self._prompt_seen = True

    def _reason(self, why: Any, said: Any) -> FinishReason:
        if said == "stop" and self._last in self._params.stop_ids:
            return "stop"
        if "deadline" in (said, why):  # (`finish_reason` of our own server's older versions)
            return "deadline"
        if said == "length" and self._count == self._most:
            return "length"
        if said == "content_filter":  # a guard of that server
            return "content_filter"
        if said in ("abort", "cancelled"):
            raise error_mapping.broken("it aborted the sequence")
        raise error_mapping.malformed("an end that was not asked for")

    def _check(self, usage: Mapping[str, Any]) -> None:
        """Check that no token was lost or repeated. (Usage counts the tokens that a guard has held back, too.)"""
        if self.finish_reason == "content_filter":
            self._counted = True
            return
        said = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        if said != (len(self._prompt_ids), self._count):
            _malformed("another number of tokens than it says")
        self._counted = True


def _object(data: str) -> dict[str, Any]:
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        _malformed("an event that is no JSON")
    if not isinstance(chunk, dict):
        _malformed("an event that is no object")
    return chunk


def _with_logprobs(ids: Sequence[int], logprobs: Any, num_top: int | None) -> list[Token]:
    if num_top is None:
        return [Token(i) for i in ids]
    if not ids:
        return []
    try:
        steps = list(zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True))
        tokens = [
            Token(_id(spelled), float(logprob), _best(top or {}, num_top)) for spelled, logprob, top in steps
        ]
    except (TypeError, KeyError, ValueError, AttributeError):
        _malformed("log-probabilities that can't be read")
    if [token.id for token in tokens] != list(ids):
        _malformed("log-probabilities of other tokens")
    return tokens


def _of_prompt(token: int, step: Mapping[str, Any], number: int) -> Token:
    """Return a prompt's token from the log-probabilities by id at its place."""
    by_id = {int(key): one for key, one in step.items()}
    others = sorted((one["rank"], i) for i, one in by_id.items() if one["rank"] <= number)
    top = tuple((i, float(by_id[i]["logprob"])) for _, i in others)
    return Token(token, float(by_id[token]["logprob"]), top, int(by_id[token]["rank"]))


def _rank(token: Token) -> int | None:
    """Return a token's place among the most likely ones; None if it is not among those that are reported."""
    return next((place for place, (i, _) in enumerate(token.top, 1) if i == token.id), None)


def _best(top: Mapping[str, float], num_top: int) -> tuple[tuple[int, float], ...]:
    """Return the most likely tokens, best first; the drawn one, always sent along, only if it is among them."""
    ranked = sorted(((_id(spelled), float(value)) for spelled, value in top.items()), key=lambda one: -one[1])
    return tuple(ranked[:num_top])


def _id(spelled: str) -> int:
    match = _TOKEN.fullmatch(spelled)
    if match is None:
        raise ValueError(spelled)
    return int(match[1])


def _malformed(what: str) -> NoReturn:
    raise error_mapping.malformed(what)
