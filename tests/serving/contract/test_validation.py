"""The published schemas are the rules: they are valid, complete, and say what our validator enforces."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from llama_serving import errors
from llama_serving.contract import azure, mlflow, openai, rows
from llama_serving.contract.parameters import ALIASES
from llama_serving.contract.request import Parameters
from llama_serving.contract.strict_json import decode
from llama_serving.contract.validation import path_of, schema, validate
from llama_serving.errors import OPENAI_CODES, BadRequest, ServingError
from tests.support.bad_bodies import EDGES, NO_EFFECT, REFUSED, SECRET, WRONG_OPENAI, Bad, Stock, score, user

NAMES = sorted(
    path.name.removesuffix(".json") for path in files("llama_serving.contract").joinpath("schema").iterdir()
)

GOOD: Mapping[str, tuple[Any, ...]] = {
    "azure": (
        score(SECRET),
        score([SECRET, {"prefix": "", "suffix": "a"}], temperature=0.5, stop=["a"]),
        score([user()]),
        {"input_data": [SECRET], "params": None, "parameters": {"n": 2}},
        {"input_data": {"columns": ["input_string"], "index": [0], "data": [["a"], [[user()]]]}},
    ),
    "mlflow": (
        {"inputs": [SECRET], "params": {"seed": 1}},
        {"dataframe_records": [{"input_string": "a"}, {"prefix": "a", "suffix": "b"}]},
        {"instances": ["a", {"prefix": "a", "suffix": "b"}]},
        {"inputs": None, "instances": ["a"]},
    ),
    "openai-completions": (
        {"prompt": "a", "user": "x"},
        {"prompt": [1, 2.0]},
        {"prompt": "", "suffix": "a"},
    ),
    "openai-chat": ({"messages": [user()], "model": "m"},),
    "row": ({"prefix": "a", "suffix": "b", "parameters": None}, {"messages": [user()]}),
}


def rules(node: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every subschema that can refuse something by itself; conditions refuse nothing."""
    if isinstance(node, list):
        for item in node:
            yield from rules(item, name)
    elif isinstance(node, dict):
        if name != "properties" and node.keys() & {"type", "enum", "const", "minimum", "minLength", "maxItems"}:
            yield name, node
        for key, value in node.items():
            if key not in ("if", "not", "enum", "description"):
                yield from rules(value, key)


@pytest.mark.parametrize("name", NAMES)
def test_every_schema_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema(name)["$id"] == f"urn:llama-endpoints:{name}"


OF_ANSWERS = {"error", "answers", "openai-answers", "ollama-answers", "llamacpp-answers", "vllm-answers"}
"""They refuse nothing."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_ANSWERS])
def test_every_rule_says_what_is_allowed(name: str) -> None:
    """Messages are made of the descriptions: without one they would say `must be valid`."""
    silent = [rule for key, rule in rules(schema(name)) if "description" not in rule]
    assert silent == []


def test_the_parameters_are_the_allow_list() -> None:
    names = {field.name for field in fields(Parameters)}
    assert schema("parameters")["properties"].keys() == names | ALIASES.keys() | NO_EFFECT.keys()
    assert set(ALIASES.values()) <= names
    assert EDGES.keys() == names | ALIASES.keys(), "each needs its edges tested"


@pytest.mark.parametrize("name", ["openai-chat", "openai-completions"])
def test_the_openai_parameters_are_the_same_rules(name: str) -> None:
    own = {"logprobs", "top_logprobs"} | (
        {"max_tokens"} if name == "openai-chat" else set()
    )  # (-1 is all that fits)
    for parameter, rule in schema(name)["properties"].items():
        if parameter in EDGES and parameter not in own:
            assert rule == {"$ref": f"urn:llama-endpoints:parameters#/properties/{parameter}"}


# --- our validator and others ------------------------------------------------------------

REGISTRY: Registry[Any] = Registry().with_resources(
    (f"urn:llama-endpoints:{name}", Resource.from_contents(schema(name))) for name in NAMES
)


def valid_to_others(body: Any, name: str) -> bool:
    """With a standard validator on the published files."""
    return bool(Draft202012Validator(schema(name), registry=REGISTRY).is_valid(body))


def valid_to_us(body: Any, name: str) -> bool:
    try:
        validate(body, name)
    except BadRequest:
        return False
    return True


@pytest.mark.parametrize(("name", "body"), [(name, body) for name, bodies in GOOD.items() for body in bodies])
def test_good_bodies_are_valid_to_every_validator(name: str, body: object) -> None:
    assert valid_to_us(body, name)
    assert valid_to_others(body, name)


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: bad.name)
def test_others_judge_our_bad_bodies_as_we_do(bad: Bad) -> None:
    assert valid_to_others(bad.body, "azure") == valid_to_us(bad.body, "azure")


@pytest.mark.parametrize("bad", WRONG_OPENAI, ids=lambda bad: bad.name)
def test_others_judge_openai_bodies_as_we_do(bad: Bad) -> None:
    name = "openai-chat" if "messages" in bad.body else "openai-completions"
    assert valid_to_others(bad.body, name) == valid_to_us(bad.body, name)


@settings(deadline=None)
@given(ids=st.lists(st.integers(-1, 5) | st.sampled_from([1.0, 0.5, -1.0, 1e30, True, None, "a"])))
def test_token_ids_are_judged_as_others_judge_them(ids: list[Any]) -> None:
    """Our validator has a fast path for lists of numbers."""
    assert valid_to_us(ids, "prompts#/$defs/token_ids") == valid_to_others(
        {"prompt": [ids]}, "openai-completions"
    )


# --- refusals ---------------------------------------------------------------------------------------


def test_paths_are_written_as_a_client_would() -> None:
    assert path_of() == ""
    assert path_of("input_data", "input_string", 3) == "input_data.input_string[3]"
    assert path_of("data", 1, 0, "content") == "data[1][0].content"


ERRORS: tuple[type[ServingError], ...] = (ServingError, *ServingError.__subclasses__())


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("openai_route", [False, True])
def test_every_error_body_is_of_the_published_shape(kind: type[ServingError], openai_route: bool) -> None:
    bare = kind("Why.")
    full = kind("Why.", code="c", param="a[0]", index=0, retry_after=1)
    located = bare.at(param="b", index=1)
    for error in (bare, full, located):
        body = error.body("id", openai=openai_route)
        validate(body, "error")
        assert body["error"]["code"] == (
            OPENAI_CODES.get(error.code, error.code) if openai_route else error.code
        )
        assert ("type" in body["error"]) == openai_route
        assert error.body()["error"].get("request_id") is None
    assert 400 <= kind.status < 600
    assert full.at(param="b", index=1).body() == full.body()


def test_every_error_has_its_status() -> None:
    statuses = {kind.__name__: kind.status for kind in ERRORS}
    assert statuses == {
        "ServingError": 500,
        "BadRequest": 400,
        "Unauthorized": 401,
        "NotFound": 404,
        "MethodNotAllowed": 405,
        "RequestTimeout": 408,
        "BodyTooLarge": 413,
        "UnsupportedMediaType": 415,
        "QueueFull": 429,
        "RateLimited": 429,
        "InternalError": 500,
        "Unavailable": 503,
        "DeadlineExceeded": 504,
    }
    assert all(name in str(errors.__doc__) for name in statuses)


PARSERS: Mapping[str, Callable[[Any], object]] = {
    "azure": azure.parse,
    "mlflow": mlflow.parse,
    "openai": openai.parse,
    "row": lambda body: rows.request(rows.split(body), Parameters()),
}

# Long enough not to stand in a message by accident.
prompts = st.text(st.characters(exclude_categories=["Cs"]), min_size=12)
wrong: st.SearchStrategy[Any] = st.sampled_from([None, 5, 0.5, True, "", [], {}, [[]], {"role": "user"}])
names = st.sampled_from(
    ["prefix", "suffix", "role", "content", "seed", "stop", "input_string", "parameters", "colour"]
)


@st.composite
def broken(draw: st.DrawFn) -> tuple[str, str, Any]:
    """A parser, a prompt, and a body that has it somewhere and is mostly wrong."""
    prompt = draw(prompts)
    leaf = st.just(prompt) | wrong
    node = st.recursive(leaf, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=6)
    role = st.sampled_from(["user", "assistant", "system", "tool", prompt])
    message = st.fixed_dictionaries({"role": role, "content": node})
    value = node | st.lists(message) | st.lists(st.just(prompt) | wrong)
    tops = ["input_data", "inputs", "instances", "dataframe_split", "dataframe_records", "prompt", "messages",
            "parameters", "params", "suffix", "stop", "input_string", "columns", "data", "model"]  # fmt: skip
    body = draw(st.dictionaries(st.sampled_from(tops), value, min_size=1, max_size=3))
    return draw(st.sampled_from(sorted(PARSERS))), prompt, body


@settings(deadline=None, max_examples=150)
@given(case=broken())
def test_any_body_is_parsed_or_refused_without_its_prompt(case: tuple[str, str, Any]) -> None:
    parser, prompt, body = case
    try:
        PARSERS[parser](decode(json.dumps(body).encode()))
    except BadRequest as error:
        refusal = error
    else:
        return
    validate(refusal.body(), "error")
    assert prompt not in refusal.message
    assert prompt not in (refusal.param or "")


@pytest.mark.parametrize("key", [SECRET, "a b", "x" * 65, "é", "\0", "a\nb", "`"], ids=ascii)
@pytest.mark.parametrize("name", GOOD)
def test_a_text_where_a_name_belongs_is_not_repeated(name: str, key: str) -> None:
    with pytest.raises(BadRequest, match=r"^`…` is not known\. Accepted here: ") as refusal:
        validate({**GOOD[name][0], key: 1}, name)
    assert refusal.value.param == "…"


def test_the_table_of_bad_bodies_tries_every_endpoint() -> None:
    assert {bad.stock for bad in REFUSED} == set(Stock)
