"""What is collected of one request, in the shape of Azure's data collector."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from llama_serving.contract.json_lines import json_line
from llama_serving.contract.request import FILL_MARKER, Completion, Dialog, Infill, Input, TokenIds

if TYPE_CHECKING:
    from llama_serving.service.collection.redaction import Redaction

COMPLETE: Final = "complete"
GONE: Final = "client_gone"
PROMPT: Final = "prompt"
TEXT: Final = "text"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a dialog."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class CollectedInput:
    """One input of a request.

    Attributes:
        prompt: the text; of a dialog its last message, of a gap both ends with `<FILL_ME>` between them.
        earlier: a dialog's messages before the last one, and what is said of functions first.
        role: of the last message of a dialog; empty if it is none.
        extra: texts from elsewhere that an infilling prompt brings along.
        gap: number of the prompt's characters that stand in front of the completion; None is all.
    """

    prompt: str
    earlier: tuple[Turn, ...] = ()
    role: str = ""
    extra: tuple[str, ...] = ()
    gap: int | None = None

    @property
    def context(self) -> str:
        """What the prompt stands in: earlier messages as JSON, or the texts from elsewhere."""
        if self.earlier:
            messages = [{"role": one.role, "content": one.content} for one in self.earlier]
            return json_line(messages)
        return "\n".join(self.extra)


@dataclass(frozen=True, slots=True)
class CollectedText:
    """One sequence as it was sent.

    Attributes:
        finish_reason: empty if the sequence has not ended.
    """

    completion: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class CollectedRequest:
    """One request.

    Attributes:
        request_id: the client's, or the server's where the client has none. Several requests may have one.
        seconds: since 1970, when the request came.
        model: its name.
        parameters: of its first sequence, numbers alone.
        inputs: its inputs; without texts unless the guards have passed all of them.
        outputs: for each input its sequences.
        end: `complete`, `client_gone`, or the code of the error that the request ended with.
        blocked: what a guard blocked: `prompt`, `text` or nothing.
        secrets: the keys that it came with.
        correlation_id: correlates the two sides; no other request has it.
    """

    request_id: str
    seconds: float
    model: str
    parameters: Mapping[str, Any]
    inputs: tuple[CollectedInput, ...]
    outputs: tuple[tuple[CollectedText, ...], ...]
    end: str = COMPLETE
    blocked: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    correlation_id: str = field(default_factory=lambda: uuid4().hex)

    @property
    def characters(self) -> int:
        """Number of characters in all texts."""
        return sum(map(len, self._texts()))

    def model_inputs(self) -> list[dict[str, Any]]:
        """Return a row for each sequence.

        Azure's monitoring joins the rows of both sides by `correlation_id` and their position.
        """
        return [
            {"prompt": one.prompt, "context": one.context, "parameters": dict(self.parameters)}
            for one, sequences in zip(self.inputs, self.outputs, strict=True)
            for _ in sequences
        ]

    def model_outputs(self) -> list[dict[str, Any]]:
        """Return a row for each sequence, in the order of `model_inputs`."""
        return [
            {
                "completion": one.completion,
                "finish_reason": one.finish_reason,
                "prompt_tokens": one.prompt_tokens,
                "completion_tokens": one.completion_tokens,
                "model": self.model,
                "request_id": self.request_id,
                "end": self.end,
                "blocked": self.blocked,
            }
            for sequences in self.outputs
            for one in sequences
        ]

    def redacted(self, redact: "Redaction") -> "CollectedRequest":
        """Return the request with all that a client or the model wrote redacted, and without its keys."""
        both = [_redacted(*one, redact) for one in zip(self.inputs, self.outputs, strict=True)]
        return replace(
            self,
            request_id=redact.by_form(self.request_id),
            inputs=tuple(given for given, _ in both),
            outputs=tuple(sequences for _, sequences in both),
            secrets=(),
        )

    def _texts(self) -> Iterator[str]:
        for one in self.inputs:
            yield one.prompt
            yield from (turn.content for turn in one.earlier)
            yield from one.extra
        yield from (one.completion for sequences in self.outputs for one in sequences)


def input_of(given: Input, text: str) -> CollectedInput:
    """Return what is collected of an input.

    Args:
        given: the client's input.
        text: as the model reads it, for an input of token ids.
    """
    match given:
        case Completion():
            return CollectedInput(given.text)
        case TokenIds():
            return CollectedInput(text)
        case Infill():
            return CollectedInput(
                f"{given.prefix}{FILL_MARKER}{given.suffix}", extra=given.extra, gap=len(given.prefix)
            )
        case Dialog():
            functions = (Turn("system", given.tools),) if given.tools else ()
            *earlier, last = (Turn(one.role, one.content) for one in given.messages)
            return CollectedInput(last.content, (*functions, *earlier), last.role)


def _redacted(
    given: CollectedInput, sequences: Sequence[CollectedText], redact: "Redaction"
) -> tuple[CollectedInput, tuple[CollectedText, ...]]:
    prompt, completions = redact.together(given.prompt, [one.completion for one in sequences], given.gap)
    clean = replace(
        given,
        prompt=prompt,
        earlier=tuple(replace(turn, content=redact(turn.content)) for turn in given.earlier),
        extra=tuple(map(redact, given.extra)),
        gap=None,  # (marks are of another length)
    )
    texts = zip(sequences, completions, strict=True)
    return clean, tuple(replace(one, completion=completion) for one, completion in texts)
