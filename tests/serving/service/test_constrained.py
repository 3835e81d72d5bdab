"""Constrained output with the embedded model: at every endpoint, in both engines, beside others, cut short, cancelled, preempted."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, closing
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.contract import openai
from llama_serving.contract.request import Delta, Generation
from llama_serving.errors import BadRequest
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.bad_bodies import user
from tests.support.endpoints import ENDPOINTS, Endpoint, asked, refused, settled

PROMPT: Final = "def f(x):\n    return"
SCHEMA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "kind": {"enum": ["é", None, 2.5]},
        "parts": {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 50}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"const": {"x": [True]}}]},
    },
    "required": ["name", "kind", "next"],
}
FORMAT: Final = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": None}}
ONE: Final = {"choice": ["zebra 7"]}


def one(service: Service, **body: Any) -> Generation:
    ((generation,),) = service.generate(openai.parse({"prompt": PROMPT, "return_token_ids": True, **body}))
    return generation


@pytest.fixture(scope="module")
def reference() -> Iterator[Service]:
    """The same model in the reference engine."""
    with closing(Service.start(ModelFiles(NANO_FOLDER, NANO), Settings(engine="pipeline"))) as started:
        yield started


# --- endpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_every_endpoint_holds_the_text(
    service: Service, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [user("Reverse a list")] if endpoint.chat else PROMPT
    answer = endpoint.ask(service, prompt, {"max_tokens": 20, "structured_outputs": ONE}, monkeypatch)
    said = list(re.findall(r"zebra 7|zebra|\b7", json.dumps(answer)))
    assert "zebra 7" in said or "stream" in endpoint.name, answer


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_every_endpoint_names_what_it_cannot_hold(
    service: Service, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = [user("Reverse a list")] if endpoint.chat else PROMPT
    schema = {"type": "object", "properties": {"a": {"not": {"const": None}}}}
    for asks, at in (
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
            "json_schema.schema.properties.a.not",
        ),
        ({"structured_outputs": {"json": schema}}, "json.properties.a.not"),
        ({"structured_outputs": {"regex": r"(a)\1"}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs"),
    ):
        error = refused(lambda asks=asks: endpoint.ask(service, prompt, asks, monkeypatch))
        assert error is not None
        assert (error.status, error.code) == (400, "unsupported_constraint")
        assert str(error.param).endswith(at) or (
            endpoint.name.endswith("--parameters") and at == "structured_outputs"
        )


PATHS: Final = ("/score", "/invocations", "/v1/completions", "/v1/chat/completions")


def body_of(path: str, **given: Any) -> dict[str, Any]:
    if path == "/score":
        return {"input_data": [PROMPT], "params": given}
    if path == "/invocations":
        return {"inputs": [PROMPT], "params": given}
    return {"messages": [user("Reverse a list")], **given} if "chat" in path else {"prompt": PROMPT, **given}


def streamed(path: str, events: list[Any]) -> str:
    if path in ("/score", "/invocations"):
        return "".join(event.get("0", "") for event in events)
    pieces = [event["choices"][0] for event in events]
    return "".join(
        (piece["delta"].get("content") or "") if "chat" in path else piece["text"] for piece in pieces
    )


def text_of(answer: Any) -> str:
    if isinstance(answer, list):
        return str(answer[0])
    if "predictions" in answer:
        return text_of(answer["predictions"])
    (choice,) = answer["choices"]
    return str(choice["text"] if "text" in choice else choice["message"]["content"])


@pytest.mark.parametrize("path", PATHS)
@settings(deadline=None, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**63 - 1), temperature=st.sampled_from([0, 0.3, 1]))
def test_a_stream_is_the_text_and_the_text_is_valid(
    service: Service, path: str, seed: int, temperature: float
) -> None:
    asks = {"response_format": FORMAT, "seed": seed, "temperature": temperature, "top_p": 1, "max_tokens": 90}
    whole = text_of(asked(service, path, body_of(path, **asks)))
    events = asked(
        service,
        path,
        body_of(path, **asks, stream=True, details=True)
        if "/v1" not in path
        else body_of(path, **asks, stream=True),
    )
    assert streamed(path, events) == whole
    last = events[-1]
    reason = last["details"][0]["finish_reason"] if "details" in last else last["choices"][0]["finish_reason"]
    if reason == "stop":
        Draft202012Validator(SCHEMA).validate(json.loads(whole))


# --- engines --------------------------------------------------------------------------------------

ASKED: Final[dict[str, dict[str, Any]]] = {
    "schema": {"response_format": FORMAT},
    "object": {"response_format": {"type": "json_object"}},
    "regex": {"structured_outputs": {"regex": r"[a-z]{2,9}(-\d{1,3}){0,3}é?"}},
    "choice": {"structured_outputs": {"choice": ["yes", "no", "yes, or no"]}},
    "grammar": {"structured_outputs": {"grammar": 'start: "(" start ")" | "x"'}},
    "gbnf": {"structured_outputs": {"grammar": 'root ::= [0-9]+ " " ("a" | "b")*'}},
    "schema in a grammar": {
        "structured_outputs": {"grammar": 'start: "<" %json {"type": "boolean", "title": "x"} ">"'}
    },
}
OPTIONS: Final = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**32), "temperature": st.sampled_from([0, 0.2, 1, 2])},
    optional={
        "top_p": st.sampled_from([1, 0.5, 0.01]), "top_k": st.sampled_from([1, 5, 5000]), "min_p": st.sampled_from([0.1, 1]),
        "repetition_penalty": st.sampled_from([0.5, 2]), "presence_penalty": st.just(2), "frequency_penalty": st.just(-2),
        "min_tokens": st.integers(0, 12), "logprobs": st.integers(0, 3), "stop": st.just(["9", "xx"]),
    },
)  # fmt: skip


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(list(ASKED)), options=OPTIONS)
def test_both_engines_write_the_same(
    service: Service, reference: Service, name: str, options: dict[str, Any]
) -> None:
    body = {**ASKED[name], **options, "max_tokens": 16}
    ours, theirs = one(service, **body), one(reference, **body)
    assert (ours.text, ours.token_ids, ours.finish_reason) == (
        theirs.text,
        theirs.token_ids,
        theirs.finish_reason,
    )
    specials = [number for number in ours.token_ids if not service.tokenizer.piece(number)]
    assert len(specials) == (ours.finish_reason == "stop" and ours.token_ids[-1] == NANO.eos_id)


@pytest.mark.parametrize("name", ["schema", "regex", "gbnf"])
def test_others_are_not_changed_by_constrained_company(service: Service, name: str) -> None:
    free = [{"seed": seed, "temperature": 1, "max_tokens": 12, "logprobs": 2} for seed in range(4)]
    alone = [one(service, **body) for body in free]
    held = [{**ASKED[name], "seed": seed, "max_tokens": 20} for seed in range(4)]
    alone_held = [one(service, **body) for body in held]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda body: one(service, **body), [*free, *held]))
    assert made == [*alone, *alone_held]


def test_rows_of_a_request_are_held_one_by_one(service: Service) -> None:
    body = {
        "prompt": ["a", "b", "c"],
        "n": 3,
        "seed": 1,
        "temperature": 2,
        "top_p": 1,
        **ASKED["regex"],
        "max_tokens": 60,
    }
    made = service.generate(openai.parse(body))
    texts = [row.text for rows in made for row in rows]
    assert len(set(texts)) > 1
    ended = [row.text for rows in made for row in rows if row.finish_reason == "stop"]
    assert ended
    assert all(re.fullmatch(ASKED["regex"]["structured_outputs"]["regex"], text) for text in ended)


def test_sequences_that_were_preempted_go_on(service: Service) -> None:
    alone = [
        one(service, seed=seed, temperature=1, top_p=1, max_tokens=60, response_format=FORMAT)
        for seed in range(6)
    ]
    small = Settings(kv_memory=1_500_000)
    with closing(Service.start(ModelFiles(NANO_FOLDER, NANO), small)) as tight, ThreadPoolExecutor(8) as pool:
        made = pool.map(
            lambda seed: one(tight, seed=seed, temperature=1, top_p=1, max_tokens=60, response_format=FORMAT),
            range(6),
        )
        assert list(made) == alone
        assert tight.engine.stats().num_preemptions > 0


def test_a_cancelled_sequence_leaves_nothing_behind(service: Service) -> None:
    async def begin() -> Delta:
        stream = service.astream(
            openai.parse({"prompt": PROMPT, "stream": True, **ASKED["object"], "seed": 3, "temperature": 1})
        )
        async with aclosing(stream):
            return await anext(stream)

    assert asyncio.run(begin()).text
    assert one(service, **ASKED["choice"]).text in ASKED["choice"]["structured_outputs"]["choice"]


# --- with other parameters ------------------------------------------------------------------------


def test_what_is_cut_says_so(service: Service) -> None:
    made = one(service, response_format=FORMAT, max_tokens=3)
    assert (made.finish_reason, made.usage.completion_tokens) == ("length", 3)


def test_the_end_comes_where_nothing_else_can(service: Service) -> None:
    made = one(service, structured_outputs=ONE, min_tokens=30, max_tokens=40)
    assert (made.text, made.finish_reason) == ("zebra 7", "stop")


def test_a_longer_text_is_taken_where_the_least_length_asks_for_it(service: Service) -> None:
    made = one(service, structured_outputs={"regex": "(?:ab)+"}, min_tokens=12, max_tokens=40, temperature=0)
    assert made.usage.completion_tokens >= 12


def test_log_probabilities_are_the_models_own(service: Service) -> None:
    free = one(service, max_tokens=1, temperature=0, logprobs=5)
    held = one(service, max_tokens=1, temperature=0, logprobs=5, structured_outputs=ONE)
    assert free.logprobs is not None
    assert held.logprobs is not None
    assert held.logprobs[0].top == free.logprobs[0].top
    assert held.logprobs[0].drawn.logprob < free.logprobs[0].drawn.logprob


def test_a_text_without_an_end_cannot_be_held(service: Service) -> None:
    error = refused(lambda: one(service, structured_outputs=ONE, ignore_eos=True))
    assert error is not None
    assert (error.param, "structured_outputs" in error.message) == ("ignore_eos", True)
    made = one(service, structured_outputs=ONE, ignore_eos=True, stop_token_ids=[NANO.eos_id])
    assert (made.text, made.finish_reason) == ("zebra 7", "stop")


def test_what_fills_a_gap_is_held_too(service: Service) -> None:
    made = one(service, prompt="def f(", suffix="):\n    return x", structured_outputs={"choice": ["xyz"]})
    assert (made.text, made.finish_reason) == ("xyz", "stop")


def test_a_constraint_that_becomes_too_complex_ends_its_own_sequence(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = openai.parse({"prompt": PROMPT, "structured_outputs": ONE})
    (prepared,) = service.prepare(request)
    assert prepared.compiled is not None
    matcher = prepared.compiled.matcher(prepared.params[0].stop_ids)
    monkeypatch.setattr(matcher, "_ordinary", ~matcher._ordinary)
    handle = service.engine.submit(prepared.prompt.token_ids, prepared.params[0], matcher=matcher)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(one, service, structured_outputs=ONE)
        with pytest.raises(BadRequest, match="too complex"):
            list(handle)
        assert other.result().text == "zebra 7"


@pytest.mark.parametrize(
    "given",
    [
        {"response_format": {"type": "text"}},
        {"structured_outputs": {}},
        {"structured_outputs": {"regex": None, "json_object": False}},
    ],
)
def test_plain_text_may_be_asked_for(service: Service, given: Any) -> None:
    body = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}
    assert settled(asked(service, "/v1/completions", {**body, **given})) == settled(
        asked(service, "/v1/completions", body)
    )


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "competing_fields"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "competing_fields",
        ),
        ({"structured_outputs": {"structural_tag": "a"}}, "unknown_field"),
        ({"structured_outputs": {"choice": []}}, "invalid_value"),
        ({"structured_outputs": {"choice": [""]}}, "invalid_value"),
        ({"structured_outputs": {"json": "{"}}, "invalid_json"),
        ({"structured_outputs": {"json": False}}, "unsupported_constraint"),
        ({"structured_outputs": {"grammar": "start: <s>"}}, "unsupported_constraint"),
        ({"structured_outputs": {"grammar": '%llguidance {"a": 1}\nstart: "a"'}}, "unsupported_constraint"),
        ({"structured_outputs": {"grammar": 'start: %json {"not": {}}'}}, "unsupported_constraint"),
        ({"structured_outputs": {"grammar": "start: a\na[max_tokens=3]: /a*/"}}, "unsupported_constraint"),
        ({"response_format": {"type": "json_schema"}}, "missing_field"),
        ({"response_format": {"type": "grammar"}}, "invalid_value"),
        ({"response_format": {}}, "missing_field"),
        ({"guided_json": {}}, "unknown_field"),
    ],
)
def test_what_is_refused(service: Service, given: Any, code: str) -> None:
    error = refused(lambda: one(service, **given))
    assert error is not None
    assert (error.status, error.code) == (400, code)


def test_one_constraint_under_two_names_is_one() -> None:
    both = openai.parse(
        {
            "prompt": "a",
            "response_format": {"type": "json_object"},
            "structured_outputs": {"json": '{"type": "object"}'},
        }
    )
    alone = openai.parse({"prompt": "a", "response_format": {"type": "json_object"}})
    assert replace(both, spelling=()) == replace(alone, spelling=())


# --- with speculation -----------------------------------------------------------------------------

LINE: Final = '{"name": "abc", "kind": "é", "parts": [1, 2, 3], "next": null}'


def test_guessed_tokens_change_nothing() -> None:
    """A prompt that has such texts: most of what is guessed is right, and some of it may not come."""
    rows = {"prompt": f"{LINE}\n{LINE}\n", "max_tokens": 90, "logprobs": 1}
    asks = [
        {**rows, **held, "seed": seed, "temperature": temperature}
        for held in (
            ASKED["schema"],
            ASKED["regex"],
            ASKED["object"],
            {"structured_outputs": {"choice": [LINE, LINE[:-1]]}},
        )
        for seed, temperature in ((1, 0), (2, 0.3), (3, 1))
    ]
    made = {}
    for most in (0, 8):
        with closing(
            Service.start(ModelFiles(NANO_FOLDER, NANO), Settings(speculative_tokens=most))
        ) as service:
            with ThreadPoolExecutor(3) as pool:
                made[most] = list(pool.map(lambda ask: one(service, **ask), asks))
            accepted = service.engine.stats().accepted_tokens
            assert (accepted > 0) == (most > 0)
    assert made[8] == made[0]
