"""JSON schemas: what is held is held exactly, and what can't be is refused by its keyword. jsonschema is the oracle; no model takes part."""

import json
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llama_serving.constraints import schemas
from llama_serving.constraints.compiler import Compiler
from llama_serving.constraints.constraint import Constraint, of_exact, of_grammar, of_schema
from llama_serving.errors import BadRequest
from tests.support.walks import BYTES, walks

COMPILER: Final = Compiler(BYTES)


def texts(schema: Any, number: int = 6, seed: int = 0) -> list[str]:
    """Texts that hold to a schema; each is valid against it."""
    constraint = of_schema(schema, "schema")
    valid = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    made = list(walks(COMPILER, constraint, number=number, seed=seed))
    assert [text for text in made if not valid.is_valid(json.loads(text))] == []
    return made


HELD: Final[dict[str, Any]] = {
    "type": {"type": ["integer", "null", "boolean", "object", "array", "number", "string"]},
    "const": {"const": {"a": [None, 1.5, True, "é"]}},
    "enum": {"enum": [None, 5, "x", [1, {"a": False}], 0.1, -7]},
    "anyOf": {"anyOf": [{"type": "integer"}, {"const": "x"}]},
    "allOf of objects": {
        "allOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}, {"$ref": "#/$defs/b"}], "type": "object",
        "$defs": {"b": {"properties": {"b": {"const": 1}}, "required": ["b"], "anyOf": [{"required": ["c"]}, {"properties": {"a": True}}]}},
    },
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    "allOf": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "$ref": {"type": "array", "items": {"$ref": "#/$defs/a~1b"}, "maxItems": 2, "$defs": {"a/b": {"enum": [1, 2]}}},
    "$id": {"$id": "https://example.com/x", "type": "null"},
    "definitions": {"$ref": "#/definitions/a", "definitions": {"a": {"type": "null"}}},
    "properties": {"type": "object", "properties": {"a": {"type": "null"}, 'é"\\': {"type": "null"}}, "additionalProperties": False},
    "patternProperties": {"type": "object", "patternProperties": {"^a?$": {"type": "null"}}, "additionalProperties": False},
    "additionalProperties": {
        "type": "object", "properties": {"ab": {"type": "null"}, "a": {"type": "null"}}, "additionalProperties": {"type": "integer"},
    },
    "required": {"type": "object", "required": ["b"], "additionalProperties": {"type": "null"}},
    "minProperties": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "null"}},
    "maxProperties": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "null"}},
    "items": {"type": "array", "items": {"type": "null"}},
    "prefixItems": {"type": "array", "prefixItems": [{"type": "null"}, {"const": 1}], "items": False},
    "minItems": {"type": "array", "items": {"const": 1}, "minItems": 2},
    "maxItems": {"type": "array", "items": {"const": 1}, "maxItems": 1},
    "uniqueItems": {"type": "array", "items": {"const": 1}, "uniqueItems": False},
    "minLength": {"type": "string", "minLength": 2},
    "maxLength": {"type": "string", "maxLength": 2},
    "pattern": {"type": "string", "pattern": '^(a|\\d)é"?$'},
    "format": {"type": "string", "format": "date"},
    "minimum": {"type": "number", "minimum": -3.25, "maximum": 10},
    "maximum": {"type": "integer", "maximum": -7},
    "exclusiveMinimum": {"type": "integer", "exclusiveMinimum": 3, "maximum": 5},
    "exclusiveMaximum": {"type": "integer", "exclusiveMaximum": 3, "minimum": 0},
    "multipleOf": {"type": "integer", "multipleOf": 7},
}  # fmt: skip
REFUSED: Final[dict[str, Any]] = {
    "not": {"type": "null"}, "if": True, "then": True, "else": True, "contains": True, "minContains": 1, "maxContains": 1,
    "propertyNames": True, "dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": True}, "unevaluatedItems": False,
    "unevaluatedProperties": False, "uniqueItems": True, "$dynamicRef": "#a", "$dynamicAnchor": "a", "$anchor": "a", "$vocabulary": {},
    "additionalItems": False, "dependencies": {}, "nullable": True, "minLenght": 1, "id": "x", "format": "regex", "multipleOf": 0.1,
    "minProperties": 2, "$ref": "https://example.com/x", "const": 2**60, "pattern": "(?=a)", "maxItems": 10**9, "type": "int",
}  # fmt: skip
ELSEWHERE: Final = {"$defs"}
"""Tested with another keyword."""


def test_every_keyword_of_the_draft_is_held_or_refused() -> None:
    assert HELD.keys() | ELSEWHERE == schemas._KEYWORDS.keys() | {"allOf of objects"}
    assert set(Draft202012Validator.VALIDATORS) <= HELD.keys() | REFUSED.keys() | ELSEWHERE


@pytest.mark.parametrize("keyword", HELD)
def test_what_is_held_is_held_exactly(keyword: str) -> None:
    assert texts(HELD[keyword], 12)


@pytest.mark.parametrize("keyword", REFUSED)
@pytest.mark.parametrize("deep", [False, True])
def test_what_is_not_held_is_refused_by_name(keyword: str, *, deep: bool) -> None:
    rule = {keyword: REFUSED[keyword]}
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, rule]}}} if deep else rule
    with pytest.raises(BadRequest) as refusal:
        of_schema(schema, "schema")
    assert (refusal.value.code, str(refusal.value.param).rpartition(".")[2]) == (
        "unsupported_constraint",
        keyword,
    )
    assert keyword in refusal.value.message


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "nothing meets"),
        ({"$ref": "#"}, "nothing meets"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "nothing meets"),
        (
            {"allOf": [{"properties": {name: True}, "additionalProperties": True} for name in "ab"]},
            "allOf",
        ),
        (
            {
                "minProperties": 1,
                "maxProperties": 2,
                "properties": {"a": {"type": "null"}},
                "additionalProperties": True,
            },
            "minProperties",
        ),
        (
            {"type": "object", "patternProperties": {"a": True, "b": True}, "additionalProperties": False},
            "patternProperties",
        ),
        ({"type": "object", "patternProperties": {"a": True}, "properties": {"b": True}}, "patternProperties"),
    ],
)
def test_what_llguidance_refuses_is_a_refusal_in_our_words(schema: Any, word: str) -> None:
    with pytest.raises(BadRequest, match=word) as refusal:
        COMPILER.compile(of_schema(schema, "it"), "it")
    assert refusal.value.code == "unsupported_constraint"


@pytest.mark.parametrize(
    "schema",
    [False, 5, "x", None, [], {"properties": []}, {"anyOf": []}, {"items": 5}, {"required": "a"}, {"enum": []}],
)
def test_what_is_no_schema(schema: Any) -> None:
    with pytest.raises(BadRequest):
        of_schema(schema, "schema")


@pytest.mark.parametrize("keyword", [*sorted(schemas.ANNOTATIONS - {"$schema"}), "x-order"])
def test_annotations_hold_nobody(keyword: str) -> None:
    assert schemas.exact({keyword: {"anyOf": 5}, "type": "null"}, "schema") == {"type": "null"}


def test_further_names_are_compared_as_they_are_read() -> None:
    """llguidance itself lets `"\\u0061"` pass as another name than `a`."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": True,
    }
    compiled = COMPILER.compile(of_schema(schema, "it"), "it")
    for name, passes in (
        (b'"b"', True),
        (rb'"\u0061"', False),
        (b'"a"', False),
        (b'"aa"', True),
        (b'""', True),
    ):
        matcher = compiled.matcher(frozenset())
        allowed = True
        for byte in b'{"a":1,' + name:
            allowed = allowed and bool(matcher.allowed(len(BYTES))[0][byte])
            if allowed:
                matcher.advance(byte)
        assert allowed == passes, name


def test_an_object_has_the_names_of_all_who_hold_it_and_no_others() -> None:
    names = {name for text in texts(HELD["allOf of objects"], 40) for name in json.loads(text)}
    assert names == {"a", "b", "c"}
    assert {
        name for text in texts({"type": "object", "properties": {"x": True}}, 10) for name in json.loads(text)
    } == {"x"}


@pytest.mark.parametrize("name", schemas.FORMATS)
def test_formats(name: str) -> None:
    assert len(texts({"type": "string", "format": name}, 20)) > 10
    assert texts({"type": "string", "format": name, "pattern": "[0-9]"}, 5)


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("2024-02-29", True),
        ("2023-02-29", False),
        ("1900-02-29", False),
        ("2000-02-29", True),
        ("0000-01-01", False),
        ("2023-04-31", False),
    ],
)
def test_dates_are_those_of_the_calendar(text: str, *, valid: bool) -> None:
    matcher = COMPILER.compile(of_schema({"type": "string", "format": "date"}, "it"), "it").matcher(frozenset())
    seen = []
    for byte in f'"{text}"'.encode():
        seen.append(bool(matcher.allowed(len(BYTES))[0][byte]))
        if not seen[-1]:
            break
        matcher.advance(byte)
    assert all(seen) == valid


# --- schemas at random ----------------------------------------------------------------------------

NUMBERS: Final = st.integers(-100, 100) | st.sampled_from([0.5, -2.25, 1e-6, 12345.678, 3.0])
SCALARS: Final = st.none() | st.booleans() | NUMBERS | st.text(max_size=4)
VALUES: Final = st.recursive(
    SCALARS,
    lambda one: st.lists(one, max_size=2) | st.dictionaries(st.text(max_size=3), one, max_size=2),
    max_leaves=4,
)
RANGE: Final = st.tuples(NUMBERS, NUMBERS).map(sorted)
SIZES: Final = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(sorted)
NAMES: Final = st.sampled_from(["a", "b", "ab", "é", 'q"', "", "a\\", "\n"])
LEAVES: Final = st.one_of(
    st.builds(lambda kind, ends: {"type": kind, "minimum": ends[0], "maximum": ends[1]}, st.sampled_from(["integer", "number"]), RANGE),
    st.builds(lambda low, high: {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + high}, NUMBERS, st.integers(1, 9)),
    st.builds(lambda number, kind: {"type": kind, "multipleOf": number}, st.integers(1, 20), st.sampled_from(["integer", "number"])),
    st.builds(lambda ends: {"type": "string", "minLength": ends[0], "maxLength": ends[1]}, SIZES),
    st.sampled_from(["^a+$", "b", r"^\d{2}[^x]$", r"^\W\S$", "é|^$"]).map(lambda pattern: {"type": "string", "pattern": pattern}),
    VALUES.map(lambda value: {"const": value}),
    st.lists(VALUES, min_size=1, max_size=3).map(lambda values: {"enum": values}),
    st.sampled_from([{}, True, {"type": ["null", "boolean"]}, {"type": "number"}, {"type": "string"}, {"type": "object"}, {"type": "array"}]),
)  # fmt: skip


def _object(
    properties: dict[str, Any], required: list[str], further: Any, more: dict[str, Any]
) -> dict[str, Any]:
    rest = {} if further is ... else {"additionalProperties": further}
    return {"type": "object", "properties": properties, "required": required, **rest, **more}


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(
            _object,
            st.dictionaries(NAMES, inner, max_size=3),
            st.lists(NAMES, max_size=2, unique=True),
            st.just(...) | st.booleans() | inner,
            st.just({})
            | st.builds(
                lambda word, ones: {word: ones},
                st.sampled_from(["anyOf", "oneOf", "allOf"]),
                st.lists(inner, min_size=1, max_size=2),
            ),
        ),
        st.builds(
            lambda item, ends: {"type": "array", "items": item, "minItems": ends[0], "maxItems": ends[1]},
            inner,
            SIZES,
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda ones: {"type": "array", "prefixItems": ones}),
        st.lists(inner, min_size=1, max_size=3).map(lambda ones: {"anyOf": ones}),
        st.lists(inner, min_size=1, max_size=2).map(lambda ones: {"oneOf": ones}),
        st.lists(inner, min_size=1, max_size=2).map(lambda ones: {"allOf": ones}),
        inner.map(lambda one: {"$ref": "#/$defs/x", "$defs": {"x": one}}),
    )


SCHEMAS: Final = st.recursive(LEAVES, _nested, max_leaves=5)


def _hoisted(schema: Any) -> Any:
    """The schema with its definitions at the root; each `#/$defs/x` becomes one of its own."""
    found: dict[str, Any] = {}

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node]
        if not isinstance(node, dict) or node.keys() & {"const", "enum"}:
            return node
        if "$defs" in node and "$ref" in node:
            name = f"d{len(found)}"
            found[name] = None
            found[name] = walk(node["$defs"]["x"])
            return {"$ref": f"#/$defs/{name}"}
        return {key: walk(value) for key, value in node.items()}

    root = walk(schema)
    return {"allOf": [root], "$defs": found} if found else root


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(SCHEMAS, st.integers(0, 1000))
def test_whatever_ends_is_valid(schema: Any, seed: int) -> None:
    with suppress(BadRequest):
        texts(_hoisted(schema), 3, seed)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(SCHEMAS)
def test_an_exact_schema_stays_as_it_is(schema: Any) -> None:
    """Another server of ours may be behind this one, and reads what this one has rewritten."""
    try:
        once = schemas.exact(_hoisted(schema), "schema")
    except BadRequest:
        return
    twice = schemas.exact(once, "schema")
    assert json.dumps(schemas.exact(twice, "schema")) == json.dumps(twice)


def test_a_schema_as_a_part_of_another() -> None:
    schema = schemas.exact(
        {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"enum": [1, {"$ref": "#/x"}]}}}, "it"
    )
    part = schemas.rebased(schema, "/properties/a")
    whole = {"type": "object", "properties": {"a": part}, "required": ["a"], "additionalProperties": False}
    assert part["$defs"]["n"]["enum"][1] == {"$ref": "#/x"}
    made = list(walks(COMPILER, of_exact(whole), number=5))
    assert made
    assert {json.dumps(item) for text in made for item in json.loads(text)["a"]} <= {"1", '{"$ref": "#/x"}'}


def test_sizes_are_bounded() -> None:
    with pytest.raises(BadRequest, match="more than 65536"):
        of_schema({"enum": ["x" * 70_000]}, "schema")
    deep: Any = {"type": "null"}
    for _ in range(60):
        deep = {"anyOf": [deep]}
    with pytest.raises(BadRequest, match="nested deeper"):
        of_schema(deep, "schema")
    with pytest.raises(BadRequest, match="more than 16 schemas"):
        of_schema({"allOf": [{"pattern": f"a.{{{number}}}b"} for number in range(20)]}, "schema")
    with pytest.raises(BadRequest, match="more than 300 of its parts"):
        of_schema(chain(1200), "schema")


def chain(length: int, kind: str = "anyOf") -> Any:
    """A schema that refers to a part, which refers to the next one."""
    next_one = [{"$ref": f"#/$defs/d{number + 1}"} for number in range(length)]
    parts = [{"anyOf": [one]} if kind == "anyOf" else {"type": "array", "items": one} for one in next_one]
    return {
        "$ref": "#/$defs/d0",
        "$defs": {**{f"d{n}": part for n, part in enumerate(parts)}, f"d{length}": {"const": 1}},
    }


@pytest.mark.parametrize("kind", ["anyOf", "items"])
def test_a_chain_of_parts_is_compiled(kind: str) -> None:
    COMPILER.compile(of_schema(chain(299, kind), "schema"), "schema")


def test_a_chain_of_rules_is_compiled_or_refused() -> None:
    def rules(number: int) -> str:
        return "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(number)) + f'r{number}: "a"\n'

    COMPILER.compile(of_grammar(rules(490), "it"), "it")
    for grammar in (rules(3000), f'start: {"(" * 3000}"a"{")" * 3000}'):
        with pytest.raises(BadRequest, match=r"more than 500 rules|nested deeper than 50"):
            of_grammar(grammar, "it")


def test_more_stack_is_there_than_the_longest_constraint_needs() -> None:
    """Checks of length are left out: an overflow would end this process."""
    rules = "start: r0\n" + "".join(f"r{n}: r{n + 1}\n" for n in range(4000)) + 'r4000: "a"\n'
    assert len(rules) < 65_536
    Compiler(BYTES).compile(Constraint("grammar", rules), "it")


@pytest.mark.parametrize(
    "schema",
    [
        {"required": 5}, {"properties": True}, {"format": ["date"]}, {"minItems": float("inf")},
        {"prefixItems": [True], "$ref": f"#/prefixItems/{'9' * 5000}"},
        {"properties": {"a" * 256: True}, "additionalProperties": {"type": "null"}},
        {"allOf": [{"properties": {f"p{n}": True}} for n in range(1000)]},
        {"pattern": "(^|)" * 24}, {"pattern": "(^|^)" * 600}, {"pattern": "(" * 60 + ")" * 60},
    ],
)  # fmt: skip
def test_what_is_no_schema_or_takes_too_long_is_refused(schema: Any) -> None:
    with pytest.raises(BadRequest):
        of_schema(schema, "schema")


def test_a_name_of_eighty_characters_is_held() -> None:
    schema = {
        "properties": {"a" * 80: True},
        "required": ["a" * 80],
        "additionalProperties": {"type": "null"},
    }
    COMPILER.compile(of_schema(schema, "schema"), "schema")


@pytest.mark.parametrize(
    "grammar",
    ['start: "100%json"', "start: /%json/", 'start: "a" // %json\n', 'start: %json {"const": "a%json"}'],
)
def test_a_word_in_a_text_is_no_schema(grammar: str) -> None:
    COMPILER.compile(of_grammar(grammar, "it"), "it")


def test_compiled_constraints_are_kept_and_dropped() -> None:
    compiler = Compiler(BYTES)
    first = compiler.compile(Constraint("regex", "a"), "it")
    assert compiler.compile(Constraint("regex", "a"), "it") is first
    for number in range(40):
        compiler.compile(Constraint("regex", f"b{number}"), "it")
    assert len(compiler._kept) == 32
    assert compiler.compile(Constraint("regex", "a"), "it") is not first
