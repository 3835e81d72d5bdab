"""A collector of traces on this machine, in OTLP's protobuf and in Azure's lines; and one that never answers."""

import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector:
    """What was sent to it, bodies unpacked."""

    url: str
    got: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def paths(self) -> set[str]:
        return {path for path, _ in self.got}

    @property
    def requests(self) -> list[ExportTraceServiceRequest]:
        """OTLP's, decoded."""
        return [ExportTraceServiceRequest.FromString(body) for _, body in self.got]

    @property
    def spans(self) -> list[Span]:
        """OTLP's."""
        resources = [one for request in self.requests for one in request.resource_spans]
        return [span for one in resources for scope in one.scope_spans for span in scope.spans]

    @property
    def text(self) -> str:
        return "\n".join(body.decode("utf-8", "replace") for _, body in self.got)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that takes everything, in either protocol."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.got.append((self.path, body))
            answer = b""
            if "track" in self.path:
                items = len(json.loads(body))
                answer = json.dumps({"itemsReceived": items, "itemsAccepted": items, "errors": []}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield collector
        server.shutdown()


@contextmanager
def deaf() -> Iterator[str]:
    """A collector that is connected to and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(64)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def attributes(of: Any) -> dict[str, Any]:
    """Its attributes as plain values."""

    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        if kind == "array_value":
            return [plain(item) for item in value.array_value.values]
        return getattr(value, kind)

    return {pair.key: plain(pair.value) for pair in of.attributes}
