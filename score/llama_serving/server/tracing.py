"""OpenTelemetry traces: a span for each request, and in it one for each sequence. Only imported if LLAMA_TRACES is on.

Of a client's input, spans have only the ids of request and trace; this file lists all of their attributes.
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
from llama_serving.server.middleware import NAMED, PROBES, request_id_of
from llama_serving.service.output import SequenceOutput

_log = logging.getLogger(__name__)

NAME: Final = "llama-endpoints"
UNTRACED: Final = frozenset((*PROBES, "/metrics"))
SHOWN: Final = ("type", "method", "scheme", "http_version", "server")
PROPAGATED: Final = (b"traceparent", b"tracestate")
LAST_SPANS_S: Final = 3.0
"""Seconds that the end of the process may wait for the collector."""
COMPLAINT_S: Final = 60.0
"""Seconds between two log lines about a collector that is away."""
CONNECTION: Final = "APPLICATIONINSIGHTS_CONNECTION_STRING"
REPORTS: Final = (
    "APPLICATIONINSIGHTS_STATSBEAT_DISABLED_ALL",
    "APPLICATIONINSIGHTS_SDKSTATS_DISABLED",
    "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED",
    "APPLICATIONINSIGHTS_OPENTELEMETRY_RESOURCE_METRIC_DISABLED",
)
"""Azure's exporter reports on itself, and fetches remote settings, unless these are true."""
_REAL: Final = "llama_serving.scope"


class Traces:
    """The spans of one server. It has its own provider, so nothing else in the process is traced."""

    def __init__(self, exporter: SpanExporter) -> None:
        ours = Resource.create({"service.name": NAME, "service.version": version(NAME)})
        self._provider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()),  # (the operator's OTEL_SERVICE_NAME wins)
            shutdown_on_exit=False,  # that would wait without a limit
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(NAME, version(NAME))

    @classmethod
    def to(cls, destination: str) -> "Traces":
        """Return traces to `azure` or `otlp`.

        Raises:
            SetupError: the environment lacks the address, or it is invalid.
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

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return the server with a span around each request, by the stable HTTP conventions."""
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http")

        async def inside(shown: Scope, receive: Receive, send: Send) -> None:
            # (The middleware lets no exception out: a span would quote it.)
            await app(shown[_REAL], receive, send)

        traced: Any = OpenTelemetryMiddleware(
            inside,
            default_span_details=_details,
            tracer=self._tracer,  # with the middleware's own, Azure would expect metrics of the same requests
            meter_provider=NoOpMeterProvider(),
            exclude_spans=["receive", "send"],
        )

        async def outside(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["path"] in UNTRACED:
                await app(scope, receive, send)
            else:
                await traced(_shown(scope), receive, send)

        return outside

    def generated(self, request: Request, sequence: SequenceOutput, model: str) -> None:
        """Write the span of a finished sequence, by the conventions for generative AI, inside its request's span."""
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
        else:  # (a sequence without a reason was just cancelled)
            attributes["gen_ai.response.finish_reasons"] = [sequence.finish_reason or "cancelled"]
        start, end = _wall_clock(handle)
        span = self._tracer.start_span(f"{operation} {model}", start_time=start, attributes=attributes)
        if handle.error is not None:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)

    def close(self) -> None:
        """Send the last spans, if the collector accepts them soon."""
        sending = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        sending.start()
        sending.join(LAST_SPANS_S)
        if sending.is_alive():
            _log.warning("the last spans were not accepted within %g s", LAST_SPANS_S)


def _shown(scope: Scope) -> Scope:
    """Return the part of a request that the middleware may see: no query, headers, client or unknown path."""
    headers = [(name, value) for name, value in scope["headers"] if name in PROPAGATED]
    path = scope["path"] if scope["path"] in NAMED else ""
    return {name: scope[name] for name in SHOWN} | {"path": path, "headers": headers, _REAL: scope}


def _details(shown: Scope) -> tuple[str, dict[str, Any]]:
    """Return the name of a request's span, and attributes that the middleware lacks or gets wrong."""
    method, path = sanitize_method(shown["method"]), shown["path"]
    attributes = {"llama.request_id": request_id_of(shown[_REAL])}
    if shown["server"]:
        attributes["server.address"] = shown["server"][0]  # (otherwise it includes the port)
    if path:
        attributes["http.route"] = path
    return f"{'HTTP' if method == '_OTHER' else method} {path}".strip(), attributes


def _wall_clock(handle: Handle) -> tuple[int, int]:
    """Return a sequence's start and end in nanoseconds."""
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
    """Return the exporter of Azure's distribution, without its configure_azure_monitor().

    That configures the whole process: providers, logs, metrics and the instrumentation of every library that it knows. It
    does not accept our provider.
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
    """Replace the exporters' log, which has a line and a traceback for every failed batch."""
    handler = _Sparing(logging.WARNING)
    for name in ("opentelemetry", "azure"):
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = [handler], False


class _Sparing(logging.Handler):
    """Passes one line on per interval: only its numbers, and no traceback."""

    _next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Pass the record on, or drop it."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + COMPLAINT_S
        cause = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
        _log.warning("traces: %s %s (reported once in %g s)", _numbers_alone(record), cause, COMPLAINT_S)


def _numbers_alone(record: logging.LogRecord) -> str:
    given = record.args if isinstance(record.args, tuple) else ()
    try:
        return str(record.msg) % tuple(value if isinstance(value, int | float) else "…" for value in given)
    except (TypeError, ValueError):  # the arguments do not fit the message
        return str(record.msg)
