"""What is typed: a slash command, or text for the model."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from llama_endpoints.chat.conversation import PARAMETERS, Conversation, Mistake, Question
from llama_endpoints.chat.model import ChatModel
from llama_serving.contract.json_lines import json_line
from llama_serving.contract.strict_json import decode_value
from llama_serving.errors import BadRequest


class Ended(Exception):
    """The user ends the program."""


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command.

    Attributes:
        argument: what stands behind it, for the help.
        help: what it does.
        run: does it, and returns a request for the model, a text for the user, or None.
    """

    argument: str
    help: str
    run: Callable[[Conversation, str], Question | str | None]


def understand(typed: str, conversation: Conversation, model: ChatModel) -> Question | str | None:
    """Do what was typed: return a request for the model, a text for the user, or None.

    Raises:
        Mistake: it cannot be done.
        Ended: it was /exit.
    """
    if not typed.startswith("/"):
        return conversation.ask(typed)
    name = typed.split(maxsplit=1)[0]
    command, argument = COMMANDS.get(name), typed[len(name) + 1 :]
    if command is None:
        close = get_close_matches(name, COMMANDS, n=1)
        meant = f"Did you mean {close[0]}?" if close else "/help lists them."
        raise Mistake(
            f"{name[:40]} is not a command. {meant} To send text that begins with a slash, put a space before it."
        )
    if name == "/infill" and "infilling" not in model.capabilities:
        raise Mistake(f"{model.name} was not trained to fill in.")
    return command.run(conversation, argument)


def help_text() -> str:
    """Return the list of all commands."""
    names = {name: f"{name} {command.argument}".rstrip() for name, command in COMMANDS.items()}
    width = max(map(len, names.values()))
    return "\n".join(f"{names[name]:{width}}  {command.help}" for name, command in COMMANDS.items())


def _system(conversation: Conversation, text: str) -> str:
    if not conversation.chats:
        raise Mistake("This model has no dialog format, and so no system prompt.")
    conversation.system = text.strip()
    return "The system prompt is set." if conversation.system else "There is no system prompt now."


def _complete(conversation: Conversation, text: str) -> Question:
    if not text:
        raise Mistake("/complete needs a text to complete.")
    return conversation.complete(text)


def _set(conversation: Conversation, text: str) -> str:
    name, _, value = text.strip().partition(" ")
    if name:
        conversation.set(name, _value(value.strip()))
    parameters = conversation.parameters
    if name or parameters:
        return "\n".join(f"{key} = {json_line(value)}" for key, value in parameters.items()) or "No parameters."
    return f"No parameters are set: the model's defaults are used. There are: {', '.join(PARAMETERS)}."


def _value(text: str) -> Any:
    """Return JSON's value, or the text itself; None for no text."""
    try:
        return decode_value(text.encode()) if text else None
    except (BadRequest, UnicodeEncodeError):
        return text


def _history(conversation: Conversation, _: str) -> str:
    system = [f"system: {conversation.system}"] if conversation.system else []
    return (
        "\n\n".join([*system, *(f"{turn['role']}: {turn['content']}" for turn in conversation.turns)])
        or "The dialog is empty."
    )


def _new(conversation: Conversation, _: str) -> str:
    conversation.begin_anew()
    return "A new dialog begins."


def _undo(conversation: Conversation, _: str) -> str:
    conversation.undo()
    return "The last message and its answer are gone."


def _exit(_: Conversation, __: str) -> None:
    raise Ended


COMMANDS: Final[dict[str, Command]] = {
    "/help": Command("", "show this list", lambda _, __: help_text()),
    "/system": Command("[TEXT]", "set the system prompt; without TEXT, remove it", _system),
    "/infill": Command(
        "TEXT", "let the model write at <FILL_ME> in TEXT", lambda talk, text: talk.infill(text)
    ),
    "/complete": Command("TEXT", "continue TEXT, outside the dialog", _complete),
    "/more": Command("", "continue the last answer", lambda talk, _: talk.go_on()),
    "/retry": Command("", "answer the last message anew", lambda talk, _: talk.again()),
    "/undo": Command("", "drop the last message and its answer", _undo),
    "/new": Command("", "begin a new dialog; system prompt and parameters stay", _new),
    "/history": Command("", "show the dialog", _history),
    "/set": Command("[NAME [VALUE]]", "set a parameter; without VALUE, unset it; without NAME, show all", _set),
    "/exit": Command("", "end (also Ctrl-D)", _exit),
}
