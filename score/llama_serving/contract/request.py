"""What a request is, whatever protocol it came by. Frozen values, no behaviour beyond derived facts."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from llama_serving.sampling_params import FinishReason

FILL_MARKER: Final = "<FILL_ME>"

OPENAI_NAMES: Final[Mapping[str, str]] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "return_full_text": "echo",
}
"""What OpenAI's protocol (and vLLM's) calls a parameter."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A text to be continued, exactly as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt that the client has tokenized (OpenAI's `/v1/completions` takes it)."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Infill:
    """Two ends of a text whose middle is wanted."""

    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialog; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Dialog:
    """Messages that end with the user's, or with the assistant's that is to be continued.

    Attributes:
        continued: the last message is the assistant's, and its text goes on.
        unfold: a single user message that is itself a whole prompt in the family's format may be taken
            apart and rendered anew (OpenAI routes only).
    """

    messages: tuple[Message, ...]
    unfold: bool = False
    continued: bool = False


Input = Completion | TokenIds | Infill | Dialog


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the client asked for, under Azure's names; None is "not given"."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    num_return_sequences: int | None = None
    stop: tuple[str, ...] | None = None
    seed: int | None = None
    return_full_text: bool | None = None
    ignore_eos: bool | None = None
    logprobs: int | None = None
    details: bool | None = None
    stream: bool | None = None
    continue_final_message: bool | None = None

    @property
    def with_details(self) -> bool:
        """The answer has details: asking for log-probabilities is asking for them."""
        return bool(self.details) or self.logprobs is not None


class Reply(StrEnum):
    """The shape of the answer; it follows from the body."""

    ROWS = "rows"  # [{"0": "text"}, …]
    OUTPUT = "output"  # {"output": "text"}
    TEXTS = "texts"  # ["text", …]
    COMPLETION = "completion"  # OpenAI's text_completion
    CHAT = "chat"  # OpenAI's chat.completion


@dataclass(frozen=True, slots=True)
class Request:
    """One body, understood.

    Attributes:
        inputs: the prompts, in the client's order; 1 to 64.
        parameters: as given, not yet resolved against a model.
        reply: the shape of the answer.
        paths: where each input stands in the body, for error messages.
        parameters_path: where the parameters stand in the body.
        ceiling: `max_new_tokens` is cut to what the context leaves, not refused (OpenAI's meaning).
        model: the name that the client gave the model, where its protocol has one.
        include_usage: a stream ends with its usage.
        stop_token_ids: ids that end a sequence beside the model's own.
        return_token_ids: the answer has the ids of prompt and completion, and log-probabilities of every one of them.
        tokens_as_ids: log-probabilities name their tokens `token_id:7`.
        spelling: what the client calls the parameters that it gave; see `called`.
    """

    inputs: tuple[Input, ...]
    parameters: Parameters
    reply: Reply
    paths: tuple[str, ...]
    parameters_path: str
    ceiling: bool = False
    model: str | None = None
    include_usage: bool = False
    stop_token_ids: frozenset[int] = frozenset()
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    spelling: tuple[tuple[str, str], ...] = ()

    def called(self, name: str) -> str:
        """The parameter `name` in the client's words: as it spelled it, else as its protocol does."""
        return dict(self.spelling).get(name) or (OPENAI_NAMES.get(name, name) if self.openai else name)

    def path(self, name: str) -> str:
        """Where the parameter `name` stands in the body."""
        called = self.called(name)
        return f"{self.parameters_path}.{called}" if self.parameters_path and not self.openai else called

    @property
    def chat(self) -> bool:
        """It asks for the next turn of a dialog."""
        return isinstance(self.inputs[0], Dialog)

    @property
    def openai(self) -> bool:
        """The body came in OpenAI's shape."""
        return self.reply in (Reply.COMPLETION, Reply.CHAT)


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int

    def to_dict(self) -> dict[str, int]:
        """As OpenAI names them."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could be drawn, and the natural logarithm of its probability; `raw` is what it adds to the text."""

    id: int
    raw: bytes
    logprob: float

    @property
    def text(self) -> str:
        """What it adds to the text; U+FFFD for half a character."""
        return self.raw.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token with its log-probability and the best alternatives, best first.

    Attributes:
        offset: where in the text that is shown the token's own text begins, in characters.
    """

    drawn: Alternative
    top: tuple[Alternative, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated sequence.

    Attributes:
        text: the completion alone, stop string cut off, nothing stripped.
        full_text: with the prompt, where `return_full_text` asked for it; else equal to `text`.
        prompt_token_ids: what the model read; `token_ids` what it wrote, the one that ended it included.
    """

    text: str
    full_text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of streamed text of the sequence `index`; the last one of a sequence has its `generation`.

    Attributes:
        prompt_token_ids, token_ids, logprobs: of this piece, where the request asks for ids; the prompt's come once.
    """

    index: int
    text: str
    generation: Generation | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None


Generations = tuple[tuple[Generation, ...], ...]
"""Per input of the request, per returned sequence."""

Body = Mapping[str, Any]
