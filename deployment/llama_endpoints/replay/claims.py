"""Receipts in a JSON document: a receipt alone, or an answer of any protocol that has some."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from llama_serving.contract.validation import validate
from llama_serving.errors import ServingError, SetupError

_TEXTS: Final = ("text", "response", "content", "output")


@dataclass(frozen=True, slots=True)
class Claim:
    """A receipt, with what the document has of its answer.

    Attributes:
        receipt: valid by its schema.
        text: of the answer, with the prompt around it if that was requested; None if it is not there.
        token_ids: of the answer; None likewise.
    """

    receipt: Mapping[str, Any]
    text: str | None = None
    token_ids: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """Which sequence it is, for people."""
        return f"prompt {self.receipt['prompt']['index']}, sequence {self.receipt['index']}"


def claims(document: Any) -> tuple[Claim, ...]:
    """Return the receipts in a document, in its order.

    Raises:
        SetupError: there is none, or one is not valid.
    """
    if isinstance(document, Mapping) and "format" in document and "output" in document:
        return (checked(Claim(document)),)
    found = tuple(checked(one) for one in _inside(document))
    if not found:
        raise SetupError("There is no receipt in the document. Ask for one with `receipt: true`.")
    return found


def checked(claim: Claim) -> Claim:
    """Return the claim, if its receipt is valid.

    Raises:
        SetupError: it is not; the message says what is wrong.
    """
    try:
        validate(claim.receipt, "receipt")
    except ServingError as error:
        raise SetupError(f"The receipt is not valid. {error.message}") from error
    return claim


def _inside(value: Any) -> Iterator[Claim]:
    if isinstance(value, list):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, Mapping):
        receipt = value.get("receipt")
        for number, one in enumerate(
            receipt if isinstance(receipt, list) else [] if receipt is None else [receipt]
        ):
            yield Claim(one, _text(value, number), _ids(value))
        for name, item in value.items():
            if name == "details" and isinstance(item, list):
                yield from _detailed(value, item)
            elif name != "receipt":
                yield from _inside(item)


def _detailed(row: Mapping[str, Any], details: list[Any]) -> Iterator[Claim]:
    """Yield the receipts of a row of Azure's, whose texts are beside its details."""
    for number, entry in enumerate(details):
        if isinstance(entry, Mapping) and entry.get("receipt") is not None:
            text = row.get(str(number))
            yield Claim(entry["receipt"], text if isinstance(text, str) else _text(row, number), _ids(entry))


def _text(holder: Mapping[str, Any], number: int) -> str | None:
    """Return the text beside a receipt, as the protocols have it."""
    message = holder.get("message")
    if isinstance(message, Mapping):
        holder = message
    found = next((holder[name] for name in _TEXTS if name in holder), None)
    if isinstance(found, list):
        found = found[number] if number < len(found) else None
    return found if isinstance(found, str) else None


def _ids(holder: Mapping[str, Any]) -> tuple[int, ...] | None:
    ids = holder.get("token_ids")
    return tuple(ids) if isinstance(ids, list) and all(isinstance(one, int) for one in ids) else None
