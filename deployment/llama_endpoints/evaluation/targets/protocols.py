"""Rows as bodies of the routes that an endpoint may have, and their answers as records."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from llama_endpoints.evaluation.tasks.task import PromptStyle, Row
from llama_serving.errors import SetupError

_OPENAI_NAMES: Final = {"max_new_tokens": "max_tokens"}


class Protocol(StrEnum):
    """A route of an endpoint."""

    SCORE = "score"
    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        """The route's path."""
        return {"score": "/score", "completions": "/v1/completions", "chat": "/v1/chat/completions"}[self]

    def address(self, url: str) -> str:
        """Return the route's address at a server whose address is given with or without the route."""
        base = url.rstrip("/")
        return base if base.endswith(self.path) else base.removesuffix("/v1") + self.path

    def check(self, style: PromptStyle, *, infilling: bool) -> None:
        """Refuse rows that the route does not take.

        Raises:
            SetupError: it takes no such rows.
        """
        if self is Protocol.COMPLETIONS and style is PromptStyle.DIALOG and not infilling:
            raise SetupError(
                "/v1/completions takes no dialogs. Give --protocol chat or score, or --prompt completion."
            )
        if self is Protocol.CHAT and (infilling or style is PromptStyle.COMPLETION):
            raise SetupError(
                "/v1/chat/completions takes dialogs alone. Give --protocol completions or score, or --prompt dialog."
            )


@dataclass(frozen=True, slots=True)
class Text:
    """A text that an endpoint answered."""

    text: str
    finish_reason: str | None
    usage: Mapping[str, int]


def body(protocol: Protocol, row: Row, model: str) -> dict[str, Any]:
    """Return the body of a row's request. `model` is the name that OpenAI's routes get."""
    if protocol is Protocol.SCORE:
        return _score_body(row)
    given = {key: value for key, value in row.items() if key not in ("id", "parameters", "prefix")}
    if "prefix" in row:
        given["prompt"] = row["prefix"]
    parameters = {_OPENAI_NAMES.get(name, name): value for name, value in row["parameters"].items()}
    return {"model": model, **given, **parameters}


def text_in(protocol: Protocol, answer: Any) -> Text:
    """Return the text of an answer.

    Raises:
        ValueError: the answer is of another form.
    """
    try:
        return _score_text(answer) if protocol is Protocol.SCORE else _openai_text(answer)
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"the answer of {protocol.path} is of another form") from error


def _score_body(row: Row) -> dict[str, Any]:
    if "messages" in row:
        given: Any = row["messages"]
    elif "prefix" in row:
        given = [{"prefix": row["prefix"], "suffix": row["suffix"]}]
    else:
        given = [row["prompt"]]
    return {"input_data": {"input_string": given, "parameters": {**row["parameters"], "details": True}}}


def _score_text(answer: Any) -> Text:
    one = answer[0] if isinstance(answer, list) else answer
    details = one["details"][0]
    return Text(
        str(one["output"] if "output" in one else one["0"]), details["finish_reason"], dict(details["usage"])
    )


def _openai_text(answer: Any) -> Text:
    choice = answer["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    used = answer.get("usage") or {}
    usage = {
        name: used[name] for name in ("prompt_tokens", "completion_tokens", "total_tokens") if name in used
    }
    return Text(text or "", choice.get("stop_reason") or choice["finish_reason"], usage)
