"""The upstream engine: its requests, the responses that it accepts, and every kind of fault."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.engine.handle import Handle, Token
from llama_serving.engine.upstream import client, engine
from llama_serving.engine.upstream.client import UpstreamClient
from llama_serving.engine.upstream.engine import ServerMonitor, UpstreamEngine
from llama_serving.engine.upstream.remote import KINDS, TOKENS_PER_EVENT, RemoteServer
from llama_serving.engine.upstream.stream_parser import StreamedCompletion
from llama_serving.errors import (
    BadRequest,
    DeadlineExceeded,
    InternalError,
    QueueFull,
    ServingError,
    SetupError,
    Unavailable,
)
from llama_serving.model_files import ModelFiles
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.engine_factory import start_engine
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.draws import PATIENCE_S
from tests.support.upstreams import (
    END,
    HEAD,
    MODEL,
    Close,
    FakeUpstream,
    Hold,
    Reset,
    Step,
    chunk,
    event,
    status,
    stream,
    upstream,
    usage,
    whole,
)

PROMPT: Final = (1, 5, 6)
GREEDY: Final = SamplingParams(max_new_tokens=3)
STOPPING: Final = replace(GREEDY, stop_ids=frozenset({2, 9}))
SECRET: Final = "a prompt that nobody may see"
SERVER: Final = RemoteServer(KINDS["vllm"], "0.32.0", MODEL, 2048)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waiting times, on which nothing else depends."""
    monkeypatch.setattr(engine, "WATCH_S", 0.01)
    monkeypatch.setattr(engine, "AGAIN_S", 0.01)
    monkeypatch.setattr(client, "PAUSES_S", (0.01, 0.01))


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with upstream() as listening:
        yield listening


@contextmanager
def running(fake: FakeUpstream, *, stall_s: float = 60.0, key: str | None = None, **how: Any) -> Iterator[UpstreamEngine]:  # fmt: skip
    """An engine of that server, whose probing request is removed from the record."""
    started = UpstreamEngine(
        lambda: UpstreamClient(fake.url, key=key, stall_s=stall_s),
        monitor=ServerMonitor.at(fake.url),
        model=MODEL,
        **{"start_s": 5.0, **how},
    )
    try:
        fake.asked.clear()
        yield started
    finally:
        started.close()


@pytest.fixture
def own(fake: FakeUpstream) -> Iterator[UpstreamEngine]:
    with running(fake) as started:
        yield started


def until(true: Callable[[], bool]) -> None:
    tick = threading.Event()
    for _ in range(PATIENCE_S * 100):
        if true():
            return
        tick.wait(0.01)
    raise AssertionError("it never came")


def ended(handle: Handle) -> tuple[list[int], str | None, ServingError | None]:
    """The generated ids, and the finish reason."""
    handle.wait()
    got: list[int] = []
    try:
        for token in handle:
            got.append(token.id)  # noqa: PERF401  (those before an error count)
    except ServingError as error:
        return got, None, error
    return got, handle.finish_reason, None


def run(own: UpstreamEngine, params: SamplingParams = GREEDY, **more: Any) -> tuple[list[int], str | None, ServingError | None]:  # fmt: skip
    return ended(own.submit(PROMPT, params, **more))


# --- what is asked ----------------------------------------------------------------------------------


def test_ids_go_in_and_come_out(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.answers.append(stream(whole(PROMPT, [7, 8, 9])))
    assert run(own) == ([7, 8, 9], "length", None)
    assert fake.asked[0]["prompt"] == [1, 5, 6]
    stats = own.stats()
    assert (stats.engine, stats.backend) == ("upstream", f"vLLM 0.32.0 at {fake.url}")
    assert (stats.sequences, stats.tokens_in, stats.tokens_out) == (1, 3, 3)
    assert (stats.alive, stats.away, stats.running, stats.waiting) == (True, False, 0, 0)
    assert own.capacity == 2048


def test_every_field_is_decided_here() -> None:
    params = SamplingParams(
        max_new_tokens=7, min_new_tokens=2, temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.2,
        presence_penalty=-0.5, frequency_penalty=0.25, stop_ids=frozenset({9, 2}), seed=2**63 - 1, logprobs=3,
    )  # fmt: skip
    assert SERVER.body(PROMPT, params) == {
        "model": MODEL, "prompt": [1, 5, 6], "stream": True, "stream_options": {"include_usage": True},
        "return_token_ids": True, "max_tokens": 7, "min_tokens": 2, "temperature": 0.7, "top_p": 0.9, "top_k": 40,
        "min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": -0.5, "frequency_penalty": 0.25,
        "stop_token_ids": [2, 9], "ignore_eos": True, "seed": 2**63 - 1, "logprobs": 3,
        "return_tokens_as_token_ids": True,
    }  # fmt: skip


def test_tokens_that_are_not_streamed_may_come_together(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.answers.extend(stream(whole(PROMPT, [7, 8, 9])) for _ in range(3))
    run(own)
    run(own, streamed=False)
    run(
        own, streamed=False, stop=lambda _: False
    )  # (a token behind a stop string would be computed for nothing)
    assert [asked.get("stream_interval") for asked in fake.asked] == [None, TOKENS_PER_EVENT, None]
    # Our own server behind us refuses names that it does not know.
    assert "stream_interval" not in replace(SERVER, kind=KINDS["llama-endpoints"]).body(
        PROMPT, GREEDY, streamed=False
    )


def test_our_own_server_s_name_of_the_least_tokens() -> None:
    body = replace(SERVER, kind=KINDS["llama-endpoints"]).body(PROMPT, replace(GREEDY, min_new_tokens=2))
    assert body["min_new_tokens"] == 2
    assert "min_tokens" not in body


def test_each_sequence_of_a_request_has_a_seed_of_its_own() -> None:
    seeds = [SERVER.body(PROMPT, replace(GREEDY, seed=5, index=index))["seed"] for index in range(16)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [SERVER.body(PROMPT, replace(GREEDY, seed=5, index=index))["seed"] for index in range(16)]
    assert seeds[1] != SERVER.body(PROMPT, replace(GREEDY, seed=6, index=1))["seed"]


def test_a_temperature_that_vllm_would_raise_is_refused(fake: FakeUpstream, own: UpstreamEngine) -> None:
    with pytest.raises(BadRequest, match=r"`temperature` must be 0 or at least 0\.01 .* not 0\.005"):
        own.submit(PROMPT, replace(GREEDY, temperature=0.005))
    assert fake.asked == []
    assert run(own, replace(GREEDY, temperature=0.01))[2] is None
    ours = replace(SERVER, kind=KINDS["llama-endpoints"])
    assert ours.body(PROMPT, replace(GREEDY, temperature=0.005))["temperature"] == 0.005


def test_log_probabilities(fake: FakeUpstream, own: UpstreamEngine) -> None:
    logprobs = {
        "text_offset": [0, 1], "tokens": ["token_id:7", "token_id:8"], "token_logprobs": [-2.0, -0.5],
        # vLLM: the drawn one first, and one more than was asked for where it is not among the best.
        "top_logprobs": [{"token_id:7": -2.0, "token_id:3": -0.1, "token_id:4": -1.5},
                         {"token_id:8": -0.5, "token_id:6": -1.0}],
    }  # fmt: skip
    first = chunk([7, 8], "length", logprobs=logprobs, prompt_token_ids=list(PROMPT))
    fake.answers.append(stream([first, usage(3, 2), "[DONE]"]))
    handle = own.submit(PROMPT, replace(GREEDY, max_new_tokens=2, logprobs=2))
    assert list(handle) == [
        Token(7, -2.0, ((3, -0.1), (4, -1.5))),
        Token(8, -0.5, ((8, -0.5), (6, -1.0))),
    ]


TOLD: Final = {
    "text_offset": [0, 0, 0, 0], "tokens": ["token_id:1", "token_id:5", "token_id:6", "token_id:7"],
    "token_logprobs": [None, -2.0, -0.5, -1.0],
    "top_logprobs": [None, {"token_id:5": -2.0, "token_id:3": -0.1}, {"token_id:6": -0.5}, {"token_id:7": -1.0}],
}  # fmt: skip
"""vLLM's log-probabilities of the echoed prompt and of one token."""
FIELD: Final = [
    None,
    {"5": {"logprob": -2.0, "rank": 9, "decoded_token": "a"}, "3": {"logprob": -0.1, "rank": 1, "decoded_token": "b"}},
    {"6": {"logprob": -0.5, "rank": 1, "decoded_token": "c"}},
]  # fmt: skip
"""Ours, of the same prompt."""


@pytest.mark.parametrize("new", [0, 1])
def test_log_probabilities_of_a_prompt(fake: FakeUpstream, own: UpstreamEngine, new: int) -> None:
    first = chunk([7], "length", logprobs=TOLD, prompt_token_ids=list(PROMPT))
    fake.answers.append(stream([first, usage(3, 1), "[DONE]"]))
    handle = own.submit(PROMPT, SamplingParams(max_new_tokens=new, prompt_logprobs=1))
    assert list(handle) == [Token(7)][:new]
    assert handle.prompt == [Token(5, -2.0, ((3, -0.1),)), Token(6, -0.5, ((6, -0.5),), 1)]
    assert handle.finish_reason == "length"
    asked = fake.asked[0]
    assert (asked["max_tokens"], asked["echo"], asked["logprobs"]) == (1, True, 1)


def test_log_probabilities_of_a_prompt_of_one_token() -> None:
    said = {"tokens": ["token_id:5", "token_id:7"], "token_logprobs": [None, -1.0],
            "top_logprobs": [None, {"token_id:7": -1.0}]}  # fmt: skip
    for logprobs, expected in ((None, Token(7)), (0, Token(7, -1.0))):
        answer = StreamedCompletion(
            (5,), SamplingParams(max_new_tokens=1, prompt_logprobs=0, logprobs=logprobs)
        )
        event = json.dumps(chunk([7], "length", logprobs=said, prompt_token_ids=[5]))
        assert (answer.read(event), answer.prompt) == ([expected], [])


def test_log_probabilities_of_a_prompt_from_our_own_server() -> None:
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=1)
    answer = StreamedCompletion(PROMPT, params)
    said = chunk([7], "length", prompt_logprobs=FIELD, prompt_token_ids=list(PROMPT))
    assert answer.read(json.dumps(said)) == [Token(7)]
    assert answer.prompt == [Token(5, -2.0, ((3, -0.1),), 9), Token(6, -0.5, ((6, -0.5),), 1)]
    body = replace(SERVER, kind=KINDS["llama-endpoints"]).body(PROMPT, params)
    assert (body["prompt_logprobs"], "echo" in body, "logprobs" in body) == (1, False, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"logprobs": {**TOLD, "tokens": ["token_id:1", "token_id:6", "token_id:5", "token_id:7"]}},
        {"logprobs": {name: each[:2] for name, each in TOLD.items()}},
        {"prompt_logprobs": FIELD[:2]},
        {"prompt_logprobs": [None, {"6": FIELD[1]["5"]}, FIELD[2]]},
        {"prompt_logprobs": [None, {"5": {}}, FIELD[2]]},
        {"prompt_logprobs": 5},
    ],
)  # fmt: skip
def test_log_probabilities_of_another_prompt_or_none(wrong: dict[str, Any]) -> None:
    params = SamplingParams(max_new_tokens=1, prompt_logprobs=1)
    with pytest.raises(InternalError, match="log-probabilities"):
        read(chunk([7], "length", **wrong, prompt_token_ids=list(PROMPT)), usage(3, 1), "[DONE]", params=params)


def test_a_key_is_sent(fake: FakeUpstream) -> None:
    with running(fake, key="k"):
        pass
    assert all("Authorization: Bearer k\r\n" in head for head in fake.headers)
    assert fake.headers


def test_a_proxy_of_the_shell_s_is_not_between(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with running(fake) as own:
        assert run(own)[1] == "length"


# --- what is taken for an answer --------------------------------------------------------------------


def read(*events: object, params: SamplingParams = STOPPING) -> tuple[list[int], StreamedCompletion]:
    answer = StreamedCompletion(PROMPT, params)
    tokens = [
        token for one in events for token in answer.read(one if isinstance(one, str) else json.dumps(one))
    ]
    return [token.id for token in tokens], answer


FIRST: Final = chunk([7], prompt_token_ids=list(PROMPT))
LENGTH: Final = chunk([8, 6], "length")


@pytest.mark.parametrize(
    ("events", "ids", "reason"),
    [
        ((FIRST, LENGTH, usage(3, 3), "[DONE]"), [7, 8, 6], "length"),
        ((FIRST, chunk([2], "stop"), usage(3, 2), "[DONE]"), [7, 2], "stop"),
        ((FIRST, chunk([], "deadline"), usage(3, 1), "[DONE]"), [7], "deadline"),
        # Half a character has no text; our own server has chunks of its own for the end.
        ((FIRST, chunk([8], text=""), chunk([9]), chunk([], "stop"), usage(3, 3), "[DONE]"), [7, 8, 9], "stop"),
    ],
)
def test_an_answer(events: tuple[object, ...], ids: list[int], reason: str) -> None:
    got, answer = read(*events)
    assert (got, answer.finish_reason, answer.complete) == (ids, reason, True)


@pytest.mark.parametrize(
    ("events", "says"),
    [
        (("{",), "no JSON"),
        (("[" * 100_000,), "no JSON"),
        (("[1]",), "no object"),
        (({"choices": None},), "one choice"),
        (({},), "one choice"),
        (({"choices": [FIRST["choices"][0]] * 2},), "one choice"),
        (({"choices": [7]},), "not the one asked for"),
        ((chunk([7], index=1),), "not the one asked for"),
        ((chunk([7], token_ids=None),), "without token ids"),
        ((chunk([7], token_ids=["7"]),), "without token ids"),
        ((chunk([7], token_ids=[True]),), "without token ids"),
        ((chunk([7], token_ids=[-1]),), "without token ids"),
        ((chunk([7]),), "without the ids of their prompt"),
        ((chunk([7], prompt_token_ids=[1, 1, 5, 6]),), "another prompt"),
        ((chunk([7], prompt_token_ids="ids"),), "another prompt"),
        ((FIRST, chunk([8, 6, 5])), "more tokens"),
        ((FIRST, LENGTH, chunk([5])), "behind the end"),
        ((FIRST, chunk([8], "length")), "not asked for"),
        ((FIRST, chunk([8], "stop")), "not asked for"),
        ((FIRST, chunk([8], "repetition")), "not asked for"),
        ((FIRST, chunk([8], 7)), "not asked for"),  # type: ignore[arg-type]
        ((FIRST, LENGTH, usage(3, 2)), "number of tokens"),
        ((FIRST, LENGTH, usage(4, 3)), "number of tokens"),
        ((FIRST, "[DONE]"), "before its sequence does"),
        ((FIRST, LENGTH, "[DONE]"), "before its sequence does"),
    ],
)
def test_what_is_no_answer(events: tuple[object, ...], says: str) -> None:
    with pytest.raises(InternalError, match=says) as fault:
        read(*events)
    assert fault.value.code == "upstream_error"


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {"tokens": ["token_id:7"], "token_logprobs": [-1.0]},
        {"tokens": ["token_id:7"], "token_logprobs": [-1.0, -1.0], "top_logprobs": [{}]},
        {"tokens": ["token_id:8"], "token_logprobs": [-1.0], "top_logprobs": [{}]},
        {"tokens": ["x"], "token_logprobs": [-1.0], "top_logprobs": [{}]},
        {"tokens": ["token_id:7"], "token_logprobs": [None], "top_logprobs": [{}]},
        {"tokens": ["token_id:7"], "token_logprobs": [-1.0], "top_logprobs": [{"y": -1.0}]},
        {"tokens": [7], "token_logprobs": [-1.0], "top_logprobs": [{}]},
    ],
)
def test_log_probabilities_that_are_none(wrong: object) -> None:
    with pytest.raises(InternalError, match="log-probabilities"):
        read(chunk([7], logprobs=wrong, prompt_token_ids=list(PROMPT)), params=replace(GREEDY, logprobs=1))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"message": SECRET, "type": "InternalServerError", "code": 500}, InternalError),
        ({"message": SECRET, "code": "internal_error"}, InternalError),
        (SECRET, InternalError),
        ({"message": SECRET, "code": "unavailable"}, Unavailable),
        ({"message": SECRET, "code": 503}, Unavailable),
    ],
)
def test_an_error_in_the_middle(said: object, kind: type[ServingError]) -> None:
    with pytest.raises(kind) as fault:
        read(FIRST, {"error": said})
    assert SECRET not in fault.value.message


@pytest.mark.parametrize("reason", ["abort", "cancelled"])
def test_a_sequence_that_the_server_gives_up(reason: str) -> None:
    with pytest.raises(Unavailable):
        read(FIRST, chunk([], reason))


def test_events_may_be_cut_anywhere(fake: FakeUpstream, own: UpstreamEngine) -> None:
    text = chunk([7], prompt_token_ids=list(PROMPT), text="é🦙")
    events = b"".join(
        b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\r\n\r\n"
        for one in (text, LENGTH, usage(3, 3))
    )
    content = b": a comment\n\n" + events + b"data: [DONE]\n\n"
    fake.answers.append([HEAD, *(b"1\r\n%c\r\n" % byte for byte in content), END])
    assert run(own) == ([7, 8, 6], "length", None)


# --- the start --------------------------------------------------------------------------------------


def test_it_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeUpstream()
    fake.up()
    fake.down()  # (its port is known, and nobody listens)
    later = threading.Thread(target=lambda: (until(lambda: "waiting for" in caplog.text), fake.up()))
    later.start()
    with running(fake, start_s=PATIENCE_S) as own:
        assert run(own)[1] == "length"
    later.join()
    fake.down()


@pytest.mark.parametrize(
    ("path", "code"), [("/health", 503), ("/health", 500), ("/v1/models", 502), ("/version", 429)]
)
def test_one_that_is_loading_is_waited_for(
    fake: FakeUpstream, caplog: pytest.LogCaptureFixture, path: str, code: int
) -> None:
    fake.said[path] = status(code)
    ready = threading.Thread(target=lambda: (until(lambda: "waiting for" in caplog.text), fake.said.clear()))
    ready.start()
    with running(fake, start_s=PATIENCE_S) as own:
        assert run(own)[1] == "length"
    ready.join()
    assert f"it answers {path} with {code}" in caplog.text


def refusal(fake: FakeUpstream, **how: Any) -> str:
    with pytest.raises(SetupError) as refused, running(fake, **how):
        pass
    assert f"LLAMA_UPSTREAM_URL={fake.url}" in str(refused.value)
    return str(refused.value)


def test_the_server_is_not_waited_for_forever(fake: FakeUpstream) -> None:
    fake.down()
    assert "no server answered there within 0 s" in refusal(fake, start_s=0.0)
    fake.up()


def test_another_model_is_refused(fake: FakeUpstream) -> None:
    fake.models = ("other", "another")
    assert "its models are other, another, and not nano" in refusal(fake)
    assert fake.asked == []


@pytest.mark.parametrize("said", [{}, [], {"data": 5}, {"data": [{"name": "x"}]}, {"data": ["nano"]}])
def test_what_is_no_list_of_models(fake: FakeUpstream, said: object) -> None:
    fake.said["/v1/models"] = status(200, said)
    assert "no list of models" in refusal(fake)


def test_a_list_of_models_that_fails(fake: FakeUpstream) -> None:
    fake.said["/v1/models"] = status(500)
    assert "it answers /v1/models with 500" in refusal(fake)


def test_a_start_that_is_ended_is_over() -> None:
    """As by Ctrl-C: the start ends before its ten minutes."""
    kept: list[UpstreamEngine] = []

    def closing() -> UpstreamClient:
        threading.Thread(target=kept[0].close).start()
        return UpstreamClient("http://127.0.0.1:9")

    class Kept(UpstreamEngine):
        def _start(self) -> None:
            kept.append(self)
            super()._start()

    with pytest.raises(SetupError, match="was interrupted"):
        Kept(closing, monitor=ServerMonitor.at("http://127.0.0.1:9"), model=MODEL, start_s=PATIENCE_S * 10)


def test_what_is_no_json(fake: FakeUpstream) -> None:
    fake.said["/v1/models"] = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml"]
    assert "no JSON" in refusal(fake)


def test_a_server_of_an_unknown_kind_is_refused(fake: FakeUpstream) -> None:
    fake.owned_by = "somebody"
    assert "not one of the supported servers: vLLM or llama-endpoints" in refusal(fake)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
def test_a_wrong_key_is_said_at_once(fake: FakeUpstream, path: str) -> None:
    fake.said[path] = status(401)
    assert f"it refuses {path} (401): it rejects the key" in refusal(fake, key="wrong")


def test_what_is_no_model_s_server_at_all(fake: FakeUpstream) -> None:
    fake.said["/health"] = status(404)
    assert "it answers /health with 404" in refusal(fake)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            status(400, {"error": {"type": "BadRequestError", "param": "prompt"}}),
            "400, BadRequestError, prompt",
        ),
        (stream([chunk([7], "length", token_ids=None)]), "without token ids"),
        ([HEAD, Close()], "broke off"),
    ],
)
def test_one_that_takes_or_gives_no_ids_is_found_out_at_the_start(
    fake: FakeUpstream, answer: list[Step], says: str
) -> None:
    fake.answers.append(answer)
    message = refusal(fake)
    assert "A first request failed" in message
    assert says in message


def test_one_without_a_version_and_a_context(fake: FakeUpstream) -> None:
    fake.context, fake.said["/version"] = None, status(404)
    with running(fake) as own:
        assert own.capacity is None
        assert own.stats().backend == f"vLLM at {fake.url}"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(engine="upstream"), "LLAMA_ENGINE=upstream needs LLAMA_UPSTREAM_URL"),
        (Settings(upstream_url="http://a"), "LLAMA_UPSTREAM_URL is set, but the engine is not `upstream`"),
        (Settings(engine="batching", upstream_key="k"), "LLAMA_UPSTREAM_KEY is set, but the engine is not"),
        (Settings(engine="upstream", upstream_url="http://a", threads=2), "LLAMA_THREADS is set, but"),
        (Settings(engine="upstream", upstream_url="http://a", kv_memory=2), "LLAMA_KV_MEMORY is set, but"),
    ],
)
def test_settings_that_do_not_go_together(settings: Settings, says: str) -> None:
    with pytest.raises(SetupError, match=says):
        start_engine(ModelFiles(NANO_FOLDER, NANO), dtype="float32", context=64, settings=settings)


def test_the_context_is_no_longer_than_the_server_s(
    fake: FakeUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    fake.context = 64
    given = Settings(engine="upstream", upstream_url=fake.url, upstream_key="hidden")
    with caplog.at_level("INFO", "llama_serving"):
        service = Service.start(ModelFiles(NANO_FOLDER, NANO), given)
    service.close()
    assert service.builder.context == 64
    assert "the model's server has a context of 64 tokens" in caplog.text
    assert f"upstream engine on the vLLM 0.32.0 at {fake.url} backend" in caplog.text
    assert "hidden" not in caplog.text


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "ours"),
    [
        (400, BadRequest, "upstream_refused"),
        (413, BadRequest, "upstream_refused"),
        (422, BadRequest, "upstream_refused"),
        (401, InternalError, "upstream_error"),
        (403, InternalError, "upstream_error"),
        (404, InternalError, "upstream_error"),
        (307, InternalError, "upstream_error"),
        (206, InternalError, "upstream_error"),
        (429, QueueFull, "queue_full"),
        (500, InternalError, "upstream_error"),
        (502, InternalError, "upstream_error"),
        (503, Unavailable, "unavailable"),
        (504, DeadlineExceeded, "deadline_exceeded"),
    ],
)
def test_a_status_becomes_an_error_of_ours(
    fake: FakeUpstream, own: UpstreamEngine, code: int, kind: type[ServingError], ours: str
) -> None:
    said = {"error": {"message": SECRET, "type": "TheType", "param": SECRET, "code": code}}
    fake.answers.append(status(code, said, Location="/elsewhere"))
    got, _, error = run(own)
    assert (got, type(error), error and error.code) == ([], kind, ours)
    assert error is not None
    assert SECRET not in error.message
    assert len(fake.asked) == 1  # nothing is asked twice
    if kind in (BadRequest, InternalError):
        assert f"{code}, TheType" in error.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17),
        ("0", 5),
        ("-1", 5),
        ("soon", 5),
        ("99999", 5),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 5),
        ("²", 5),
    ],
)
@pytest.mark.parametrize("code", [429, 503])
def test_when_to_come_again_is_passed_on(
    fake: FakeUpstream, own: UpstreamEngine, code: int, header: str, seconds: int
) -> None:
    answer = status(code, {"error": {}})
    (head,) = answer
    assert isinstance(head, bytes)
    fake.answers.append([head.replace(b"\r\n", b"\r\nRetry-After: " + header.encode() + b"\r\n", 1)])
    _, _, error = run(own)
    assert error is not None
    assert error.retry_after == seconds


@pytest.mark.parametrize("said", [b"", b"{", b"[" * 60_000, b"\xff", b"x" * 1_000_000])
def test_a_refusal_may_say_anything(fake: FakeUpstream, own: UpstreamEngine, said: bytes) -> None:
    fake.answers.append([b"HTTP/1.1 500 Oh\r\nContent-Length: %d\r\n\r\n" % len(said) + said])
    _, _, error = run(own)
    assert isinstance(error, InternalError)


# --- connections ------------------------------------------------------------------------------------


def test_connecting_is_tried_again(
    fake: FakeUpstream, own: UpstreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "WATCH_S", PATIENCE_S)
    monkeypatch.setattr(client, "PAUSES_S", (0.1,) * 100)
    fake.down()
    handle = own.submit(PROMPT, GREEDY)
    back = threading.Timer(0.3, fake.up)
    back.start()
    assert ended(handle) == ([100, 101, 102], "length", None)
    assert len(fake.asked) == 1


def test_a_refused_connection_is_a_503(fake: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WATCH_S", PATIENCE_S)
    with running(fake) as own:
        fake.down()
        got, _, error = run(own)
        fake.up()
        assert (got, type(error)) == ([], Unavailable)
        assert error is not None
        assert error.retry_after == 5
        assert fake.asked == []
        assert run(own)[1] == "length"


TWO: Final = [event(chunk([7], prompt_token_ids=list(PROMPT))), event(chunk([8]))]


@pytest.mark.parametrize(
    ("answer", "ids"),
    [
        ([Close()], []),
        ([Reset()], []),
        ([b"HTTP/1.1 200"], []),
        ([HEAD, Close()], []),
        ([HEAD, *TWO, Close()], [7, 8]),
        ([HEAD, *TWO, Reset()], [7, 8]),
        ([HEAD, *TWO, b'40\r\ndata: {"choi', Close()], [7, 8]),
        ([HEAD, *TWO, END], [7, 8]),
        ([HEAD, *TWO, event(chunk([6], "length")), END], [7, 8, 6]),
        ([HEAD, *TWO, b"no chunk at all\r\n"], [7, 8]),
    ],
)
def test_a_break_is_an_error_and_nothing_is_asked_twice(
    fake: FakeUpstream, own: UpstreamEngine, answer: list[Step], ids: list[int]
) -> None:
    fake.answers.append(answer)
    got, _, error = run(own)
    assert isinstance(error, Unavailable)
    # (A reset may overtake what was sent before it: then less has come, and never something else.)
    assert got == ids or (Reset() in answer and got == ids[: len(got)])
    assert len(fake.asked) == 1
    assert run(own)[1] == "length"


@pytest.mark.parametrize("kind", [b"application/json", b"text/html", b"text/plain; text/event-stream"])
def test_what_is_no_stream(fake: FakeUpstream, own: UpstreamEngine, kind: bytes) -> None:
    fake.answers.append([HEAD.replace(b"text/event-stream; charset=utf-8", kind), *TWO, END])
    got, _, error = run(own)
    assert (got, type(error)) == ([], InternalError)
    assert error is not None
    assert "no events" in error.message


def test_an_event_without_end(fake: FakeUpstream, own: UpstreamEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "LARGEST_EVENT", 10_000)
    line = b"data: " + b"x" * 20_000
    fake.answers.append([HEAD, b"%x\r\n%b\r\n" % (len(line), line), Hold()])
    _, _, error = run(own)
    assert isinstance(error, InternalError)
    until(lambda: fake.gone == 1)


def test_a_server_that_falls_silent_is_given_up(fake: FakeUpstream) -> None:
    with running(fake, stall_s=0.2) as own:
        fake.answers.append([HEAD, *TWO, Hold()])
        got, _, error = run(own)
        assert (got, type(error)) == ([7, 8], Unavailable)
        until(lambda: fake.gone == 1)


# --- ends -------------------------------------------------------------------------------------------


def held(fake: FakeUpstream, own: UpstreamEngine, **more: Any) -> Handle:
    """A sequence with two tokens, and a server that withholds the third."""
    last = [chunk([6], "length"), usage(3, 3), "[DONE]"]
    fake.answers.append([HEAD, *TWO, Hold(), *map(event, last), END])
    handle = own.submit(PROMPT, GREEDY, **more)
    until(lambda: handle.count == 2)
    return handle


def test_cancel_closes_the_connection(fake: FakeUpstream, own: UpstreamEngine) -> None:
    handle = held(fake, own)
    assert (own.stats().running, own.stats().waiting) == (1, 0)
    handle.cancel()
    assert ended(handle) == ([7, 8], "cancelled", None)
    until(lambda: fake.gone == 1)
    assert own.stats().running == 0
    handle.cancel()


def test_one_that_is_cancelled_before_its_first_step_ends_too(
    own: UpstreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = asyncio.create_task

    def created(coroutine: Any) -> Any:
        task = create(coroutine)
        task.cancel()
        return task

    monkeypatch.setattr("llama_serving.engine.upstream.engine.asyncio.create_task", created)
    assert run(own) == ([], "cancelled", None)
    monkeypatch.undo()
    own.drain()


def test_a_stop_ends_the_sequence_there(fake: FakeUpstream, own: UpstreamEngine) -> None:
    seen: list[int] = []

    def stop(token_id: int) -> bool:
        seen.append(token_id)
        return token_id == 8

    fake.answers.append([HEAD, *TWO, Hold()])
    assert run(own, stop=stop) == ([7, 8], "stop", None)
    assert seen == [7, 8]
    until(lambda: fake.gone == 1)


def test_a_stop_that_fails_fails_its_own_sequence(fake: FakeUpstream, own: UpstreamEngine) -> None:
    def stop(_: int) -> bool:
        raise ValueError(SECRET)

    _, _, error = run(own, stop=stop)
    assert isinstance(error, InternalError)
    assert run(own)[1] == "length"


def test_a_deadline_ends_it_with_what_it_has(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.answers.append([HEAD, *TWO, Hold()])
    got, reason, error = run(own, deadline=time.monotonic() + 0.5)
    assert (got, reason, error) == ([7, 8][: len(got)], "deadline", None)
    until(lambda: fake.gone == 1)


def test_a_deadline_that_has_passed(fake: FakeUpstream, own: UpstreamEngine) -> None:
    assert run(own, deadline=time.monotonic() - 1) == ([], "deadline", None)
    assert fake.asked == []


def test_others_wait_for_a_place(fake: FakeUpstream) -> None:
    with running(fake, max_num_seqs=1) as own:
        first = held(fake, own)
        second, third, late = (
            own.submit(PROMPT, replace(GREEDY, seed=2)),
            own.submit(PROMPT, replace(GREEDY, seed=3)),
            own.submit(PROMPT, replace(GREEDY, seed=4), deadline=time.monotonic() + 0.05),
        )
        assert (own.stats().running, own.stats().waiting) in ((1, 3), (1, 2))
        assert ended(late) == ([], "deadline", None)
        second.cancel()
        assert ended(second) == ([], "cancelled", None)
        assert [body["seed"] for body in fake.asked] == [0]
        fake.go_on.set()
        assert ended(first)[1] == ended(third)[1] == "length"
        assert [body["seed"] for body in fake.asked] == [0, 3]


def test_drain_takes_nothing_more_and_waits(fake: FakeUpstream, own: UpstreamEngine) -> None:
    handle = held(fake, own)
    draining = threading.Thread(target=own.drain, daemon=True)
    draining.start()
    until(lambda: not own.stats().alive)
    with pytest.raises(Unavailable):
        own.submit(PROMPT, GREEDY)
    assert draining.is_alive()
    fake.go_on.set()
    draining.join(PATIENCE_S)
    assert not draining.is_alive()
    assert ended(handle) == ([7, 8, 6], "length", None)


def test_close_cancels_what_runs(fake: FakeUpstream) -> None:
    with running(fake, max_num_seqs=1) as own:
        first, second = held(fake, own), own.submit(PROMPT, GREEDY)
        own.close()
        assert ended(first) == ([7, 8], "cancelled", None)
        assert ended(second) == ([], "cancelled", None)
        until(lambda: fake.gone == 1)
        assert not own.stats().alive
        with pytest.raises(Unavailable):
            own.submit(PROMPT, GREEDY)
        first.cancel()


# --- away, and back ---------------------------------------------------------------------------------


def test_one_that_goes_and_comes_back(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.said["/health"] = status(503)
    until(lambda: own.stats().away)
    assert own.stats().alive
    with pytest.raises(Unavailable, match="can't be reached") as refused:
        own.submit(PROMPT, GREEDY)
    assert refused.value.retry_after == 5
    fake.said.clear()
    until(lambda: not own.stats().away)
    assert run(own)[1] == "length"


def test_a_killed_one_is_noticed_and_taken_back(fake: FakeUpstream, own: UpstreamEngine) -> None:
    fake.down()
    until(lambda: own.stats().away)
    fake.up()
    until(lambda: not own.stats().away)
    assert run(own)[1] == "length"


@pytest.mark.parametrize("change", [{"models": ("other",)}, {"owned_by": "llama-endpoints"}, {"context": 512}])
def test_another_one_is_not_taken_for_it(
    fake: FakeUpstream, own: UpstreamEngine, caplog: pytest.LogCaptureFixture, change: dict[str, Any]
) -> None:
    before = {name: getattr(fake, name) for name in change}
    fake.down()
    until(lambda: own.stats().away)
    for name, value in change.items():
        setattr(fake, name, value)
    fake.up()
    until(lambda: "another server now" in caplog.text or "can't be used any more" in caplog.text)
    assert own.stats().away
    for name, value in before.items():
        setattr(fake, name, value)
    until(lambda: not own.stats().away)
