"""A request and its results, independent of the protocol. Frozen values, with derived facts only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from llama_serving.constraints.constraint import Constraint
from llama_serving.contract.content_filter import Finding
from llama_serving.sampling_params import FinishReason

if TYPE_CHECKING:
    from llama_serving.contract.receipt import Receipt

FILL_MARKER: Final = "<FILL_ME>"

OPENAI_NAMES: Final[Mapping[str, str]] = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "return_full_text": "echo",
}
"""OpenAI's (and vLLM's) names of parameters."""
OLLAMA_NAMES: Final[Mapping[str, str]] = {
    "max_new_tokens": "num_predict",
    "repetition_penalty": "repeat_penalty",
}
"""Ollama's names of parameters; llama.cpp's differ in the first."""
LLAMACPP_NAMES: Final[Mapping[str, str]] = {**OLLAMA_NAMES, "max_new_tokens": "n_predict"}
UNLIMITED: Final = 2**31 - 1
"""`max_new_tokens` of a request for all that the context leaves."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A text to continue, exactly as it is.

    Attributes:
        marked: the text may be a whole infilling prompt in the family's format; see `Dialog.marked`.
    """

    text: str
    marked: bool = False


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A prompt as token ids (accepted by OpenAI's `/v1/completions`); `shortened` if they are the last ones of more."""

    ids: tuple[int, ...]
    shortened: bool = False


@dataclass(frozen=True, slots=True)
class Infill:
    """The two ends of a text whose middle is to be generated.

    Attributes:
        extra: texts from elsewhere, oldest first, which the model reads before the prefix.
        fitted: what does not fit the context is left out (of `extra`, then far from the gap) instead of refused.
    """

    prefix: str
    suffix: str
    extra: tuple[str, ...] = ()
    fitted: bool = False


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
        tools: what the prompt says of the functions that may be called; empty if there are none.
        unfold: a single user message that holds a whole prompt in the family's format may be parsed and rendered
            again (OpenAI's and Ollama's routes only).
        marked: a single user message that is `<PRE> {prefix} <SUF>{suffix} <MID>` is an infilling prompt, if the model
            has infilling (Ollama's and llama.cpp's routes only, where clients write the marks).
    """

    messages: tuple[Message, ...]
    unfold: bool = False
    continued: bool = False
    marked: bool = False
    tools: str = ""


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
    prompt_logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    details: bool | None = None
    stream: bool | None = None
    continue_final_message: bool | None = None
    editor_stops: bool | None = None
    response_format: Constraint | None = None
    receipt: bool | None = None

    @property
    def with_details(self) -> bool:
        """Whether the response has details: requesting log-probabilities or receipts implies them."""
        return self.with_figures or bool(self.receipt)

    @property
    def with_figures(self) -> bool:
        """Whether more than receipts is requested of the details."""
        return bool(self.details) or self.logprobs is not None or self.prompt_logprobs is not None


class ToolMode(StrEnum):
    """Whether an answer calls a function."""

    AUTO = "auto"  # text, or a call
    REQUIRED = "required"  # a call of one of them
    NAMED = "named"  # a call of the one that there is


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions that an answer may call.

    Attributes:
        names: of the functions; one if it is `NAMED`.
        prompt: what the prompt says of them.
    """

    mode: ToolMode
    names: tuple[str, ...]
    prompt: str


class ReplyShape(StrEnum):
    """The shape of the response, which follows from the body."""

    ROWS = "rows"  # [{"0": "text"}, …]
    OUTPUT = "output"  # {"output": "text"}
    TEXTS = "texts"  # ["text", …]
    COMPLETION = "completion"  # OpenAI's text_completion
    CHAT = "chat"  # OpenAI's chat.completion
    GENERATE = "generate"  # Ollama's /api/generate
    MESSAGE = "message"  # Ollama's /api/chat
    CONTENT = "content"  # llama.cpp's /completion and /infill


_NAMES: Final[Mapping[ReplyShape, Mapping[str, str]]] = {
    ReplyShape.COMPLETION: OPENAI_NAMES,
    ReplyShape.CHAT: OPENAI_NAMES,
    ReplyShape.GENERATE: OLLAMA_NAMES,
    ReplyShape.MESSAGE: OLLAMA_NAMES,
    ReplyShape.CONTENT: LLAMACPP_NAMES,
}
"""A protocol's names of parameters, where they are not Azure's."""


@dataclass(frozen=True, slots=True)
class Request:
    """One parsed body.

    Attributes:
        inputs: the prompts, in the client's order; 1 to 64. None where an Ollama client only wants the model loaded.
        parameters: as given; the model's defaults are applied later.
        reply: the shape of the response.
        paths: path of each input in the body, for error messages.
        parameters_path: path of the parameters in the body.
        beside: the client's names of parameters that stand at the top of the body nevertheless.
        ceiling: `max_new_tokens` is reduced to what the context allows instead of being refused (as OpenAI does).
        model: the client's name of the model, if the protocol has one.
        include_usage: a stream ends with its usage.
        continuous_usage: each piece of a stream has the usage so far.
        echo_logprobs: log-probabilities begin with those of the prompt, which the text begins with.
        truncate_prompt_tokens: how many of the prompt's last tokens to keep; -1 is as many as fit the context.
        stop_token_ids: ids that end a sequence, besides the model's own.
        return_token_ids: the response has the ids of prompt and completion, and log-probabilities of every token.
        tokens_as_ids: log-probabilities write their tokens as `token_id:7`.
        spelling: the client's names of the parameters that it gave; see `called`.
        fields: paths of the fields that the answer may have (llama.cpp's `response_fields`); empty means all.
        prefill_only: the prompt is only read, so that a later one with the same beginning is faster.
        min_indent: `editor_stops` end the text before a line that is indented less; 0 means as the line of the gap.
        patience_s: seconds after the first token that the text may go on once it has a line break.
        tools: functions that the answer may call; the parameters' constraint holds it to that.
    """

    inputs: tuple[Input, ...]
    parameters: Parameters
    reply: ReplyShape
    paths: tuple[str, ...]
    parameters_path: str
    ceiling: bool = False
    model: str | None = None
    include_usage: bool = False
    continuous_usage: bool = False
    echo_logprobs: bool = False
    truncate_prompt_tokens: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    return_token_ids: bool = False
    tokens_as_ids: bool = False
    spelling: tuple[tuple[str, str], ...] = ()
    fields: tuple[str, ...] = ()
    prefill_only: bool = False
    min_indent: int = 0
    patience_s: float | None = None
    tools: Tools | None = None
    beside: frozenset[str] = frozenset()

    def called(self, name: str) -> str:
        """Return the client's name of the parameter `name`: its own spelling, else its protocol's."""
        return dict(self.spelling).get(name) or _NAMES.get(self.reply, {}).get(name, name)

    def path(self, name: str) -> str:
        """Return the path of the parameter `name` in the body."""
        called = self.called(name)
        inside = self.parameters_path and not self.openai and called not in self.beside
        return f"{self.parameters_path}.{called}" if inside else called

    @property
    def chat(self) -> bool:
        """Whether the next turn of a dialog is requested."""
        return isinstance(self.inputs[0], Dialog)

    @property
    def scores_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are requested: in the answer they take much more than its text."""
        return self.parameters.prompt_logprobs is not None or self.echo_logprobs

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
    """A possible token and the natural logarithm of its probability.

    Attributes:
        raw: its text in bytes.
        logprob: None for the first token of a prompt, which follows nothing.
    """

    id: int
    raw: bytes
    logprob: float | None

    @property
    def text(self) -> str:
        """The token's text; U+FFFD for part of a character."""
        return self.raw.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token, or one of the prompt, with its log-probability and the best alternatives, best first.

    Attributes:
        offset: where the token's text begins in the returned text, in characters.
        rank: of a prompt's token: 1 for the most likely one; None if a server does not say it.
    """

    drawn: Alternative
    top: tuple[Alternative, ...]
    offset: int
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that a sequence took.

    Attributes:
        first_s: from its submission to its first token: it waited, and its prompt was read.
        rest_s: from the first token to the last.
    """

    first_s: float = 0.0
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated sequence.

    Attributes:
        text: the completion alone, without the stop string and otherwise unchanged.
        full_text: with the prompt, if `return_full_text` is set; else equal to `text`.
        prompt_logprobs: of each token of the prompt, if requested; the first one has none.
        prompt_token_ids: ids of the prompt; `token_ids` are the generated ones, including the one that ended the sequence.
        stopped_by: the stop string that ended the text, if one did.
        truncated: part of the prompt was left out, which the request allowed.
        receipt: if one is requested.
        findings: what guards found in the text. Where they block, the text is only what they had passed before.
    """

    text: str
    full_text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    stopped_by: str = ""
    truncated: bool = False
    receipt: "Receipt | None" = None
    times: Times = field(default=Times(), compare=False)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of streamed text of the sequence `index`; the last piece of a sequence has its `generation`.

    Attributes:
        prompt_token_ids, token_ids, logprobs: of this piece, if ids are requested; the prompt's ids come once.
        usage: of the sequence so far.
        prompt_logprobs: with the first token, if they are requested.
    """

    index: int
    text: str
    generation: Generation | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None


Generations = tuple[tuple[Generation, ...], ...]
"""For each input of the request, its returned sequences."""

Body = Mapping[str, Any]
