"""Compares a receipt with that of the same request run again. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ENVIRONMENT: Final = ("engine", "version", "commit")
"""What may differ between two runs that give the same bytes."""
_ABSENT: Final = "absent"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs.

    Attributes:
        what: path in the receipt, or `text` for the answer's text.
        expected: of the receipt.
        found: in the replay.
    """

    what: str
    expected: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.what}: {self.expected} in the receipt, {self.found} here"

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON."""
        return {"what": self.what, "receipt": self.expected, "replay": self.found}


@dataclass(frozen=True, slots=True)
class Place:
    """Where two answers first differ; each is None if it can't be told.

    Attributes:
        character: of the text, from 0.
        token: of the replay, from 0.
    """

    character: int | None
    token: int | None

    def __str__(self) -> str:
        parts = (
            f"{name} {at}"
            for name, at in (("character", self.character), ("token", self.token))
            if at is not None
        )
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison of one receipt.

    Attributes:
        name: of what was replayed, for people.
        differences: what the receipt says and the replay does not confirm; none means the same bytes.
        environment: what computed the replay otherwise.
        first: where the answers first differ.
        reason: why the receipt does not promise the same bytes.
    """

    name: str
    differences: tuple[Difference, ...]
    environment: tuple[Difference, ...] = ()
    first: Place | None = None
    reason: str | None = None

    @property
    def identical(self) -> bool:
        """Whether the replay gave the same bytes, and confirms what the receipt says of the request and the model."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        first = self.first
        return {
            "name": self.name,
            "identical": self.identical,
            "differences": [one.to_dict() for one in self.differences],
            "environment": [one.to_dict() for one in self.environment],
            "first_difference": None if first is None else {"character": first.character, "token": first.token},
            "not_promised": self.reason,
        }


def of_job(
    inputs: Iterable[Difference], receipt: Mapping[str, Any] | None, found: Mapping[str, Any]
) -> Verdict:
    """Return the verdict on what the rows of a job share.

    Args:
        inputs: that are not those of the job.
        receipt: the shared part of the job's receipts; None if it is not known.
        found: that of the replay.
    """
    claimed, environment = ((), ()) if receipt is None else split(receipt, found)
    return Verdict("the job", (*inputs, *claimed), environment)


def split(
    receipt: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[tuple[Difference, ...], tuple[Difference, ...]]:
    """Return the differences of two receipts: those of its claims, and those of the environment.

    Whether the same bytes are promised follows from the engine: it is of the environment where the engine differs. A model
    without a digest is on another server, and can't be compared.
    """
    listed = list(differences(receipt, found))
    engine = any(one.what.startswith("engine.") for one in listed)
    soft = {*ENVIRONMENT, *(("reproducible", "reason") if engine else ())}
    if None in (receipt["model"]["sha256"], found["model"]["sha256"]):
        soft |= {"model.sha256", "model.digest_of"}
    environment = tuple(one for one in listed if one.what in soft or one.what.split(".")[0] in soft)
    return tuple(one for one in listed if one not in environment), environment


def differences(expected: Any, found: Any, at: str = "") -> Iterator[Difference]:
    """Yield what differs between two JSON values, by path."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in (*expected, *(name for name in found if name not in expected)):
            path = f"{at}.{name}" if at else name
            yield from differences(expected.get(name, _ABSENT), found.get(name, _ABSENT), path)
    elif expected != found or isinstance(expected, bool) is not isinstance(found, bool):
        yield Difference(at, expected, found)


def first_difference(expected: Sequence[object], found: Sequence[object]) -> int | None:
    """Return the first place where two texts or lists of ids differ; None if they are equal."""
    both = min(len(expected), len(found))
    place = next((i for i in range(both) if expected[i] != found[i]), both)
    return None if len(expected) == len(found) == place else place
