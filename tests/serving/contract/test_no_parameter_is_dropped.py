"""Every parameter, at every endpoint, whole and streamed: it changes the answer, or it is refused. Nothing is dropped."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from llama_serving.contract import openai
from llama_serving.contract.parameters import ALIASES, NAMES
from llama_serving.contract.validation import schema
from llama_serving.errors import ServingError
from llama_serving.service.service import Service
from tests.support.bad_bodies import LLAMACPPS, NO_EFFECT, UNSUPPORTED, user
from tests.support.endpoints import ENDPOINTS, Endpoint, asked, refused, settled

PROMPT: Final = "def f(x):\n    return"
CHAT: Final = [user("Reverse a list")]
LENGTH: Final = "max_new_tokens"
MOST: Final = 10
COMMON: Final = {"temperature": 1.5, "top_p": 1, "max_tokens": MOST}

OTHER: Final[dict[str, Any]] = {
    **{name: 2 for name, target in ALIASES.items() if target == LENGTH},
    LENGTH: 2,
    "min_new_tokens": 11,
    "min_tokens": 11,
    "do_sample": False,
    "temperature": 0,
    "top_p": 0.01,
    "top_k": 1,
    "min_p": 1,
    "repetition_penalty": 0.1,
    "presence_penalty": -2,
    "frequency_penalty": -2,
    "num_return_sequences": 2,
    "n": 2,
    "stop": ...,
    "stop_sequences": ...,
    "seed": ...,
    "return_full_text": True,
    "echo": True,
    "ignore_eos": True,
    "logprobs": 2,
    "prompt_logprobs": 2,
    "logit_bias": {"100": 100},
    "details": True,
    "continue_final_message": True,
    "editor_stops": True,
    "receipt": True,
    # vLLM's and OpenAI's alone
    "stop_token_ids": ...,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "truncate_prompt_tokens": 2,
    "top_logprobs": 2,
    "stream_options": {"include_usage": True},
    "add_generation_prompt": False,
    "response_format": {"type": "json_object"},
    "structured_outputs": {"choice": ["yes"]},
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
}
"""A value that changes an answer made with `COMMON` and a seed; `...` is worked out from that answer."""

KNOWN_SEEDS: Final = (14, 519)
"""Tried first: the search for such a seed takes a minute."""
PENALTIES: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty")
WITHOUT_EFFECT: Final = frozenset(
    (
        "user",
        "metadata",
        "store",
        "model",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    )
)
"""Of OpenAI's fields those that have none on the text anywhere, as documented."""


def test_the_table_has_every_parameter() -> None:
    fields = {
        name
        for body in ("parameters", "openai-chat", "openai-completions")
        for name in schema(body)["properties"]
    }
    known = (
        fields
        - set(UNSUPPORTED)
        - NO_EFFECT.keys()
        - WITHOUT_EFFECT
        - LLAMACPPS
        - {"prompt", "suffix", "messages", "stream"}
    )
    assert OTHER.keys() == known
    assert {*NAMES, *ALIASES} <= OTHER.keys() | {"stream"}


@pytest.fixture(scope="module")
def bases(service: Service) -> dict[bool, tuple[int, str, list[int]]]:
    """Of a completion and of a chat: a seed with which the text ends by itself, the text, and its ids."""
    return {chat: _ending(service, chat=chat) for chat in (False, True)}


def _ending(service: Service, *, chat: bool) -> tuple[int, str, list[int]]:
    """Such a text, in which penalties show as well: it has tokens that come again."""
    body = {"messages": CHAT} if chat else {"prompt": PROMPT}
    for seed in (*KNOWN_SEEDS, *range(2000)):
        base = {**body, **COMMON, "seed": seed}
        ((one,),) = service.generate(openai.parse(base))
        if one.finish_reason != "stop" or len(one.text) <= 8 or one.usage.completion_tokens >= MOST:
            continue
        penalized = [
            service.generate(openai.parse({**base, name: OTHER[name]}))[0][0].text for name in PENALTIES
        ]
        if one.text not in penalized:
            return seed, one.text, list(one.token_ids)
    raise AssertionError("no seed ends the text and shows penalties")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: one.name)
def test_every_parameter_is_answered_or_refused(
    service: Service,
    bases: dict[bool, tuple[int, str, list[int]]],
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    *,
    stream: bool,
) -> None:
    seed, text, ids = bases[endpoint.chat]
    prompt = CHAT if endpoint.chat else PROMPT
    base: dict[str, Any] = {**COMMON, "seed": seed, **({"stream": True} if stream else {})}

    def ask(given: dict[str, Any]) -> Any:
        """The answer, or the refusal."""
        try:
            return settled(endpoint.ask(service, prompt, given, monkeypatch))
        except ServingError as error:
            return error

    if isinstance(ask(base), ServingError):
        assert stream, "only a stream may be refused"
        return
    worked_out = {
        "stop": text[4:7],
        "stop_sequences": text[4:7],
        "seed": seed + 1000,
        "stop_token_ids": ids[1:2],
    }
    pairs: dict[str, tuple[str, str]] = {}
    for name, value in OTHER.items():
        if name == "details" and endpoint.name.startswith("batch line"):
            continue  # OpenAI's own shape has finish_reason and usage always: it is what happens anyway
        before = {**base, **beside(name, endpoint)}
        if ALIASES.get(name, name) == LENGTH:
            before = {key: value for key, value in before.items() if key != "max_tokens"} | {name: MOST}
        after = {**before, name: worked_out.get(name, value)}
        pairs[name] = (json.dumps(before, sort_keys=True), json.dumps(after, sort_keys=True))
    different = sorted({given for pair in pairs.values() for given in pair})
    # The engine computes them together. (The command prints to this process's output: one at a time.)
    with ThreadPoolExecutor(1 if endpoint.name.startswith("command") else 16) as pool:
        answers = dict(zip(different, pool.map(ask, map(json.loads, different)), strict=True))
    assert [name for name, (before, after) in pairs.items() if answers[before] == answers[after]] == []


def beside(name: str, endpoint: Endpoint) -> dict[str, Any]:
    """What a parameter only means something with."""
    if name == "return_tokens_as_token_ids":
        return {"logprobs": 1}
    if name == "top_logprobs" and endpoint.chat:
        return {"logprobs": True}
    if name == "tool_choice":
        return {"tools": OTHER["tools"]}
    return {}


@pytest.mark.parametrize("path", ["/score", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_happens_anyway_may_be_asked_for(service: Service, path: str, name: str) -> None:
    greedy = {"max_tokens": 2, "temperature": 0}
    bodies: dict[str, Any] = {
        "/score": lambda given: {"input_data": [PROMPT], "params": given},
        "/v1/completions": lambda given: {"prompt": PROMPT, **given},
        "/v1/chat/completions": lambda given: {"messages": CHAT, **given},
    }
    plain = settled(asked(service, path, bodies[path](greedy)))
    for value in NO_EFFECT[name]:
        assert settled(asked(service, path, bodies[path]({**greedy, name: value}))) == plain
    other = refused(lambda: asked(service, path, bodies[path]({**greedy, name: "another"})))
    assert other is not None
    assert other.code == "unsupported_field"
