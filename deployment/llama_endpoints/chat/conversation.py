"""The state of a conversation, and the body of its next request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Final

from llama_endpoints.chat.model import Body
from llama_serving.contract import openai
from llama_serving.errors import BadRequest

MARK: Final = "<FILL_ME>"
STREAM: Final = {"stream": True, "stream_options": {"include_usage": True}}
PARAMETERS: Final = (
    "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "stop", "seed", "do_sample", "ignore_eos",
)  # fmt: skip
"""Parameters of a request that the conversation passes on; the others change the answer's shape."""

Turn = dict[str, str]


class Mistake(Exception):
    """What was typed cannot be done. Its text is for the user."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request.

    Attributes:
        body: for the model.
        before: the text before the answer, where the answer belongs into it.
        after: the text behind it.
        turn: the user's message, if it is one of the dialog.
        continues: the answer goes on where the last one ended.
        replaces: the answer takes the place of the last one.
        echoes: `before` is shown with the answer; else the user has just seen it.
    """

    body: Body
    before: str = ""
    after: str = ""
    turn: str | None = None
    continues: bool = False
    replaces: bool = False
    echoes: bool = True


@dataclass(slots=True)
class Conversation:
    """A dialog, and what is sent with each request.

    Attributes:
        chats: plain text is a message of the dialog; else it is completed.
        system: the system prompt.
        turns: user and assistant, in turn.
        parameters: of every request.
        last_text: prompt and answer of the last completion.
    """

    chats: bool
    system: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    last_text: str = ""

    def ask(self, text: str) -> Question:
        """Return the request for plain text."""
        if not self.chats:
            return self.complete(text)
        return Question(self._chat([*self.turns, {"role": "user", "content": text}]), turn=text)

    def complete(self, prompt: str) -> Question:
        """Return the request that completes a text."""
        return Question({"prompt": prompt, **self.parameters, **STREAM}, before=prompt)

    def infill(self, text: str) -> Question:
        """Return the request that fills in at the mark.

        Raises:
            Mistake: the text does not hold the mark once.
        """
        parts = text.split(MARK)
        if len(parts) != 2:
            raise Mistake(
                f"/infill needs {MARK} once in its text: the model writes there. "
                f"Example: /infill def add(a, b): {MARK}"
            )
        prefix, suffix = parts
        return Question(
            {"prompt": prefix, "suffix": suffix, **self.parameters, **STREAM}, before=prefix, after=suffix
        )

    def go_on(self) -> Question:
        """Return the request that continues the last answer.

        Raises:
            Mistake: there is none.
        """
        if self.last_text:
            return replace(self.complete(self.last_text), echoes=False)
        if not self.turns:
            raise Mistake("There is no answer to continue. Write something first.")
        return Question({**self._chat(self.turns), "continue_final_message": True}, continues=True)

    def again(self) -> Question:
        """Return the request for the last message, whose answer is replaced.

        Raises:
            Mistake: there is none.
        """
        if not self.turns:
            raise Mistake("The dialog is empty.")
        return Question(self._chat(self.turns[:-1]), turn=self.turns[-2]["content"], replaces=True)

    def undo(self) -> None:
        """Drop the last message and its answer.

        Raises:
            Mistake: there is none.
        """
        if not self.turns:
            raise Mistake("The dialog is empty.")
        del self.turns[-2:]

    def begin_anew(self) -> None:
        """Drop the dialog. System prompt and parameters stay."""
        self.turns.clear()
        self.last_text = ""

    def answered(self, question: Question, text: str) -> None:
        """Keep an answer, a stopped one too, so that the model sees what the user saw. One without text is dropped."""
        if not text:
            return
        if question.replaces:
            self.undo()
        if question.turn is not None:
            self.last_text = ""
            self.turns += [{"role": "user", "content": question.turn}, {"role": "assistant", "content": text}]
        elif question.continues:
            self.turns[-1] = {"role": "assistant", "content": self.turns[-1]["content"] + text}
        elif not question.after:
            self.last_text = question.before + text

    def set(self, name: str, value: Any) -> None:
        """Set a parameter; None removes it.

        Raises:
            Mistake: there is no such parameter, or it does not accept the value.
        """
        if value is None:
            self.parameters.pop(name, None)
            return
        self.parameters = checked({**self.parameters, name: value})

    def _chat(self, turns: Sequence[Turn]) -> Body:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*system, *turns], **self.parameters, **STREAM}


def checked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters that the contract accepts.

    Raises:
        Mistake: one of them is none of `PARAMETERS`, or has a value that is not accepted.
    """
    for name in parameters:
        if name not in PARAMETERS:
            close = get_close_matches(name, PARAMETERS, n=1)
            meant = f"Did you mean {close[0]}? " if close else ""
            raise Mistake(
                f"{name[:40]} is not a parameter of a conversation. {meant}There are: {', '.join(PARAMETERS)}."
            )
    try:
        openai.parse_completion({"prompt": "a", **parameters})
    except BadRequest as error:
        raise Mistake(error.message) from error
    return dict(parameters)
