"""OpenTelemetry events, by the conventions for generative AI: one `gen_ai.client.inference.operation.details` for each input.

https://github.com/open-telemetry/semantic-conventions/blob/v1.37.0/docs/gen-ai/gen-ai-events.md
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http import _log_exporter
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.sdk._logs import LogData, LogRecord
from opentelemetry.sdk._logs.export import LogExportResult
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import TraceFlags

from llama_serving.contract.json_lines import json_line
from llama_serving.errors import SetupError
from llama_serving.service.collection.record import CollectedInput, CollectedRequest, CollectedText, Turn
from llama_serving.service.collection.sinks.sink import SinkError

NAME: Final = "llama-endpoints"
EVENT: Final = "gen_ai.client.inference.operation.details"
_PARAMETERS: Final = {
    "max_new_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "seed": "gen_ai.request.seed",
    "num_return_sequences": "gen_ai.request.choice.count",
}


class OtlpEvents:
    """Sends events to an OTLP collector by HTTP."""

    def __init__(self, exporter: OTLPLogExporter, destination: str) -> None:
        logging.getLogger(
            _log_exporter.__name__
        ).disabled = True  # (failures are counted and said by the collector)
        self._exporter, self._destination = exporter, destination
        self._scope = InstrumentationScope(NAME, version(NAME))
        ours = Resource.create({"service.name": NAME, "service.version": version(NAME)})
        self._resource = ours.merge(OTELResourceDetector().detect())  # (the operator's OTEL_SERVICE_NAME wins)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "OtlpEvents":
        """Return the destination that OpenTelemetry's variables name.

        Raises:
            SetupError: a variable is invalid.
        """
        for name in ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            protocol = environment.get(name) or "http/protobuf"
            if protocol != "http/protobuf":
                raise SetupError(
                    f"{name}={protocol} can't be used: events are sent by http/protobuf. Unset it."
                )
        try:
            exporter = OTLPLogExporter()
        except ValueError as error:
            raise SetupError(
                f"LLAMA_COLLECT=otlp can't be used: {error}. Correct the variables OTEL_EXPORTER_OTLP_*."
            ) from error
        return cls(exporter, "an OpenTelemetry collector")

    @property
    def destination(self) -> str:
        """What the log says of it."""
        return self._destination

    def write(self, request: CollectedRequest) -> None:
        """Send the events of a request.

        Raises:
            SinkError: the collector is away, or refuses them.
        """
        records = [LogData(self._record(request, attributes), self._scope) for attributes in events(request)]
        try:
            result = self._exporter.export(records)
        except OSError as error:  # (requests' errors are OSErrors; their messages have the address)
            raise SinkError(type(error).__name__) from error
        if result is not LogExportResult.SUCCESS:
            raise SinkError("it refused an event")

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _record(self, request: CollectedRequest, attributes: Mapping[str, Any]) -> LogRecord:
        return LogRecord(
            timestamp=round(request.seconds * 1e3) * 10**6,
            observed_timestamp=time.time_ns(),
            trace_id=0,
            span_id=0,
            trace_flags=TraceFlags.get_default(),
            severity_number=SeverityNumber.INFO,
            attributes=attributes,
            resource=self._resource,
        )


def events(request: CollectedRequest) -> Iterator[dict[str, Any]]:
    """Yield the attributes of each event. Messages are JSON: attributes cannot hold objects everywhere."""
    for number, (given, sequences) in enumerate(zip(request.inputs, request.outputs, strict=True)):
        attributes = {
            "event.name": EVENT,
            "gen_ai.operation.name": "chat" if given.role else "text_completion",
            "gen_ai.provider.name": NAME,
            "gen_ai.request.model": request.model,
            "gen_ai.response.finish_reasons": [one.finish_reason or "error" for one in sequences],
            "gen_ai.usage.input_tokens": sum(one.prompt_tokens for one in sequences),
            "gen_ai.usage.output_tokens": sum(one.completion_tokens for one in sequences),
            "gen_ai.input.messages": json_line(_input_messages(given)),
            "gen_ai.output.messages": json_line(_output_messages(sequences)),
            "llama.request_id": request.request_id,
            "llama.input": number,
            "llama.end": request.end,
            "llama.blocked": request.blocked,
        }
        named = {_PARAMETERS[name]: value for name, value in request.parameters.items() if name in _PARAMETERS}
        yield attributes | {name: value for name, value in named.items() if value is not None}


def _input_messages(given: CollectedInput) -> list[dict[str, Any]]:
    extra = (Turn("user", text) for text in given.extra)
    turns = (*given.earlier, *extra, Turn(given.role or "user", given.prompt))
    return [{"role": one.role, "parts": [{"type": "text", "content": one.content}]} for one in turns]


def _output_messages(sequences: Sequence[CollectedText]) -> list[dict[str, Any]]:
    return [
        {
            "role": "assistant",
            "parts": [{"type": "text", "content": one.completion}],
            "finish_reason": one.finish_reason or "error",
        }
        for one in sequences
    ]
