"""The receipts of a streamed answer, each with the text and the calls of its sequence's events."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from llama_endpoints.replay.claims import Claim, claims, listed_choices
from llama_endpoints.replay.messages import Message, typed
from llama_serving.errors import SetupError

_SEQUENCE: Final = re.compile(r"[0-9]{1,3}")
"""Azure's key of a piece of text."""
_SELECTIVE: Final = "llama.cpp"
"""The protocol whose `response_fields` may leave the text out."""


@dataclass(slots=True)
class _Sequence:
    """What has come of one sequence.

    Attributes:
        calls: OpenAI's, by index, with their arguments joined.
        chat: the pieces are those of a chat's message.
    """

    pieces: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    chat: bool = False

    def add(self, message: Message) -> None:
        """Add what one event says.

        Raises:
            SetupError: a call has no index.
        """
        self.chat = True
        if message.content is not None:
            self.pieces.append(message.content)
        for call in message.calls:
            self._add_call(call)

    def _add_call(self, piece: Mapping[str, Any]) -> None:
        at = typed(piece.get("index"), int, "tool_calls[].index")
        call, new = self.calls.get(at, {}), piece["function"]
        function = call.get("function", {})
        if "arguments" in new:
            new = {**new, "arguments": function.get("arguments", "") + new["arguments"]}
        rest = {name: value for name, value in piece.items() if name != "index"}
        self.calls[at] = {**call, **rest, "function": {**function, **new}}

    def of(self, claim: Claim) -> Claim:
        """Return the claim of this sequence with what it says."""
        calls = tuple(self.calls[at] for at in sorted(self.calls)) if self.chat else None
        unknown = calls or claim.receipt["protocol"] == _SELECTIVE
        text = "".join(self.pieces) if self.pieces or not unknown else None
        return replace(claim, text=text, token_ids=None, calls=calls)


def claims_of_stream(events: Sequence[Any]) -> tuple[Claim, ...]:
    """Return the receipts in the events of a stream.

    Raises:
        SetupError: there is none, one is not valid, or an event is none of any protocol.
    """
    sequences: dict[int, _Sequence] = defaultdict(_Sequence)
    for event in events:
        _read(typed(event, dict, "event"), sequences)
    return tuple(sequences[one.receipt["index"]].of(one) for one in claims(list(events)))


def _read(event: Mapping[str, Any], sequences: dict[int, _Sequence]) -> None:
    """Add an event of any protocol to the sequences."""
    for choice in listed_choices(event) if "choices" in event else ():
        index = typed(choice.get("index"), int, "choices[].index")
        if "message" in choice:
            raise SetupError("A line of the stream is a whole answer. Give one answer, or one stream.")
        if "text" in choice:
            sequences[index].pieces.append(typed(choice["text"], str, "choices[].text"))
        elif "delta" in choice:
            sequences[index].add(Message.of(choice["delta"], "choices[].delta"))
    if "message" in event:
        sequences[0].add(Message.of(event["message"], "message"))
    for name, piece in event.items():
        if name in ("response", "content"):
            sequences[0].pieces.append(typed(piece, str, name))
        elif _SEQUENCE.fullmatch(name):
            sequences[int(name)].pieces.append(typed(piece, str, name))
