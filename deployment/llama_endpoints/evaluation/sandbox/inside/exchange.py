"""Plain values as lines of JSON, between the checker and the candidate.

Values of the plain built-in types cross as what they are, so that nothing of a candidate's own classes (`__eq__`, …) reaches
the checker. An object of any other type stays with the candidate. The checker gets a reference, which is equal to nothing.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final, NoReturn

_EXACT: Final = 1 << 53
_MOST: Final = 1 << 24
"""Most bytes of a line."""
_COLLECTIONS: Final = {"tuple": tuple, "set": set, "frozenset": frozenset}

Keep = Callable[[Any], int]
"""Takes an object of no plain type, and returns its number."""


class Reference:
    """An object that the other side keeps."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, number: int, name: str, ask: Callable[[dict[str, Any]], Any]) -> None:
        self._number, self._name, self._ask = number, name, ask

    def __eq__(self, other: object) -> bool:
        return False

    def __bool__(self) -> bool:
        raise TypeError(
            f"the program returned an object of type {self._name}, which is neither true nor false here"
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the object where it is."""
        return self._ask(call(self._number, arguments, named))

    def __iter__(self) -> Iterator[Any]:
        return iter(self._ask({"iterate": self._number}))


class OpenReference(Reference):
    """A reference that a test may look into, where its setup makes objects. What it finds crosses like every value."""

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the object. Special methods are not asked for, so that it stays equal to nothing."""
        if name.startswith("_"):
            raise AttributeError(name)
        return self._ask({"attribute": [self._number, name]})


def call(what: str | int, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request to call a function, by its name or its number.

    Raises:
        TypeError: an argument cannot be sent.
    """
    return {
        "call": what,
        "arguments": [encode(one, _refuse) for one in arguments],
        "named": {name: encode(one, _refuse) for name, one in named.items()},
    }


def _refuse(value: Any) -> NoReturn:
    raise TypeError(f"the test passes a {type(value).__name__}, which cannot be sent to the program")


def encode(value: Any, keep: Keep) -> Any:
    """Return a value as JSON's types."""
    if value is None or isinstance(value, bool | int | float | str | complex | bytes | bytearray | range):
        return _plain(value)
    if isinstance(value, list):
        return [encode(item, keep) for item in value]
    for name, kind in _COLLECTIONS.items():
        if isinstance(value, kind):
            return {name: [encode(item, keep) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key, keep), encode(item, keep)] for key, item in value.items()]}
    return _other(value, keep)


def _plain(value: Any) -> Any:  # noqa: PLR0911  (one for each type)
    """Return a value without parts. A subclass's value is that of its base."""
    match value:
        case None | bool():
            return value
        case int():
            return int(value) if -_EXACT < value < _EXACT else {"int": hex(value)}
        case float():
            return float(value)
        case str():
            return str.__str__(value)
        case complex():
            return {"complex": [value.real, value.imag]}
        case range():
            return {"range": [value.start, value.stop, value.step]}
        case _:
            return {"bytes": bytes(value).hex()}


def _other(value: Any, keep: Keep) -> Any:
    if isinstance(value, Reference):
        return {"kept": value._number}  # noqa: SLF001
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return encode(value.item(), keep)
    return {"reference": [keep(value), type(value).__name__]}


def decode(given: Any, kept: Callable[[int], Any], refer: Callable[[int, str], Any]) -> Any:
    """Return the value that `encode` was given.

    Args:
        given: JSON's types.
        kept: returns an object by its number.
        refer: makes the reference to an object of the other side.

    Raises:
        ValueError, TypeError, KeyError: it is no such value.
    """
    if isinstance(given, list):
        return [decode(item, kept, refer) for item in given]
    if not isinstance(given, dict):
        return given
    ((name, value),) = given.items()
    if name in _COLLECTIONS:
        return _COLLECTIONS[name](decode(item, kept, refer) for item in value)
    if name == "dict":
        return {decode(key, kept, refer): decode(item, kept, refer) for key, item in value}
    readers: dict[str, Callable[[], Any]] = {
        "int": lambda: int(value, 16),
        "bytes": lambda: bytes.fromhex(value),
        "complex": lambda: complex(*value),
        "range": lambda: range(*value),
        "kept": lambda: kept(value),
        "reference": lambda: refer(*value),
    }
    return readers[name]()


def send(file: BinaryIO, value: Any) -> None:
    """Write one line."""
    file.write(json.dumps(value).encode() + b"\n")
    file.flush()


def receive(file: BinaryIO) -> Any:
    """Read one line; None at the end.

    Raises:
        ValueError: it is not JSON.
    """
    line = file.readline(_MOST)
    return json.loads(line) if line.endswith(b"\n") else None
