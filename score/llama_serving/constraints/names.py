"""Which names the objects of a JSON schema may have, where several schemas hold one object.

An object whose schema has `properties` and says nothing of others gets no others: each text is still valid, and a model that may write further
properties writes them without an end. Schemas of one object (by `allOf`, or by `anyOf`, `oneOf` or `$ref` beside other keywords) then have to know
each other's names.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

Names = frozenset[str]
Resolve = Callable[[str], Any]
"""Returns what a reference leads to; None if nothing stands there."""

MOST_STEPS: Final = 50_000
"""Schemas to look at, each time that one is; behind them objects get fewer names, and texts stay valid."""
MOST_NAMES: Final = 200_000
"""Names in the sets that schemas are looked at with; behind them likewise."""
_CHOICES: Final = ("anyOf", "oneOf")
_OWN: Final = ("properties", "required")
_NOBODY: Final = frozenset[str]()


class OtherNames:
    """For each schema in a schema, the names that others have for the same object.

    Args:
        root: the schema, as it was sent.
        resolve: finds what its references lead to.
    """

    def __init__(self, root: Any, resolve: Resolve) -> None:
        self._resolve = resolve
        self._found: dict[int, Names] = {}
        self._named: dict[int, Names] = {}
        self._steps = 0
        self._weight = 0
        self._seen: set[tuple[int, Names]] = set()
        self._look_at(root)

    def of(self, schema: Mapping[str, Any]) -> Names:
        """Return the names that others have for the object of a schema."""
        return self._found.get(id(schema), _NOBODY)

    def _look_at(self, root: Any) -> None:
        left: list[tuple[Any, Names]] = [(root, _NOBODY)]
        while left and self._steps < MOST_STEPS and self._weight < MOST_NAMES:
            self._steps += 1
            schema, others = left.pop()
            if isinstance(schema, dict) and (id(schema), others) not in self._seen:
                self._seen.add((id(schema), others))
                left += [(inside, _NOBODY) for inside in _inside(schema)]
                left += self._spread(schema, others)

    def _spread(self, schema: Mapping[str, Any], others: Names) -> Iterator[tuple[Any, Names]]:
        """Record the names that others have for a schema's object; yield what holds the same object, with its others' names."""
        parts, own = list(self._parts(schema)), _own_names(schema)
        names = [_NOBODY.union(*map(self._names, part)) for part in parts]
        self._found[id(schema)] = self.of(schema) | others.union(*names) - own
        for at, part in enumerate(parts):
            known = others.union(own, *names[:at], *names[at + 1 :])
            self._weight += len(known)
            yield from ((one, known) for one in part)

    def _parts(self, schema: Mapping[str, Any]) -> Iterator[list[Any]]:
        """Yield what holds the schema's own instance, beside its own keywords: one schema, or the options of a choice."""
        for one in _list(schema.get("allOf")):
            yield [one]
        for keyword in _CHOICES:
            if keyword in schema:
                yield _list(schema[keyword])
        if isinstance(schema.get("$ref"), str):
            yield [self._resolve(schema["$ref"])]

    def _names(self, schema: Any) -> Names:
        """Return the names that a schema and all that hold its instance have for it."""
        if id(schema) not in self._named:
            reached: dict[int, Any] = {}
            left = [schema]
            while left and self._steps < MOST_STEPS:
                self._steps += 1
                one = left.pop()
                if isinstance(one, dict) and id(one) not in reached:
                    reached[id(one)] = one
                    left += [inner for part in self._parts(one) for inner in part]
            self._named[id(schema)] = _NOBODY.union(*map(_own_names, reached.values()))
        return self._named[id(schema)]


def _own_names(schema: Mapping[str, Any]) -> Names:
    given = (schema.get(keyword) for keyword in _OWN)
    return frozenset(
        name for names in given if isinstance(names, (dict, list)) for name in names if isinstance(name, str)
    )


def _inside(schema: Mapping[str, Any]) -> Iterator[Any]:
    """Yield the schemas of other instances: properties, items, definitions."""
    for keyword in ("properties", "patternProperties", "$defs", "definitions"):
        inside = schema.get(keyword)
        yield from inside.values() if isinstance(inside, dict) else ()
    yield from _list(schema.get("prefixItems"))
    yield schema.get("items")
    yield schema.get("additionalProperties")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
