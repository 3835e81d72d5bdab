"""OpenTelemetry traces: a span for each request, and in it one for each sequence. LLAMA_TRACES alone imports this.

Nothing that a client wrote gets into a span but its request id and its trace's: what a span says is listed here.
"""

import logging
import os
import threading
import time
from importlib.metadata import version
from typing import Any, Final

from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Status, StatusCode
from opentelemetry.util.http import sanitize_method
from starlette.types import ASGIApp, Receive, Scope, Send

from llama_serving.contract.request import Request
from llama_serving.engine.handle import Handle
from llama_serving.errors import SetupError
from llama_serving.server.middleware import NAMED, PROBES, named
from llama_serving.service.output import SequenceOutput

_log = logging.getLogger(__name__)

NAME: Final = "llama-endpoints"
UNTRACED: Final = frozenset((*PROBES, "/metrics"))
SHOWN: Final = ("type", "method", "scheme", "http_version", "server")
PROPAGATED: Final = (b"traceparent", b"tracestate")
LAST_SPANS_S: Final = 3.0
"""How long the end of the process may wait for the collector."""
COMPLAINT_S: Final = 60.0
"""A collector that is away costs one line of the log in this time."""
CONNECTION: Final = "APPLICATIONINSIGHTS_CONNECTION_STRING"
REPORTS: Final = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
)
"""Azure's exporter reports on itself, and asks for settings from afar, unless these are true."""
_REAL: Final = "llama_serving.scope"


class Traces:
    """The spans of one server. It has a provider of its own: nothing else in the process is traced."""

    def __init__(self, exporter: SpanExporter) -> None:
        ours = Resource.create({"service.name": NAME, "service.version": version(NAME)})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()),  # (the operator's OTEL_SERVICE_NAME wins)
            shutdown_on_exit=False,  # that would wait without an end
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(NAME, version(NAME))

    @classmethod
    def to(cls, destination: str) -> "Traces":
        """Traces that go to `azure` or `otlp`.

        Raises:
            SetupError: the environment does not say where that is.
            ImportError: the extra `traces` is not installed.
        """
        _complain_sparingly()
        make, variables = {
            "azure": (_azure, CONNECTION),
            "otlp": (_otlp, "the variables OTEL_EXPORTER_OTLP_*"),
        }[destination]
        try:
            return cls(make())
        except ValueError as error:
            raise SetupError(
                f"LLAMA_TRACES={destination} can't be used: {error}. Correct {variables}."
            ) from error

    def around(self, gate: ASGIApp) -> ASGIApp:
        """The server with a span around each request, in the HTTP conventions that are stable."""
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")

        async def inside(shown: Scope, receive: Receive, send: Send) -> None:
            # (The gate lets no exception out: a span would quote it.)
            await gate(shown[_REAL], receive, send)

        traced: Any = OpenTelemetryMiddleware(
            inside,
            default_span_details=_details,
            tracer=self._tracer,  # with the middleware's own, Azure would believe that metrics are sent beside it
            meter_provider=NoOpMeterProvider(),
            exclude_spans=["receive", "send"],
        )

        async def outside(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in UNTRACED:
                await gate(scope, receive, send)
            else:
                await traced(_shown(scope), receive, send)

        return outside

    def generated(self, request: Request, sequence: SequenceOutput, model: str) -> None:
        """A sequence is over: a span in the conventions for generative AI, in the one of its request."""
        handle, operation = sequence.handle, "chat" if request.chat else "text_completion"
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": NAME,
            "gen_ai.request.model": model,
            "gen_ai.usage.input_tokens": sequence.prompt_tokens,
            "gen_ai.usage.output_tokens": handle.count,
        }
        if handle.first_at is not None:
            attributes["gen_ai.server.time_to_first_token"] = handle.first_at - handle.submitted_at
        if handle.error is not None:
            attributes["error.type"] = handle.error.code
        else:  # (what has no reason yet was cancelled just now)
            attributes["gen_ai.response.finish_reasons"] = [handle.finish_reason or "cancelled"]
        start, end = _wall_clock(handle)
        span = self._tracer.start_span(f"{operation} {model}", start_time=start, attributes=attributes)
        if handle.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Send the last spans, if the collector takes them soon."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(LAST_SPANS_S)
        if sending.is_alive():
            _log.warning("the last spans were not taken within %g s", LAST_SPANS_S)


def _shown(scope: Scope) -> Scope:
    """What the middleware may see of a request: not its query, its headers, its client, nor a path of its own."""
    headers = [(name, value) for name, value in scope["headers"] if name in PROPAGATED]
    path = scope["path"] if scope["path"] in NAMED else ""
    return {name: scope[name] for name in SHOWN} | {"path": path, "headers": headers, _REAL: scope}


def _details(shown: Scope) -> tuple[str, dict[str, Any]]:
    """A request's span: its name, and what the middleware doesn't know or gets wrong."""
    method, path = sanitize_method(shown["method"]), shown["path"]
    attributes = {"llama.request_id": named(shown[_REAL])}
    if shown["server"]:
        attributes["server.address"] = shown["server"][0]  # (with the port in it otherwise)
    if path:
        attributes["http.route"] = path
    return f"{'HTTP' if method == '_OTHER' else method} {path}".strip(), attributes


def _wall_clock(handle: Handle) -> tuple[int, int]:
    """A sequence's beginning and end in the nanoseconds that spans want."""
    difference = time.time_ns() - time.monotonic_ns()
    end = handle.last_at if handle.count else time.monotonic()
    return round(handle.submitted_at * 1e9) + difference, round(end * 1e9) + difference


def _otlp() -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(name) or "http/protobuf"
        if protocol != "http/protobuf":
            raise SetupError(f"{name}={protocol} can't be used: traces are sent by http/protobuf. Unset it.")
    return OTLPSpanExporter()


def _azure() -> SpanExporter:
    """The distribution's exporter without its configure_azure_monitor().

    That makes itself the whole process's: providers, logs and metrics too, and the instrumentation of every library
    that it knows; and it takes no provider of ours.
    """
    connection = os.environ.get(CONNECTION, "").strip()
    if not connection:
        raise SetupError(
            f"LLAMA_TRACES=azure needs {CONNECTION}. Set it to your Application Insights resource's, or unset LLAMA_TRACES."
        )
    os.environ.update(dict.fromkeys(REPORTS, "true"))
    from azure.monitor.opentelemetry.exporter import AzureMonitorTraceExporter

    exporter: SpanExporter = AzureMonitorTraceExporter(
        connection_string=connection, disable_offline_storage=True
    )
    return exporter


def _complain_sparingly() -> None:
    """Take the exporters' log, which has a line and a traceback for every batch that fails."""
    handler = _Sparing(logging.WARNING)
    for name in ("opentelemetry", "azure"):
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = [handler], False


class _Sparing(logging.Handler):
    """Passes one line on in a while: of what it quotes the numbers alone, and no traceback."""

    _next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Pass it on, or not."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + COMPLAINT_S
        cause = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        _log.warning("traces: %s %s (told once in %g s)", _numbers_alone(record), cause, COMPLAINT_S)


def _numbers_alone(record: logging.LogRecord) -> str:
    given = record.args if isinstance(record.args, tuple) else ()
    try:
        return str(record.msg) % tuple(value if isinstance(value, int | float) else "…" for value in given)
    except (TypeError, ValueError):  # it wanted something else
        return str(record.msg)
