"""A prompt as segments: text to encode, and special tokens by id."""

from collections.abc import Sequence
from dataclasses import dataclass

from llama_serving.prompts.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Special:
    """A special token; the name is for error messages and tests (`BOS`, `PRE`)."""

    name: str
    id: int


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is encoded on its own, with the family's dummy space in front."""

    text: str


@dataclass(frozen=True, slots=True)
class Continuation:
    """Text that is encoded without the dummy space."""

    text: str


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids that the client sent."""

    ids: tuple[int, ...]


Segment = Special | Text | Continuation | Ids
Segments = tuple[Segment, ...]


def encode(segments: Sequence[Segment], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the token ids of a prompt."""
    ids: list[int] = []
    for segment in segments:
        match segment:
            case Special():
                ids.append(segment.id)
            case Text():
                ids.extend(tokenizer.encode(segment.text))
            case Continuation():
                ids.extend(tokenizer.encode_continuation(segment.text))
            case Ids():
                ids.extend(segment.ids)
    return tuple(ids)


def shown(segments: Sequence[Segment]) -> str:
    """Return the text of a prompt, without its special tokens."""
    return "".join(s.text for s in segments if isinstance(s, (Text, Continuation)))


def characters(segments: Sequence[Segment]) -> int:
    """Return the number of characters to encode."""
    return sum(len(s.text) for s in segments if isinstance(s, (Text, Continuation)))
