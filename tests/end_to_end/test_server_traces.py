"""Traces of our own server, as a real collector on this machine receives them: OTLP's protobuf, Azure's lines."""

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from llama_endpoints.devtools.servers import RunningServer, environment, free_port, own_server
from llama_serving.engine.batching.engine import BatchingEngine
from llama_serving.engine.handle import Handle
from llama_serving.errors import InternalError
from llama_serving.service.service import Service
from tests.conftest import Answer, post
from tests.end_to_end.test_server_life import refused
from tests.support.calls import PATIENCE_S, get, is_up, metric, opened, until
from tests.support.collector import attributes, collecting, deaf
from tests.support.in_process import logged, serving

KEY = "key-of-the-zoo"
PROMPT = "def zebra_crossing(quokka):"
BODY = {"prompt": PROMPT, "max_tokens": 24, "temperature": 1, "seed": 5, "ignore_eos": True}
WORDS = ("zebra", "quokka", "zoo", "okapi")
"""Of prompts, keys, headers and addresses: none of them may ever be sent."""
INSTRUMENTATION = "00000000-0000-0000-0000-000000000001"


def to_otlp(url: str) -> dict[str, str]:
    return {"LLAMA_TRACES": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": url}


def to_azure(url: str) -> dict[str, str]:
    connection = f"InstrumentationKey={INSTRUMENTATION};IngestionEndpoint={url}/"
    return {"LLAMA_TRACES": "azure", "APPLICATIONINSIGHTS_CONNECTION_STRING": connection}


IMPATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "600", "OTEL_BSP_SCHEDULE_DELAY": "10"}


def ended(server: RunningServer) -> str:
    """Its log, after a signal and an orderly end."""
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE_S) == 0
    return server.log.read_text()


# --- OTLP -------------------------------------------------------------------------------------------


def trace(number: int) -> str:
    return f"{number:032x}"


def parent(number: int, *, sampled: bool = True) -> dict[str, str]:
    """The header of a client that has a trace."""
    return {"traceparent": f"00-{trace(number)}-{number:016x}-{'01' if sampled else '00'}"}


@dataclass(frozen=True)
class Told:
    """One server's life: what it answered, and what it sent until its end."""

    answers: dict[str, Answer]
    text: str
    paths: set[str]
    resources: list[dict[str, Any]]
    spans: list[Span]
    log: list[logging.LogRecord]

    def server_span(self, number: int) -> Span:
        (found,) = [s for s in self.of(number) if s.kind == Span.SPAN_KIND_SERVER]
        return found

    def sequences(self, number: int) -> list[Span]:
        return [span for span in self.of(number) if span.kind == Span.SPAN_KIND_INTERNAL]

    def of(self, number: int) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace(number)]


def pipelined(url: str, numbers: tuple[int, ...]) -> None:
    """Requests of several clients that a proxy sends over one connection, the next before the last is answered."""
    raw = json.dumps({**BODY, "max_tokens": 2}).encode()
    place = urlsplit(url)
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"".join(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Api-Key: %s\r\nTraceparent: %s\r\nConnection: %s\r\nContent-Length: %d\r\n\r\n%s"
                % (KEY.encode(), parent(number)["traceparent"].encode(),
                   b"close" if number == numbers[-1] else b"keep-alive", len(raw), raw)
                for number in numbers
            )
        )  # fmt: skip
        read = b"".join(iter(lambda: connection.recv(65536), b""))
    assert read.count(b"HTTP/1.1 200 OK") == len(numbers)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    with collecting() as collector:
        env = {
            **to_otlp(collector.url),
            "LLAMA_API_KEYS": KEY,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=tests",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
        }
        with logged() as log, serving(env) as server:
            url, key = f"{server.url}/v1/completions", {"Authorization": f"Bearer {KEY}"}
            chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5, "stream": True, "n": 2}
            answers = {
                "two": post(f"{url}?okapi=1", {**BODY, "n": 2}, x_request_id="mine", **parent(1), **key),
                "stream": post(f"{server.url}/v1/chat/completions", chat, **parent(2), **key),
                "bad": post(url, {**BODY, "quokka": 1}, **parent(3), **key),
                "no key": post(url, BODY, Authorization="Bearer okapi", **parent(4)),
                "no path": post(f"{server.url}/okapi/zebra", BODY, **parent(5), **key),
                "unsampled": post(url, BODY, **parent(6, sampled=False), **key),
                "no parent": post(f"{server.url}/score", {"input_data": [PROMPT, PROMPT]}, **key),
                "model": get(f"{server.url}/v1/models/quokka", **parent(9), **key),
            }
            for path in ("/health/live", "/health/ready", "/ping", "/metrics"):
                assert get(server.url + path, **parent(10), **key).status == 200
            pipelined(server.url, (7, 8))
        named = [attributes(one.resource) for request in collector.requests for one in request.resource_spans]
        yield Told(answers, collector.text, collector.paths, named, collector.spans, log)


def test_a_request_is_a_span_in_its_clients_trace(told: Told) -> None:
    span, said = told.server_span(1), attributes(told.server_span(1))
    assert span.parent_span_id.hex() == f"{1:016x}"
    assert span.name == "POST /v1/completions"
    assert said["llama.request_id"] == told.answers["two"].headers["x-request-id"] == "mine"
    assert (said["http.request.method"], said["http.route"]) == ("POST", "/v1/completions")
    assert (said["url.path"], said["url.scheme"]) == ("/v1/completions", "http")
    assert (said["server.address"], said["http.response.status_code"]) == ("127.0.0.1", 200)
    assert span.status.code == Status.STATUS_CODE_UNSET


def test_each_sequence_is_a_span_in_its_requests(told: Told) -> None:
    server, sequences = told.server_span(1), told.sequences(1)
    usage = told.answers["two"].json["usage"]
    assert len(sequences) == 2
    for span in sequences:
        said = attributes(span)
        assert span.parent_span_id == server.span_id
        assert span.name == "text_completion nano"
        assert server.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano < span.end_time_unix_nano <= server.end_time_unix_nano
        first = said.pop("gen_ai.server.time_to_first_token")
        assert 0 < first * 1e9 < span.end_time_unix_nano - span.start_time_unix_nano
        assert said == {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "llama-endpoints",
            "gen_ai.request.model": "nano",
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.output_tokens": 24,
            "gen_ai.response.finish_reasons": ["length"],
        }


def test_times_are_now(told: Told) -> None:
    assert all(abs(span.start_time_unix_nano / 1e9 - time.time()) < 300 for span in told.spans)


def test_a_stream_has_the_same_spans(told: Told) -> None:
    assert told.answers["stream"].text.endswith("data: [DONE]\n\n")
    server, sequences = told.server_span(2), told.sequences(2)
    assert server.name == "POST /v1/chat/completions"
    assert [span.name for span in sequences] == ["chat nano"] * 2
    assert {span.parent_span_id for span in sequences} == {server.span_id}
    assert server.start_time_unix_nano < min(span.start_time_unix_nano for span in sequences)
    assert max(span.end_time_unix_nano for span in sequences) <= server.end_time_unix_nano


@pytest.mark.parametrize(
    ("number", "name", "status"),
    [
        (3, "POST /v1/completions", 400),
        (4, "POST /v1/completions", 401),
        (5, "POST", 404),
        (9, "GET", 404),
    ],
)
def test_a_refusal_is_a_span_without_sequences(told: Told, number: int, name: str, status: int) -> None:
    (span,) = told.of(number)
    assert (span.name, attributes(span)["http.response.status_code"]) == (name, status)
    assert span.status.code == Status.STATUS_CODE_UNSET, "the client's fault is none of the server's"


def test_who_has_no_trace_gets_one(told: Told) -> None:
    (server,) = [span for span in told.spans if span.name == "POST /score"]
    assert not server.parent_span_id
    sequences = [span for span in told.spans if span.parent_span_id == server.span_id]
    assert len(sequences) == 2, "one a prompt"
    assert {span.trace_id for span in sequences} == {server.trace_id}
    asked = told.answers["no parent"].headers["x-request-id"]
    assert attributes(server)["llama.request_id"] == asked


def test_what_its_client_does_not_record_is_not_sent(told: Told) -> None:
    assert told.answers["unsampled"].status == 200
    assert told.of(6) == []


def test_requests_of_one_connection_have_nothing_to_do_with_each_other(told: Told) -> None:
    for number in (7, 8):
        assert told.server_span(number).parent_span_id.hex() == f"{number:016x}"
        assert len(told.sequences(number)) == 1


def test_probes_and_metrics_are_not_traced(told: Told) -> None:
    assert told.of(10) == []
    names = {span.name for span in told.spans}
    assert not [name for name in names if "health" in name or "ping" in name or "metrics" in name]


def test_the_server_says_who_it_is(told: Told) -> None:
    assert told.resources
    for resource in told.resources:
        assert resource["service.name"] == "llama-endpoints"
        assert resource["service.version"] == version("llama-endpoints")
        assert resource["deployment.environment.name"] == "tests"


def test_only_traces_are_sent(told: Told) -> None:
    assert told.paths == {"/v1/traces"}
    kinds = {Span.SPAN_KIND_SERVER, Span.SPAN_KIND_INTERNAL}
    assert {span.kind for span in told.spans} == kinds, "no other library is instrumented"


def test_nothing_that_was_asked_or_answered_is_sent(told: Told) -> None:
    written = [choice["text"] for choice in told.answers["two"].json["choices"]]
    assert all(len(text) > 10 for text in written)
    for secret in (*WORDS, *written):
        assert secret not in told.text
    assert told.log
    assert not [record for record in told.log if record.levelno >= logging.WARNING]


@contextmanager
def running(script: str, env: dict[str, str]) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A server that was changed."""
    port = free_port("127.0.0.1")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(port)], env=environment(env), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            until(lambda: is_up(f"http://127.0.0.1:{port}"))
            yield f"http://127.0.0.1:{port}", process
        finally:
            if process.poll() is None:
                process.kill()


def test_a_fault_is_told_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, prepare = BatchingEngine.submit, Service.prepare

    def submitting(self: BatchingEngine, prompt_ids: Any, params: Any, **named: Any) -> Handle:
        handle = submit(self, prompt_ids, params, **named)
        if params.max_new_tokens == 77:
            handle.fail(InternalError(PROMPT))
        return handle

    def preparing(self: Service, request: Any) -> Any:
        if request.parameters.max_new_tokens == 78:
            raise ValueError(PROMPT)
        return prepare(self, request)

    monkeypatch.setattr(BatchingEngine, "submit", submitting)
    monkeypatch.setattr(Service, "prepare", preparing)
    with collecting() as collector, serving(to_otlp(collector.url)) as server:
        for number, tokens in ((1, 77), (2, 78)):
            asked = {**BODY, "max_tokens": tokens}
            assert post(f"{server.url}/v1/completions", asked, **parent(number)).status == 500
    spans = collector.spans
    servers = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
    (sequence,) = [span for span in spans if span.kind == Span.SPAN_KIND_INTERNAL]
    assert [span.status.code for span in servers] == [Status.STATUS_CODE_ERROR] * 2
    assert sequence.status.code == Status.STATUS_CODE_ERROR
    assert attributes(sequence)["error.type"] == "internal_error"
    assert "gen_ai.response.finish_reasons" not in attributes(sequence)
    assert not [word for word in WORDS if word in collector.text]


def test_who_goes_leaves_a_span_that_says_so() -> None:
    with collecting() as collector, serving(to_otlp(collector.url)) as server:
        connection = opened(server.url, {**BODY, "max_tokens": 1500, "stream": True})
        assert connection.recv(64).startswith(b"HTTP/1.1 200")
        connection.close()
        until(lambda: metric(server.url, "llama_num_requests_running") == 0)
    sequence, whole = sorted(collector.spans, key=lambda span: span.kind == Span.SPAN_KIND_SERVER)
    assert sequence.parent_span_id == whole.span_id
    assert attributes(sequence)["gen_ai.response.finish_reasons"] == ["cancelled"]
    assert 0 < attributes(sequence)["gen_ai.usage.output_tokens"] < 1500


# --- Application Insights ---------------------------------------------------------------------------


def test_azure_gets_requests_and_their_sequences_and_nothing_else() -> None:
    with collecting() as collector, collecting() as statistics:
        env = {
            **to_azure(collector.url),
            "LLAMA_API_KEYS": KEY,
            "APPLICATIONINSIGHTS_STATS_CONNECTION_STRING": to_azure(statistics.url)[
                "APPLICATIONINSIGHTS_CONNECTION_STRING"
            ],
            "APPLICATIONINSIGHTS_STATS_SHORT_EXPORT_INTERVAL": "1",
            "OTEL_SERVICE_NAME": "blue",
        }
        with logged() as log, serving(env) as server:
            url, key = f"{server.url}/v1/completions", {"api_key": KEY}
            two = post(f"{url}?okapi", {**BODY, "n": 2}, x_request_id="mine", **parent(1), **key)
            assert post(url, {**BODY, "quokka": 1}, **parent(2), **key).status == 400
        assert not [record for record in log if record.levelno >= logging.WARNING]
        assert statistics.got == []
    assert collector.paths == {"/v2.1/track"}
    items = [item for _, body in collector.got for item in json.loads(body)]
    assert {item["data"]["baseType"] for item in items} == {"RequestData", "RemoteDependencyData"}
    assert {item["iKey"] for item in items} == {INSTRUMENTATION}
    assert {item["tags"]["ai.cloud.role"] for item in items} == {"blue"}, "the operator's name for it wins"
    whole, bad = (
        next(
            item
            for item in items
            if item["tags"]["ai.operation.id"] == trace(number) and item["data"]["baseType"] == "RequestData"
        )
        for number in (1, 2)
    )
    assert whole["tags"]["ai.operation.parentId"] == f"{1:016x}"
    said = whole["data"]["baseData"]
    assert (said["name"], said["responseCode"], said["success"]) == ("POST /v1/completions", "200", True)
    assert said["url"] == f"{server.url}/v1/completions"
    assert said["properties"] == {"llama.request_id": "mine"}, "not that somebody else counts the requests"
    assert (bad["data"]["baseData"]["responseCode"], bad["data"]["baseData"]["success"]) == ("400", False)
    sequences = [item for item in items if item["data"]["baseType"] == "RemoteDependencyData"]
    assert len(sequences) == 2
    for sequence in sequences:
        assert sequence["tags"]["ai.operation.id"] == trace(1)
        assert sequence["tags"]["ai.operation.parentId"] == said["id"]
        tokens = sequence["data"]["baseData"]["properties"]["gen_ai.usage.output_tokens"]
        assert tokens == "24"
    for secret in (*WORDS, *(choice["text"] for choice in two.json["choices"])):
        assert secret not in collector.text


# --- a collector that is not there ------------------------------------------------------------------


def test_a_collector_that_never_answers_harms_nobody() -> None:
    """A process: its end doesn't wait for the collector."""
    with deaf() as url, own_server("nano", env={**to_azure(url), **IMPATIENT}) as server:
        for _ in range(20):
            assert post(f"{server.url}/v1/completions", {**BODY, "max_tokens": 2}).status == 200
        log = ended(server)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    warned = [line for line in lines if line["level"] != "info"]
    assert {line["logger"] for line in warned} == {"llama_serving.server.tracing"}
    assert len(warned) <= 2, "one of the collector, one of the last spans"
    assert "Traceback" not in log


def test_a_collector_that_is_not_there_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with serving({**to_otlp(f"http://127.0.0.1:{free_port('127.0.0.1')}"), **IMPATIENT}) as server:
        for _ in range(20):
            assert post(f"{server.url}/v1/completions", {**BODY, "max_tokens": 2}).status == 200
    warned = [line for line in caplog.records if line.levelno >= logging.WARNING]
    assert {line.name for line in warned} == {"llama_serving.server.tracing"}
    assert len(warned) <= 2, "one of the collector, one of the last spans"


# --- starts that can't succeed ----------------------------------------------------------------------


def test_a_destination_that_is_not_said_is_a_sentence() -> None:
    asked = refused(LLAMA_TRACES="azure", APPINSIGHTS_INSTRUMENTATIONKEY=INSTRUMENTATION)
    assert "LLAMA_TRACES=azure needs APPLICATIONINSIGHTS_CONNECTION_STRING" in asked
    said = refused(LLAMA_TRACES="azure", APPLICATIONINSIGHTS_CONNECTION_STRING="InstrumentationKey=okapi")
    assert "APPLICATIONINSIGHTS_CONNECTION_STRING" in said
    assert "okapi" not in said
    assert "OTEL_EXPORTER_OTLP_" in refused(LLAMA_TRACES="otlp", OTEL_EXPORTER_OTLP_TIMEOUT="soon")
    said = refused(LLAMA_TRACES="otlp", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc" in said


WITHOUT = """
import sys
sys.modules[{missing!r}] = None
from llama_endpoints.cli.main import main
main(["serve", "--model", "nano", "--port", sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("destination", "missing"),
    [
        ("otlp", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
        ("azure", "azure.monitor.opentelemetry.exporter"),
        ("otlp", "opentelemetry.instrumentation.asgi"),
    ],
)
def test_without_the_extra_the_start_says_what_to_install(
    destination: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "llama_serving.server.tracing", raising=False)
    said = refused(**{**to_azure("http://127.0.0.1:9"), "LLAMA_TRACES": destination})
    assert "pip install 'llama-endpoints[traces]'" in said
    assert f"LLAMA_TRACES={destination}" in said


def test_without_traces_none_of_it_is_needed() -> None:
    with running(WITHOUT.format(missing="opentelemetry"), {"LLAMA_TRACES": "off"}) as (url, process):
        assert post(f"{url}/v1/completions", {**BODY, "max_tokens": 2}, **parent(1)).status == 200
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
