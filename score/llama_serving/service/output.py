"""The output of one sequence: tokens in, text and results out."""

from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import starmap
from typing import Final

from llama_serving.contract.content_filter import Finding, blocks
from llama_serving.contract.receipt import Receipt
from llama_serving.contract.request import Alternative, Delta, Generation, Request, Times, TokenLogprob, Usage
from llama_serving.engine.handle import Handle, Token
from llama_serving.errors import Unavailable
from llama_serving.prompts.builder import Prompt
from llama_serving.prompts.text_end import Patience, TextEnd
from llama_serving.prompts.tokenizer import TextDecoder, Tokenizer
from llama_serving.sampling_params import FinishReason
from llama_serving.service.prompt_logprobs import PromptLogprobs

RETRY_AFTER_S: Final = 5


class SequenceOutput:
    """The text, tokens and log-probabilities of one sequence, collected as it runs.

    Args:
        receipt: writes the result's receipt, if one is requested.
    """

    def __init__(  # noqa: PLR0913  (one call site)
        self,
        handle: Handle,
        prompt: Prompt,
        request: Request,
        tokenizer: Tokenizer,
        *,
        receipt: Callable[[Generation], Receipt] | None = None,
        first: "SequenceOutput | None" = None,
    ) -> None:
        parameters = request.parameters
        self.handle = handle
        self._prompt = prompt
        self._request = request
        self._receipt = receipt
        self._num_streamed = 0
        self._full = bool(parameters.return_full_text)
        self._tokenizer = tokenizer
        self._decoder = TextDecoder(tokenizer)
        self._end = TextEnd.of(request, prompt)
        self._tokens: list[tuple[Token, int]] = []
        self._ends: list[int] = []
        """Where each token ends in the decoded text; one character more if it ends inside of one."""
        self._decoded: list[str] = []
        self._num_decoded = 0
        self._text = ""
        self._findings: tuple[Finding, ...] = ()
        self._cut: int | None = None
        self._wants_logprobs = parameters.logprobs is not None
        self._counts = request.continuous_usage
        self._reading: PromptLogprobs = (
            PromptLogprobs(handle, prompt, tokenizer) if first is None else first._reading  # noqa: SLF001  (its own)
        )
        self._prompt_told = False

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens."""
        return len(self._prompt.token_ids)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the sequence ended, for logs and traces; None while it runs."""
        return self.handle.finish_reason if self._cut is None else "content_filter"

    def pieces(self) -> Iterator[str]:
        """Yield the text as it becomes certain, with the prompt around it if that was requested."""
        yield self.before
        for token in self.handle:
            yield self._push(token)
            if self._end.found:
                break
        yield self._finish()

    async def apieces(self) -> AsyncGenerator[str, None]:
        """Do as `pieces` for an event loop; all tokens that have arrived make one piece."""
        yield self.before
        async with aclosing(self.handle.arrivals()) as arrivals:
            async for tokens in arrivals:
                yield self._push_all(tokens)
                if self._end.found:
                    break
        yield self._finish()

    def delta(self, index: int, text: str, *, shown: int | None = None) -> Delta | None:
        """Return `text` with the tokens since the last call if ids are requested; None if there is neither.

        Args:
            index: of the sequence.
            text: the next piece.
            shown: characters of the text so far that tokens may stand for; None is all.
        """
        usage = self.usage if self._counts else None
        if not self._request.return_token_ids:
            return Delta(index, text, usage=usage, prompt_logprobs=self._told_of_prompt()) if text else None
        until = len(self._tokens) if shown is None else self._num_within(shown)
        new, self._num_streamed = self._tokens[self._num_streamed : until], until
        if not text and not new:
            return None
        first = bool(new) and len(new) == self._num_streamed
        return Delta(
            index,
            text,
            prompt_token_ids=self._prompt.token_ids if first else None,
            token_ids=tuple(token.id for token, _ in new),
            logprobs=tuple(self._logprobs(new)) if self._wants_logprobs else None,
            usage=usage,
            prompt_logprobs=self._told_of_prompt(),
        )

    @property
    def is_heavy(self) -> bool:
        """Whether its deltas may take long to make: a long prompt's log-probabilities and receipts do."""
        return self._request.scores_prompt or bool(self._request.parameters.receipt)

    @property
    def usage(self) -> Usage:
        """Number of tokens read and generated so far."""
        return Usage(self.prompt_tokens, len(self._tokens))

    def last_delta(self, index: int) -> Delta:
        """Return the end of a streamed sequence, once `pieces` has ended.

        Raises:
            Unavailable: as in `generation`.
        """
        generation, usage = self.generation(), self.usage if self._counts else None
        told = None if self._prompt_told else self._of_prompt()
        return Delta(index, "", generation, usage=usage, prompt_logprobs=told)

    def result(self) -> Generation:
        """Wait for the end and return the whole result."""
        self.handle.wait()
        for _ in self.pieces():
            pass
        return self.generation()

    @property
    def before(self) -> str:
        """The prompt in front of the text, if it was requested."""
        return self._prompt.before if self._full else ""

    @property
    def after(self) -> str:
        """The suffix behind the text, if it was requested."""
        return self._prompt.after if self._full else ""

    @property
    def text(self) -> str:
        """The text that is certain so far, without the prompt."""
        return self._text

    @property
    def exposed(self) -> str:
        """The text, with what a stop string has cut off if ids or log-probabilities of its tokens are returned."""
        shows_tokens = self._request.return_token_ids or self._wants_logprobs
        cut_off = self._num_decoded > len(self._text)
        return "".join(self._decoded) if shows_tokens and cut_off else self._text

    def judge(self, findings: Sequence[Finding], shown: int) -> None:
        """Record what guards found. If it blocks, the sequence ends and its result holds only `shown` characters of the text."""
        self._findings += tuple(one for one in findings if one not in self._findings)
        if blocks(findings):
            self.handle.cancel()
            self._cut = shown
            self._text = self._text[:shown]

    def _push_all(self, tokens: Sequence[Token]) -> str:
        """Decode tokens up to the first stop string."""
        pieces = []
        for token in tokens:
            pieces.append(self._push(token))
            if self._end.found:
                break
        return "".join(pieces)

    def _push(self, token: Token) -> str:
        before = self._num_decoded
        text = self._decoder.push(token.id)
        self._decoded.append(text)
        end = self._num_decoded = before + len(text)
        self._tokens.append((token, max(before, end - self._own(token)) if text else before))
        self._ends.append(end + self._decoder.pending)
        piece = self._append(self._end.push(text))
        if self._end.found:
            self.handle.cancel()
        return piece

    def _own(self, token: Token) -> int:
        """Number of characters that belong to the token: characters before them complete earlier tokens."""
        raw = self._tokenizer.piece(token.id)
        return len(raw) if raw.isascii() else len(TextDecoder(self._tokenizer).push(token.id))

    def _finish(self) -> str:
        cut_off = self._finish_reason() != "stop"
        return self._append(self._end.finish(self._decoder.finish(), cut_off=cut_off)) + self.after

    def generation(self) -> Generation:
        """Return the result, once `pieces` has ended.

        Raises:
            Unavailable: the engine was closed before the end.
        """
        if self.handle.finish_reason == "cancelled" and not self._end.found and self._cut is None:
            raise Unavailable("The engine was stopped before the text was complete. Send the request again.",
                              retry_after=RETRY_AFTER_S)  # fmt: skip
        cut = self._cut is not None
        made = Generation(
            text=self._text,
            full_text=self.before + self._text + ("" if cut else self.after),
            finish_reason=self._finish_reason(),
            usage=self.usage,
            logprobs=self._all_logprobs() if self._wants_logprobs else None,
            prompt_logprobs=self._of_prompt(),
            prompt_token_ids=self._prompt.token_ids,
            token_ids=tuple(token.id for token, _ in self._shown_tokens()),
            stopped_by="" if cut else self._end.stopped_by,
            truncated=self._prompt.truncated,
            times=self._times(),
            findings=self._findings,
        )
        return made if self._receipt is None else replace(made, receipt=self._receipt(made))

    def _num_within(self, shown: int) -> int:
        """Number of tokens that stand for the first `shown` characters alone."""
        return bisect_right(self._ends, shown)

    def _shown_tokens(self) -> list[tuple[Token, int]]:
        return self._tokens if self._cut is None else self._tokens[: self._num_within(self._cut)]

    def _finish_reason(self) -> FinishReason:
        if self._cut is not None:
            return "content_filter"
        if self._end.found:
            return "stop"
        # An engine says "stop" where the text was ended for want of patience, too.
        ended = self._tokens[-1][0].id in self._prompt.stop_ids if self._tokens else True
        out_of_patience = self._request.patience_s is not None and not ended
        reason = self.handle.finish_reason or "stop"
        return "length" if reason == "stop" and out_of_patience else reason

    def _times(self) -> Times:
        handle = self.handle
        if handle.first_at is None:
            return Times()
        return Times(handle.first_at - handle.submitted_at, handle.last_at - handle.first_at)

    def _append(self, piece: str) -> str:
        self._text += piece
        return piece

    def _logprobs(self, tokens: Sequence[tuple[Token, int]]) -> Iterator[TokenLogprob]:
        """Yield log-probabilities of the tokens in the text: none after a stop string, none of special tokens.

        If token ids or the prompt's tokens are requested, every token has one, so that the lists correspond.
        """
        for token, start in tokens:
            shown = (
                self._request.return_token_ids
                or self._request.echo_logprobs
                or (self._tokenizer.piece(token.id) and start < len(self._text))
            )
            if shown and token.logprob is not None:
                drawn = self._alternative(token.id, token.logprob)
                top = tuple(starmap(self._alternative, token.top))
                yield TokenLogprob(drawn, top, self._offset(start))

    def _of_prompt(self) -> tuple[TokenLogprob, ...] | None:
        number = self._request.parameters.prompt_logprobs
        return None if number is None else self._reading.tokens(number)

    def _told_of_prompt(self) -> tuple[TokenLogprob, ...] | None:
        """Return the log-probabilities of the prompt with the first token, if they are requested."""
        if self._prompt_told or not self._tokens:
            return None
        self._prompt_told = True
        return self._of_prompt()

    def _all_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Return log-probabilities of the text's tokens, those of the prompt first if they are requested with it."""
        own = tuple(self._logprobs(self._shown_tokens()))
        if not self._request.echo_logprobs:
            return own
        return (*self._reading.tokens(self._request.parameters.logprobs or 0), *own)

    def _alternative(self, token_id: int, logprob: float | None) -> Alternative:
        return Alternative(token_id, self._tokenizer.piece(token_id), logprob)

    def _offset(self, start: int) -> int:
        """Return where the text at `start` is in the returned text: after the prompt, before a stop string."""
        within = min(start, len(self._text)) if self._end.found else start
        return within + (len(self._prompt.before) if self._full else 0)


class EndChecker:
    """Tells the engine, in the same step, that the text has ended."""

    def __init__(self, request: Request, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self._decoder = TextDecoder(tokenizer)
        self._end = TextEnd.of(request, prompt)
        self._patience = Patience(request.patience_s)

    @classmethod
    def where_needed(cls, request: Request, prompt: Prompt, tokenizer: Tokenizer) -> "EndChecker | None":
        """Return one if the text may end before the engine ends it."""
        parameters = request.parameters
        needed = parameters.stop or parameters.editor_stops or request.patience_s is not None
        return cls(request, prompt, tokenizer) if needed else None

    def __call__(self, token_id: int) -> bool:
        text = self._decoder.push(token_id)
        self._end.push(text)
        return self._end.found or self._patience.is_over(text)
