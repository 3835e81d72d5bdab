"""Dialogs: the family's two formats, and what a message may contain."""

import re
from collections.abc import Sequence
from typing import Final

from llama_serving.catalog import DialogFormat, ModelVariant
from llama_serving.contract.request import Completion, Dialog, Message
from llama_serving.errors import BadRequest
from llama_serving.prompts import completion
from llama_serving.prompts.segments import Segments, Special, Text

MARKERS: Final = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<step>", "</step>")
"""Text that ends or opens a turn: inside a message it could impersonate another role."""

_WHOLE_PROMPT: Final = re.compile(
    r"(?:<s>)?\[INST\] (?:<<SYS>>\n?(?P<system>.*?)\n?<</SYS>> ?\n{0,2})?(?P<user>.*?) ?\[/INST\]", re.DOTALL
)


def segments(dialog: Dialog, variant: ModelVariant) -> Segments:
    """Return the dialog in the variant's format; one user message to a base model is a plain completion.

    Raises:
        BadRequest: the variant has no dialog format, or a message holds one of `MARKERS`.
    """
    if variant.dialog is None:
        return completion.segments(_only_message(dialog, variant), variant)
    messages = unfolded(dialog) if variant.dialog is DialogFormat.INST else dialog.messages
    _refuse_markers(messages, dialog.tools)
    messages = _with_tools(messages, dialog.tools)
    if variant.dialog is DialogFormat.INST:
        return _inst(messages, variant)
    return _source(messages, variant, continued=dialog.continued)


def unfolded(dialog: Dialog) -> Sequence[Message]:
    """Return the messages; a single one that holds a whole prompt in the family's format is parsed.

    The Llama-2 model card sends `<s>[INST] <<SYS>>…<</SYS>> … [/INST]` as one user message.
    """
    content = dialog.messages[0].content.strip()
    # Without this check a missing end would be searched for from every <</SYS>> on.
    whole = _WHOLE_PROMPT.fullmatch(content) if dialog.unfold and content.endswith("[/INST]") else None
    if whole is None:
        return dialog.messages
    user = Message("user", whole["user"])
    return (user,) if whole["system"] is None else (Message("system", whole["system"]), user)


def _with_tools(messages: Sequence[Message], tools: str) -> Sequence[Message]:
    """Return the messages with what is said of functions at the end of the system message."""
    if not tools:
        return messages
    system = messages[0].content if messages[0].role == "system" else ""
    rest = messages[1:] if messages[0].role == "system" else messages
    return (Message("system", f"{system}\n\n{tools}" if system else tools), *rest)


def _only_message(dialog: Dialog, variant: ModelVariant) -> Completion:
    if len(dialog.messages) > 1:
        hint = f" Use {variant.instruct}." if variant.instruct else ""
        raise BadRequest(
            f"{variant.name} has no dialog format: it takes one user message, which it continues as plain "
            f"text.{hint}",
            code="dialog_unsupported",
        )
    content = dialog.messages[0].content
    return Completion(f"{dialog.tools}\n\n{content}\n" if dialog.tools else content)


def _refuse_markers(messages: Sequence[Message], tools: str) -> None:
    # (The model's own earlier text cannot impersonate.)
    said = [
        (f"Message {position}", one.content) for position, one in enumerate(messages) if one.role != "assistant"
    ]
    for what, content in (*said, ("A function", tools)):
        marker = next((m for m in MARKERS if m in content), None)
        if marker:
            raise BadRequest(
                f"{what} holds {marker}, which marks turns in the prompt format. Take it out: "
                "the server puts the marks in. (A plain completion may hold it.)",
                code="invalid_dialog",
            )


def _inst(messages: Sequence[Message], variant: ModelVariant) -> Segments:
    # <s>[INST] {user} [/INST] {assistant} </s><s>[INST] {user} [/INST]
    bos, eos = Special("BOS", variant.bos_id), Special("EOS", variant.eos_id)
    *past, last = _pairs(_folded(messages))
    parts: list[Special | Text] = []
    for user, assistant in past:
        parts += [bos, Text(f"[INST] {user.strip()} [/INST] {assistant.strip()} "), eos]
    # A last message of the assistant is continued, so its end is kept as it is.
    begun = f" {last[1].lstrip()}" if len(last) > 1 else ""
    return (*parts, bos, Text(f"[INST] {last[0].strip()} [/INST]{begun}"))


def _folded(messages: Sequence[Message]) -> Sequence[Message]:
    """Fold the system message into the first user message; white space is stripped later."""
    if messages[0].role != "system":
        return messages
    system, first, *rest = messages
    content = f"<<SYS>>\n{system.content}\n<</SYS>>\n\n{first.content}"
    return (Message("user", content), *rest)


def _pairs(messages: Sequence[Message]) -> list[tuple[str, ...]]:
    return [tuple(m.content for m in messages[at : at + 2]) for at in range(0, len(messages), 2)]


def _source(messages: Sequence[Message], variant: ModelVariant, *, continued: bool) -> Segments:
    # <s>Source: {role}\n\n {content}<step>…Source: assistant\nDestination: user\n\n␣
    if variant.step_id is None:
        raise ValueError(f"{variant.name} has the SOURCE dialog format and no step_id")
    step = Special("STEP", variant.step_id)
    if messages[0].role != "system":
        messages = (Message("system", ""), *messages)
    messages, begun = (messages[:-1], messages[-1].content.lstrip()) if continued else (messages, "")
    parts: list[Special | Text] = []
    for message in messages:
        parts += [Text(f"Source: {message.role}\n\n {message.content.strip()}"), step]
    end = Text(f"Source: assistant\nDestination: user\n\n {begun}")
    return (Special("BOS", variant.bos_id), *parts, end)
