"""Receipts in answers: where each protocol has them, what they say, and that asking for one changes no text."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from typing import Any, Final, cast

import pytest

from llama_endpoints.replay.claims import claims
from llama_serving.contract import llamacpp, openai
from llama_serving.contract.receipt import effective, of_ids
from llama_serving.contract.request import Request
from llama_serving.contract.validation import validate
from llama_serving.engine.base import EngineStats
from llama_serving.errors import BadRequest
from llama_serving.model_files import ModelFiles
from llama_serving.sampling_params import SamplingParams
from llama_serving.service import fingerprint
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.endpoints import asked, record, settled
from tests.support.in_process import load_nano
from tests.support.receipts import BODIES, CHAT, PROMPT, SAMPLED, answered, with_receipt

ANSWERS: Final = {
    "/score": "answers#/$defs/azure",
    "/invocations": "answers#/$defs/mlflow",
    "/v1/completions": "openai-answers#/$defs/completion",
    "/v1/chat/completions": "openai-answers#/$defs/chat",
    "/api/generate": "ollama-answers#/$defs/generate",
    "/api/chat": "ollama-answers#/$defs/chat",
    "/completion": "llamacpp-answers#/$defs/content",
    "/infill": "llamacpp-answers#/$defs/content",
}
EVENTS: Final = {
    **ANSWERS,
    "/score": "answers#/$defs/event",
    "/invocations": "answers#/$defs/event",
    "/v1/completions": "openai-answers#/$defs/completion_event",
    "/v1/chat/completions": "openai-answers#/$defs/chat_event",
}
TIMED: Final = ("total_duration", "prompt_eval_duration", "eval_duration", "created_at", "timings")
SEVERAL: Final = {"score": 6, "dialog": 3, "completion": 4, "held": 2}


def without(value: Any, *names: str) -> Any:
    """The answer without these members, wherever they are."""
    if isinstance(value, dict):
        return {name: without(one, *names) for name, one in value.items() if name not in names}
    return [without(one, *names) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", BODIES)
def test_every_sequence_of_every_protocol_has_one(service: Service, name: str) -> None:
    path, body = BODIES[name]
    answer = answered(service, path, body)
    validate(answer, ANSWERS[path])
    found = claims(answer)
    assert len(found) == SEVERAL.get(name, 1)
    assert len({(one.receipt["prompt"]["index"], one.receipt["index"]) for one in found}) == len(found)


@pytest.mark.parametrize(
    "name", [name for name, (_, body) in BODIES.items() if name not in ("score", "completion")]
)
def test_a_stream_ends_with_them(service: Service, name: str) -> None:
    path, body = BODIES[name]
    given = with_receipt({**body, "stream": True}) if path not in ("/score", "/invocations") else with_receipt(
        {**body, "params": {**body["params"], "stream": True}} if "params" in body
        else {**body, "input_data": {**body["input_data"], "parameters": {"stream": True}}}
    )  # fmt: skip
    events = json.loads(json.dumps(asked(service, path, given)))
    for event in events:
        validate(event, EVENTS[path])
    assert len(claims(events)) == SEVERAL.get(name, 1)
    assert len(claims(events[-1])) >= 1, "in its last event"


@pytest.mark.parametrize("name", BODIES)
def test_asking_changes_nothing_else(service: Service, name: str) -> None:
    path, body = BODIES[name]
    seeded = {"seed": 5, "details": True} if path in ("/score", "/invocations") else {"seed": 5}
    if path.startswith("/api/"):
        body = {**body, "options": {**body["options"], **seeded}}
    elif "params" in body:
        body = {**body, "params": {**body["params"], **seeded}}
    elif path == "/score":
        data = body["input_data"]
        body = {**body, "input_data": {**data, "parameters": {**data["parameters"], **seeded}}}
    else:
        body = {**body, **seeded}
    plain = json.loads(json.dumps(asked(service, path, body)))
    asking = answered(service, path, body)
    names = ("receipt", *TIMED)
    assert without(settled(asking), *names) == without(settled(plain), *names)
    assert "receipt" not in json.dumps(plain)


def test_the_digests_are_of_what_was_sent(service: Service) -> None:
    body = {"prompt": PROMPT, **SAMPLED, "return_token_ids": True, "seed": 4, "echo": False}
    (choice,) = answered(service, "/v1/completions", body)["choices"]
    receipt = choice["receipt"]
    assert receipt["output"]["text_sha256"] == hashlib.sha256(choice["text"].encode()).hexdigest()
    written = b"".join(one.to_bytes(4, "little") for one in choice["token_ids"])
    assert receipt["output"]["ids_sha256"] == hashlib.sha256(written).hexdigest() == of_ids(choice["token_ids"])
    assert receipt["prompt"]["sha256"] == of_ids(choice["prompt_token_ids"])
    assert receipt["prompt"]["tokens"] == len(choice["prompt_token_ids"])
    assert (receipt["seed"], receipt["index"], receipt["reproducible"], receipt["reason"]) == (4, 0, True, None)
    (echoing,) = answered(service, "/v1/completions", {"prompt": PROMPT, **SAMPLED, "seed": 4, "echo": True})[
        "choices"
    ]
    assert echoing["text"] == PROMPT + choice["text"]
    assert echoing["receipt"]["output"] == receipt["output"], "without the prompt"
    assert PROMPT not in json.dumps(receipt)
    assert choice["text"] not in json.dumps(receipt)


def test_every_sampling_parameter_is_in_it(service: Service) -> None:
    receipt = claims(answered(service, *BODIES["held"]))[0].receipt
    apart = {"stop_ids": "stop_token_ids", "constraint": "constraint"}
    names = {apart.get(one.name, one.name) for one in fields(SamplingParams)} - {"seed", "index"}
    assert names <= receipt["parameters"].keys()
    assert receipt["parameters"]["constraint"] == {"kind": "regex", "text": "(?:[a-z]){1,9}"}


@pytest.mark.parametrize(
    "given",
    [
        {"prompt_logprobs": 3},
        {"echo": True, "logprobs": 3},
        {"prompt_logprobs": 3, "echo": True, "logprobs": 1},
    ],
)
def test_the_prompts_log_probabilities_are_named_in_every_sequence(given: dict[str, Any]) -> None:
    """Though they are computed once, with the first."""
    request = openai.parse({"prompt": PROMPT, **given})
    for prompt_logprobs in (3, None):
        params = SamplingParams(max_new_tokens=1, prompt_logprobs=prompt_logprobs)
        assert effective(request, params)["prompt_logprobs"] == 3


def test_a_shortened_prompt_says_to_what(service: Service) -> None:
    for kept in (3, -1, 999):
        body = {"prompt": PROMPT, **SAMPLED, "truncate_prompt_tokens": kept}
        receipt = claims(answered(service, "/v1/completions", body))[0].receipt
        assert receipt["parameters"]["truncate_prompt_tokens"] == kept
    assert (
        claims(answered(service, *BODIES["greedy"]))[0].receipt["parameters"]["truncate_prompt_tokens"] is None
    )


def test_a_seed_is_drawn_where_none_is_given(service: Service) -> None:
    body = {"prompt": PROMPT, **SAMPLED}
    seeds = [claims(answered(service, "/v1/completions", body))[0].receipt["seed"] for _ in range(2)]
    assert seeds[0] != seeds[1]
    assert all(0 <= seed < 2**53 for seed in seeds), "JavaScript's numbers hold it"
    assert claims(answered(service, *BODIES["greedy"]))[0].receipt["seed"] is None


@pytest.mark.parametrize("kind", ["short", "several", "openai", "line"])
def test_a_record_has_one(service: Service, kind: str) -> None:
    given = {**SAMPLED, "receipt": True}
    rows: dict[str, Any] = {
        "short": {"input_string": PROMPT, "parameters": given},
        "several": {"input_string": PROMPT, "parameters": {**given, "n": 3}},
        "openai": {"messages": CHAT, **given},
        "line": {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": "x", **given},
        },
    }
    made = record(service, rows[kind])
    found = claims(made)
    assert len(found) == (3 if kind == "several" else 1)
    if kind != "line":
        assert "details" not in made
        texts = made["output"] if kind == "several" else [made["output"]]
        assert [one.text for one in found] == texts


def test_a_text_that_is_not_generated_has_none() -> None:
    with pytest.raises(BadRequest) as refusal:
        llamacpp.parse_completion({"prompt": "a", "n_predict": 0, "receipt": True})
    assert refusal.value.param == "receipt"
    assert llamacpp.parse_completion({"prompt": "a", "n_predict": 0, "receipt": False}).prefill_only


# --- what can't be promised -----------------------------------------------------------------------


def receipt_of(service: Service, request: Request, deadline_s: float | None = None) -> dict[str, Any]:
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    ((generation,),) = service.generate(request, deadline=deadline)
    assert generation.receipt is not None
    return generation.receipt.to_dict()


class Elsewhere:
    """An engine that says that another one has computed."""

    def __init__(self, service: Service, stats: dict[str, Any]) -> None:
        self._engine, self._stats = service.engine, stats
        self.submit, self.capacity = service.engine.submit, service.engine.capacity

    def stats(self) -> EngineStats:
        return replace(self._engine.stats(), **self._stats)


@pytest.mark.parametrize(
    ("stats", "temperature", "says"),
    [
        ({"engine": "vllm", "batch_invariant": None}, 1, "random numbers of its own"),
        ({"engine": "vllm", "batch_invariant": None}, 0, "does not promise"),
        ({"engine": "upstream", "batch_invariant": None, "backend": "vLLM 0.20 at http://10.0.0.7:1"}, 1, "random"),
        ({"batch_invariant": False}, 0, "depend on the rest of the batch"),
        ({"engine": "pipeline"}, 1, None),
    ],
)  # fmt: skip
def test_an_engine_that_cant_promise_it_says_so(
    service: Service, stats: dict[str, Any], temperature: float, says: str | None
) -> None:
    engine = cast("Any", Elsewhere(service, stats))
    settings = Settings(engine="upstream") if stats.get("engine") == "upstream" else Settings()
    files = ModelFiles(fingerprint_folder(), service.variant)
    other = Service(service.variant, service.tokenizer, engine, settings, files=files)
    body = {"prompt": PROMPT, "max_tokens": 3, "temperature": temperature, "receipt": True}
    receipt = receipt_of(other, openai.parse(body))
    validate(receipt, "receipt")
    assert receipt["reproducible"] is (says is None)
    assert (says or "") in (receipt["reason"] or "")
    assert "10.0.0.7" not in json.dumps(receipt)
    assert (receipt["model"]["sha256"] is None) == (stats.get("engine") == "upstream")


def fingerprint_folder() -> Any:
    from llama_endpoints.nano import FOLDER

    return FOLDER


def test_a_deadline_says_so(service: Service) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1900, "temperature": 0, "ignore_eos": True, "receipt": True}
    receipt = receipt_of(service, openai.parse(body), deadline_s=0.3)
    assert receipt["output"]["finish_reason"] == "deadline"
    assert (receipt["reproducible"], receipt["reason"]) == (False, "the deadline ended the text")


def test_a_time_limit_of_the_request_says_so(service: Service) -> None:
    body = {
        "prompt": "def f(x):\n",
        "n_predict": 1900,
        "temperature": 0,
        "ignore_eos": True,
        "t_max_predict_ms": 1,
    }
    receipt = receipt_of(service, llamacpp.parse_completion({**body, "receipt": True}))
    assert receipt["output"]["tokens"] < 1900
    assert (receipt["reproducible"], receipt["reason"]) == (False, "the request's time limit ended the text")


# --- the model's digest ---------------------------------------------------------------------------


def test_a_packaged_model_has_the_same_digest(nano_model: Any) -> None:
    packaged = ModelFiles.find(nano_model).checkpoint
    assert fingerprint.of_checkpoint(packaged) == fingerprint.of_checkpoint(fingerprint_folder())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_another_byte_is_another_digest(tmp_path: Any, name: str) -> None:
    for one in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / one).write_bytes(b"a" * 100_000)
    before = fingerprint.of_checkpoint(tmp_path)
    (tmp_path / name).write_bytes(b"b" + b"a" * 99_999)
    assert fingerprint.of_checkpoint(tmp_path) != before


@pytest.fixture(scope="module")
def fresh() -> Iterator[Service]:
    with closing(load_nano(Settings())) as started:
        yield started


def test_nothing_is_read_before_a_receipt_is_asked_for(fresh: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    real = fingerprint.of_checkpoint
    monkeypatch.setattr(fingerprint, "of_checkpoint", lambda folder: (read.append(folder), real(folder))[1])
    body = {"prompt": PROMPT, "max_tokens": 1, "temperature": 0}
    fresh.generate(openai.parse(body))
    assert read == []
    for _ in range(2):
        receipt_of(fresh, openai.parse({**body, "receipt": True}))
    assert len(read) == 1
