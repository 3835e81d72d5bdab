"""Receipts in a JSON document: a receipt alone, or an answer or record that has some.

They are read only from where each protocol has them: a record carries its row's own keys along, which may be called so, too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from llama_endpoints.replay.messages import Message, typed
from llama_serving.contract.strict_json import check_value
from llama_serving.contract.validation import validate
from llama_serving.errors import ServingError, SetupError

_TEXTS: Final = ("response", "content")
"""Texts beside a receipt: Ollama's and llama.cpp's."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A receipt, with what the document has of its answer.

    Attributes:
        receipt: valid by its schema.
        text: of the answer, with the prompt around it if that was requested; None if it is not there.
        token_ids: of the answer; None likewise.
        calls: of a chat's message, beside its text; see `Message`. None if the answer is no chat.
    """

    receipt: Mapping[str, Any]
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    calls: tuple[Mapping[str, Any], ...] | None = None

    @property
    def name(self) -> str:
        """Which sequence it is, for people."""
        return f"prompt {self.receipt['prompt']['index']}, sequence {self.receipt['index']}"


def claims(document: Any) -> tuple[Claim, ...]:
    """Return the receipts in a document, in its order.

    Raises:
        SetupError: there is none, or one or its answer is not valid.
    """
    found = tuple(checked(one) for one in _inside(document))
    if not found:
        raise SetupError("There is no receipt in the document. Ask for one with `receipt: true`.")
    return found


def of_record(record: Mapping[str, Any]) -> tuple[Claim, ...]:
    """Return the receipts of a batch record; none if it has none.

    Raises:
        SetupError: one or its answer is not valid.
    """
    return tuple(checked(one) for one in _recorded(record))


def checked(claim: Claim) -> Claim:
    """Return the claim, if its receipt is valid.

    Raises:
        SetupError: it is not; the message says what is wrong.
    """
    try:
        check_value(claim.receipt)
        validate(claim.receipt, "receipt")
    except ServingError as error:
        raise SetupError(f"The receipt is not valid. {error.message}") from error
    return replace(claim, receipt=_whole(claim.receipt))


def _whole(value: Any) -> Any:
    """Return the value with integers where it has floats that are some: JSON Schema takes 1.0 for an integer."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _inside(value: Any) -> Iterator[Claim]:
    if isinstance(value, list):
        for item in value:
            yield from _inside(item)
    if not isinstance(value, dict):
        return
    if "format" in value and "output" in value:
        yield Claim(value)
    elif value.get("receipt") is not None or isinstance(value.get("response"), dict):
        yield from _recorded(value)
    elif isinstance(value.get("details"), list):
        yield from _detailed(value, value["details"])
    elif "choices" in value:
        yield from _chosen(value)
    else:
        yield from _inside(value.get("predictions"))


def _recorded(holder: Mapping[str, Any]) -> Iterator[Claim]:
    """Yield the receipts beside a text, or those of a line of OpenAI's Batch format."""
    receipt, response = holder.get("receipt"), holder.get("response")
    if receipt is not None:
        yield from _beside(holder, receipt)
    elif (
        isinstance(response, dict) and isinstance(response.get("body"), dict) and "choices" in response["body"]
    ):
        yield from _chosen(response["body"])


def _beside(holder: Mapping[str, Any], receipt: Any) -> Iterator[Claim]:
    """Yield the receipts of a record, or of an answer of Ollama or llama.cpp."""
    if "output" in holder:
        held = receipt if isinstance(receipt, list) else [receipt]
        texts = outputs(holder)
        if len(texts) != len(held):
            raise SetupError(f"The record has {len(held)} receipts for {len(texts)} outputs.")
        yield from (Claim(one, text) for one, text in zip(held, texts, strict=True))
    elif "message" in holder:
        message = Message.of(holder["message"], "message")
        yield Claim(receipt, message.content, calls=message.calls)
    else:
        name = next((name for name in _TEXTS if name in holder), None)
        yield Claim(receipt, None if name is None else typed(holder[name], str, name))


def outputs(holder: Mapping[str, Any]) -> list[str]:
    """Return the texts of a record or of Azure's answer to a dialog.

    Raises:
        SetupError: its `output` is neither a text nor a list of some.
    """
    output = holder["output"]
    return [typed(one, str, "output") for one in (output if isinstance(output, list) else [output])]


def choices(body: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Message, bool]]:
    """Return OpenAI's choices, what each says, and whether it is a chat's message.

    Raises:
        SetupError: a part has another type.
    """
    listed = listed_choices(body)
    return [(one, *_said(one, f"choices[{i}]")) for i, one in enumerate(listed)]


def listed_choices(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return OpenAI's choices as they are.

    Raises:
        SetupError: they are no list of objects.
    """
    held = typed(body["choices"], list, "choices")
    return [typed(one, dict, f"choices[{i}]") for i, one in enumerate(held)]


def _said(choice: Mapping[str, Any], at: str) -> tuple[Message, bool]:
    if "message" in choice:
        return Message.of(choice["message"], f"{at}.message"), True
    text = choice.get("text")
    return Message(typed(text, str, f"{at}.text") if "text" in choice else None), False


def _chosen(body: Mapping[str, Any]) -> Iterator[Claim]:
    for choice, message, chat in choices(body):
        if choice.get("receipt") is not None:
            calls = message.calls if chat else None
            yield Claim(choice["receipt"], message.content, _ids(choice), calls)


def _detailed(row: Mapping[str, Any], details: list[Any]) -> Iterator[Claim]:
    """Yield the receipts of a row of Azure's, whose texts are beside its details; a stream's are in other events."""
    texts: dict[str, Any] = {name: text for name, text in row.items() if name.isdecimal()}
    if "output" in row:
        texts = {str(number): text for number, text in enumerate(outputs(row))}
    for number, entry in enumerate(details):
        if isinstance(entry, dict) and entry.get("receipt") is not None:
            name = str(number)
            yield Claim(entry["receipt"], typed(texts.get(name), str, name) if texts else None, _ids(entry))


def _ids(holder: Mapping[str, Any]) -> tuple[int, ...] | None:
    ids = holder.get("token_ids")
    return (
        None if ids is None else tuple(typed(one, int, "token_ids[]") for one in typed(ids, list, "token_ids"))
    )
