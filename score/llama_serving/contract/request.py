"""A request and its results, independent of the protocol. Frozen values, with derived facts only."""

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
"""OpenAI's (and vLLM's) names of parameters."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A text to continue, exactly as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt as token ids (accepted by OpenAI's `/v1/completions`)."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Infill:
    """The two ends of a text whose middle is to be generated."""

    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialog; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Dialog:
    """Messages that end with the user's, or with an assistant's message to continue.

    Attributes:
        continued: the last message is the assistant's and is to be continued.
        unfold: a single user message that holds a whole prompt in the family's format may be parsed and rendered
            again (OpenAI routes only).
    """

    messages: tuple[Message, ...]
    unfold: bool = False
    continued: bool = False


Input = Completion | TokenIds | Infill | Dialog


@dataclass(frozen=True, slots=True)
class Parameters:
    """The client's parameters, under Azure's names; None means not given."""

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
        """Whether the response has details: requesting log-probabilities implies them."""
        return bool(self.details) or self.logprobs is not None


class ReplyShape(StrEnum):
    """The shape of the response, which follows from the body."""

    ROWS = "rows"  # [{"0": "text"}, …]
    OUTPUT = "output"  # {"output": "text"}
    TEXTS = "texts"  # ["text", …]
    COMPLETION = "completion"  # OpenAI's text_completion
    CHAT = "chat"  # OpenAI's chat.completion


@dataclass(frozen=True, slots=True)
class Request:
    """One parsed body.

    Attributes:
        inputs: the prompts, in the client's order; 1 to 64.
        parameters: as given; the model's defaults are applied later.
        reply: the shape of the response.
        paths: path of each input in the body, for error messages.
        parameters_path: path of the parameters in the body.
        ceiling: `max_new_tokens` is reduced to what the context allows instead of being refused (as OpenAI does).
        model: the client's name of the model, if the protocol has one.
        include_usage: a stream ends with its usage.
        stop_token_ids: ids that end a sequence, besides the model's own.
        return_token_ids: the response has the ids of prompt and completion, and log-probabilities of every token.
        tokens_as_ids: log-probabilities write their tokens as `token_id:7`.
        spelling: the client's names of the parameters that it gave; see `called`.
    """

    inputs: tuple[Input, ...]
    parameters: Parameters
    reply: ReplyShape
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
        """Return the client's name of the parameter `name`: its own spelling, else its protocol's."""
        return dict(self.spelling).get(name) or (OPENAI_NAMES.get(name, name) if self.openai else name)

    def path(self, name: str) -> str:
        """Return the path of the parameter `name` in the body."""
        called = self.called(name)
        return f"{self.parameters_path}.{called}" if self.parameters_path and not self.openai else called

    @property
    def chat(self) -> bool:
        """Whether the next turn of a dialog is requested."""
        return isinstance(self.inputs[0], Dialog)

    @property
    def openai(self) -> bool:
        """Whether the body came in OpenAI's format."""
        return self.reply in (ReplyShape.COMPLETION, ReplyShape.CHAT)


@dataclass(frozen=True, slots=True)
class Usage:
    """Number of tokens read and generated."""

    prompt_tokens: int
    completion_tokens: int

    def to_dict(self) -> dict[str, int]:
        """Return the usage under OpenAI's names."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Alternative:
    """A possible token and the natural logarithm of its probability; `raw` is its text in bytes."""

    id: int
    raw: bytes
    logprob: float

    @property
    def text(self) -> str:
        """The token's text; U+FFFD for part of a character."""
        return self.raw.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token with its log-probability and the best alternatives, best first.

    Attributes:
        offset: where the token's text begins in the returned text, in characters.
    """

    drawn: Alternative
    top: tuple[Alternative, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated sequence.

    Attributes:
        text: the completion alone, without the stop string and otherwise unchanged.
        full_text: with the prompt, if `return_full_text` is set; else equal to `text`.
        prompt_token_ids: ids of the prompt; `token_ids` are the generated ones, including the one that ended the sequence.
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
    """A piece of streamed text of the sequence `index`; the last piece of a sequence has its `generation`.

    Attributes:
        prompt_token_ids, token_ids, logprobs: of this piece, if ids are requested; the prompt's ids come once.
    """

    index: int
    text: str
    generation: Generation | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None


Generations = tuple[tuple[Generation, ...], ...]
"""For each input of the request, its returned sequences."""

Body = Mapping[str, Any]
