"""Compare the settings of an endpoint or deployment, from its file and from Azure, as flat fields."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Fields = Mapping[str, str]
"""Values by dotted name, such as `{"request_settings.request_timeout_ms": "180000"}`."""

_NOT_COMPARED: Final = frozenset({
    "$schema", "name", "endpoint_name", "type", "id", "creation_context", "provisioning_state", "properties", "tags",
    "code_configuration.code",
})  # fmt: skip
"""Names, fields that Azure adds, and the code, which is compared by digest."""
_ASSET: Final = re.compile(r"(?:azureml:)?/subscriptions/.*/\w+/([^/]+)/versions/([^/]+)")
_NAMED: Final = re.compile(r"(?:azureml:)?/subscriptions/.*/computes/([^/]+)")
_VARIABLES: Final = "environment_variables."


@dataclass(frozen=True, slots=True)
class FieldChange:
    """A field that differs; None means not set."""

    field: str
    before: str | None
    after: str | None

    def __str__(self) -> str:
        return f"{self.field} {self.before or 'not set'} -> {self.after or 'not set'}"


def flat(given: Mapping[str, Any]) -> Fields:
    """Return nested values by dotted name. References become `NAME:VERSION`; a batch job's `settings` move to the root, as in Azure."""
    found = dict(_flat("", given))
    return {
        name: value
        for name, value in found.items()
        if not _NOT_COMPARED.intersection((name, name.partition(".")[0]))
    }


def changes(desired: Fields, actual: Fields) -> tuple[FieldChange, ...]:
    """Return the changes needed. Azure may choose a field that the file omits, but not add an environment variable."""
    gone = (name for name in actual if name.startswith(_VARIABLES) and name not in desired)
    other = (name for name, value in desired.items() if actual.get(name) != value)
    return tuple(FieldChange(name, actual.get(name), desired.get(name)) for name in sorted({*gone, *other}))


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
