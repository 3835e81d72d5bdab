"""Replays: the same bytes for every request, alone and beside others, and a word about everything that was changed."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llama_endpoints.replay.claims import Claim, claims
from llama_endpoints.replay.documents import claims_in
from llama_endpoints.replay.replay import Replayer
from llama_endpoints.replay.requests import of_body, of_prompt
from llama_endpoints.replay.verdict import differences
from llama_serving.errors import BadRequest, SetupError
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.in_process import load_nano
from tests.support.receipts import BODIES, CHAT, PROMPT, SAMPLED, answered, replayed, with_receipt

TEXTS: Final = st.sampled_from([PROMPT, "é ☺", "    x = [1, 2,", "a" * 120]) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12
)
INPUTS: Final = st.one_of(
    st.lists(TEXTS.filter(lambda text: "<FILL_ME>" not in text), min_size=1, max_size=3),
    st.builds(lambda a, b: [{"prefix": a, "suffix": b}], TEXTS, TEXTS),
    st.just(CHAT),
)
HELD: Final = st.sampled_from(
    [{"regex": "(ab|[0-9])+"}, {"choice": ["yes", "no"]}, {"json": {"type": "boolean"}}]
)
PARAMETERS: Final = st.fixed_dictionaries(
    {"max_new_tokens": st.integers(1, 7)},
    optional={
        "temperature": st.sampled_from([0, 0.3, 1, 2]),
        "top_p": st.sampled_from([0.2, 0.9, 1]),
        "top_k": st.sampled_from([0, 1, 40]),
        "min_p": st.sampled_from([0, 0.1]),
        "repetition_penalty": st.sampled_from([0.5, 1.3]),
        "presence_penalty": st.sampled_from([-1, 2]),
        "frequency_penalty": st.sampled_from([-1, 2]),
        "num_return_sequences": st.integers(1, 3),
        "stop": st.sampled_from(["e", ["\n", "return"]]),
        "seed": st.integers(0, 2**63 - 1),
        "ignore_eos": st.booleans(),
        "return_full_text": st.booleans(),
        "logprobs": st.integers(0, 2),
        "prompt_logprobs": st.integers(0, 1),
        "logit_bias": st.dictionaries(st.sampled_from(["13", "300", "9"]), st.integers(-100, 100)),
        "structured_outputs": HELD,
    },
)


@pytest.fixture(scope="module")
def guessing() -> Iterator[Service]:
    """The same model, which guesses tokens."""
    with closing(load_nano(Settings(speculative_tokens=6))) as started:
        yield started


@pytest.fixture(scope="module")
def reference() -> Iterator[Service]:
    """The same model in the reference engine."""
    with closing(load_nano(Settings(engine="pipeline"))) as started:
        yield started


@given(bodies=st.lists(st.tuples(INPUTS, PARAMETERS), min_size=4, max_size=4))
@settings(max_examples=6)
def test_any_request_gives_the_same_bytes(service: Service, guessing: Service, bodies: list[Any]) -> None:
    """Answered beside each other, replayed alone, and beside each other by an engine that guesses."""
    asks = [{"input_data": {"input_string": given}, "params": parameters} for given, parameters in bodies]

    def answer(ask: dict[str, Any]) -> Any:
        try:
            return answered(service, "/score", ask)
        except BadRequest:
            return None  # (greedy sequences, a constraint beside ignore_eos)

    with ThreadPoolExecutor(4) as pool:
        made = [(ask, got) for ask, got in zip(asks, pool.map(answer, asks), strict=True) if got is not None]
        assume(made)
        for ask, got in made:
            for verdict in replayed(service, ask, got):
                assert verdict.identical, verdict
                assert not verdict.environment
                assert verdict.reason is None
        for verdicts in pool.map(lambda one: replayed(guessing, *one), made):
            assert all(verdict.identical for verdict in verdicts), verdicts


@pytest.mark.parametrize("name", BODIES)
def test_every_protocol_is_replayed(service: Service, name: str) -> None:
    path, body = BODIES[name]
    for verdict in replayed(service, body, answered(service, path, body)):
        assert verdict.identical, verdict
        assert not verdict.environment


def test_many_at_once_give_the_same_bytes(service: Service) -> None:
    order = random.Random(1)
    asks = [{"prompt": PROMPT[: order.randint(1, 20)], **SAMPLED, "n": order.randint(1, 2)} for _ in range(34)]
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda ask: answered(service, "/v1/completions", ask), asks))
        pairs = list(zip(asks, made, strict=True)) * 2
        order.shuffle(pairs)
        verdicts = [one for some in pool.map(lambda pair: replayed(service, *pair), pairs) for one in some]
    assert len(verdicts) >= 2 * len(asks)
    assert all(one.identical and not one.environment for one in verdicts)


def test_another_engine_is_named_though_the_bytes_are_the_same(service: Service, reference: Service) -> None:
    path, body = BODIES["greedy"]
    (verdict,) = replayed(reference, body, answered(service, path, body))
    assert verdict.identical, verdict
    assert "engine.name" in {one.what for one in verdict.environment}


# --- what was changed is told ---------------------------------------------------------------------


def leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All values of a receipt, by path."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from leaves(one, (*at, name))
    else:
        yield at, value


def changed(receipt: Any, path: tuple[str, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(receipt))
    holder = copy
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = value
    return copy


def another(value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value - 1 if value == 1 else value + 1
    if isinstance(value, str):
        return ("1" if value[:1] == "0" else "0") + value[1:]
    if isinstance(value, list):
        return [*value, "x" if value and isinstance(value[0], str) else 7]
    return 7


@pytest.mark.parametrize("name", ["held", "greedy"])
def test_every_changed_field_is_told(service: Service, name: str) -> None:
    path, body = BODIES[name]
    claim = claims(answered(service, path, body))[0]
    replayer = Replayer(service)
    for at, value in leaves(claim.receipt):
        forged = changed(claim.receipt, at, another(value))
        try:
            (one,) = claims(forged)
            request = of_body(with_receipt(body), one.receipt["protocol"])
            verdict = replayer.replay(request, one)
        except (SetupError, BadRequest):
            continue  # no receipt of this request at all, which is said
        told = (*verdict.differences, *verdict.environment)
        assert told, at
        environment = at[0] in ("engine", "version", "commit")
        assert verdict.identical is environment, (at, told)


@pytest.mark.parametrize(
    "constraint",
    [
        {"kind": "json", "text": "{"},
        {"kind": "regex", "text": "("},
        {"kind": "grammar", "text": "x"},
        {"kind": "choice", "text": "1"},
    ],
    ids=lambda one: str(one["kind"]),
)
def test_a_constraint_that_is_none_is_refused(service: Service, constraint: dict[str, str]) -> None:
    claim = claims(answered(service, *BODIES["held"]))[0]
    forged = Claim(changed(claim.receipt, ("parameters", "constraint"), constraint))
    with pytest.raises(BadRequest):
        Replayer(service).replay(of_prompt(PROMPT, forged.receipt), forged)


def test_a_field_that_is_not_known_is_told(service: Service) -> None:
    receipt = claims(answered(service, *BODIES["greedy"]))[0].receipt
    with pytest.raises(SetupError, match="`note` is not known"):
        claims({**receipt, "note": "x"})
    with pytest.raises(SetupError, match="`seed` is missing"):
        claims({name: value for name, value in receipt.items() if name != "seed"})
    with pytest.raises(SetupError, match="There is no receipt"):
        claims({"choices": [{"text": "a"}]})


def test_another_prompt_is_told_and_not_run(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    (claim,) = claims(answered(service, *BODIES["greedy"]))
    replayer = Replayer(service)
    monkeypatch.setattr(service.engine, "submit", None)
    verdict = replayer.replay(of_body({"prompt": "x", "max_tokens": 9, "temperature": 0}, "openai"), claim)
    assert {one.what for one in verdict.differences} == {"prompt.tokens", "prompt.sha256"}
    verdict = replayer.replay(of_body({"prompt": PROMPT, "max_tokens": 8, "temperature": 0}, "openai"), claim)
    assert [str(one) for one in verdict.differences] == ["parameters.max_new_tokens: 9 in the receipt, 8 here"]


def test_the_first_token_that_differs_is_named(service: Service) -> None:
    body = {"prompt": PROMPT, "max_tokens": 9, "min_tokens": 9, "temperature": 0, "return_token_ids": True}
    (choice,) = answered(service, "/v1/completions", body)["choices"]
    pieces = [service.tokenizer.piece(one).decode() for one in choice["token_ids"]]
    place = len("".join(pieces[:4]))
    forged = choice["text"][:place] + "☺" + choice["text"][place + 1 :]
    replayer, request = Replayer(service), of_body(with_receipt(body), "openai")
    verdict = replayer.replay(request, Claim(choice["receipt"], forged))
    assert verdict.first is not None
    assert (verdict.first.character, verdict.first.token) == (place, 4)
    ids = [*choice["token_ids"][:6], 5, *choice["token_ids"][7:]]
    verdict = replayer.replay(request, Claim(choice["receipt"], token_ids=tuple(ids)))
    assert verdict.first is not None
    assert (verdict.first.character, verdict.first.token) == (None, 6)
    assert [one.what for one in verdict.differences] == ["token_ids"]


def test_the_prompt_in_front_of_the_text_is_no_token_of_it(service: Service) -> None:
    body = {"prompt": PROMPT, "max_tokens": 5, "min_tokens": 5, "temperature": 0, "echo": True}
    (choice,) = answered(service, "/v1/completions", body)["choices"]
    forged = choice["text"][:-1] + "☺"
    verdict = Replayer(service).replay(of_body(with_receipt(body), "openai"), Claim(choice["receipt"], forged))
    assert verdict.first is not None
    assert (verdict.first.character, verdict.first.token) == (len(choice["text"]) - 1, 4)


@pytest.mark.parametrize(
    "name", ["completion", "held", "biased", "shortened", "nothing", "texts", "greedy", "llama.cpp", "ollama"]
)
def test_a_plain_prompt_needs_no_body(service: Service, name: str) -> None:
    path, body = BODIES[name]
    claim = claims(answered(service, path, body))[0]
    verdict = Replayer(service).replay(of_prompt(PROMPT, claim.receipt), claim)
    assert verdict.identical, verdict


def respelled(value: Any, number: Any) -> Any:
    """A receipt with its whole numbers written as integers, or as floats."""
    if isinstance(value, dict):
        return {name: respelled(one, number) for name, one in value.items()}
    if isinstance(value, list):
        return [respelled(one, number) for one in value]
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value)
    return number(value) if whole and value < 2**53 else value


@pytest.mark.parametrize("number", [int, float])
def test_another_writer_of_json_changes_nothing(service: Service, number: Any) -> None:
    """One that writes 1.0 as 1, or 1 as 1.0."""
    body = {"prompt": PROMPT, **SAMPLED, "frequency_penalty": -1, "logit_bias": {"300": -1}, "n": 2}
    for claim in claims(answered(service, "/v1/completions", body)):
        (written,) = claims(respelled(dict(claim.receipt), number))
        for request in (of_prompt(PROMPT, written.receipt), of_body(with_receipt(body), "openai")):
            verdict = Replayer(service).replay(request, written)
            assert verdict.identical, verdict


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda some: st.dictionaries(st.text(), some)
    )
)
def test_a_value_does_not_differ_from_itself(value: Any) -> None:
    assert list(differences(value, json.loads(json.dumps(value)))) == []
    assert [one.what for one in differences({"a": {"b": 1}}, {"a": {"b": True}, "c": 2})] == ["a.b", "c"]


@pytest.mark.parametrize("name", [name for name in BODIES if name not in ("score", "completion")])
def test_a_stream_is_replayed_as_it_was_sent(service: Service, tmp_path: Path, name: str) -> None:
    path, body = BODIES[name]
    places = ("params", "parameters")
    streamed = {key: {**value, "stream": True} if key in places else value for key, value in body.items()}
    if path == "/score" and "parameters" in body["input_data"]:
        streamed["input_data"] = {
            **body["input_data"],
            "parameters": {**body["input_data"]["parameters"], "stream": True},
        }
    elif not body.keys() & set(places):
        streamed["stream"] = True
    events = answered(service, path, streamed)
    file = tmp_path / "stream"
    lines = [json.dumps(event) for event in events]
    if path.startswith("/api/"):
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        file.write_text("".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"]), encoding="utf-8")
    replayer, request = (
        Replayer(service),
        of_body(with_receipt(streamed), claims(events)[0].receipt["protocol"]),
    )
    for claim in claims_in(file):
        verdict = replayer.replay(request, claim)
        assert verdict.identical, verdict
        assert (claim.text is None) == (name == "call")
        other = replayer.replay(request, replace(claim, text=f"{claim.text}☺"))
        assert [one.what for one in other.differences] == ["text"]
