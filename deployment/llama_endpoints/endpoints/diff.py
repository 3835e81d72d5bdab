"""What a deployment or an endpoint is set to, as flat fields that can be compared: what the file says, and what Azure reports."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Fields = Mapping[str, str]
"""`{"request_settings.request_timeout_ms": "180000"}`."""

_NOT_COMPARED: Final = frozenset({
    "$schema", "name", "endpoint_name", "type", "id", "creation_context", "provisioning_state", "properties", "tags",
    "code_configuration.code",
})  # fmt: skip
"""Names, what Azure adds, and the code: that is compared by its digest."""
_ASSET: Final = re.compile(r"(?:azureml:)?/subscriptions/.*/\w+/([^/]+)/versions/([^/]+)")
_NAMED: Final = re.compile(r"(?:azureml:)?/subscriptions/.*/computes/([^/]+)")
_VARIABLES: Final = "environment_variables."


@dataclass(frozen=True, slots=True)
class Change:
    """A field that is another one; None where it is not set."""

    field: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.field} {self.before or 'not set'} -> {self.after or 'not set'}"


def flat(given: Mapping[str, Any]) -> Fields:
    """Nested values by their dotted names. References are `NAME:VERSION` and settings of a batch job stand at the root, as Azure has them."""
    found = dict(_flat("", given))
    return {
        name: value
        for name, value in found.items()
        if not _NOT_COMPARED.intersection((name, name.partition(".")[0]))
    }


def changes(wanted: Fields, there: Fields) -> tuple[Change, ...]:
    """What has to change. A field that the file leaves out is Azure's to choose; an environment variable is not."""
    gone = (name for name in there if name.startswith(_VARIABLES) and name not in wanted)
    other = (name for name, value in wanted.items() if there.get(name) != value)
    return tuple(Change(name, there.get(name), wanted.get(name)) for name in sorted({*gone, *other}))


def _flat(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            outer = "" if place == "settings" else place
            yield from _flat(f"{outer}.{name}" if outer else str(name), inner)
    elif value is not None:
        yield place, _short(str(value))


def _short(value: str) -> str:
    asset, named = _ASSET.fullmatch(value), _NAMED.fullmatch(value)
    if asset:
        return f"{asset[1]}:{asset[2]}"
    return named[1] if named else value.removeprefix("azureml:")
