"""Azure ML's data collector on this machine, as a deployment's sidecar: it records, or is out of order."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COLLECTIONS = ("model_inputs", "model_outputs")


@dataclass
class Sidecar:
    """What was posted to it, as its path, its headers and its rows."""

    port: int
    status: int = 200
    got: list[tuple[str, dict[str, str], list[dict[str, Any]]]] = field(default_factory=list)
    hung: threading.Event = field(default_factory=threading.Event)

    def rows(self, collection: str) -> dict[str, list[dict[str, Any]]]:
        """The rows of a collection by the id that correlates them."""
        kind = f"azureml.inference.{collection}"
        return {headers["ce-x-request-id"]: rows for _, headers, rows in self.got if headers["ce-type"] == kind}

    @property
    def text(self) -> str:
        return json.dumps(self.got)


@contextmanager
def sidecar(status: int = 200, *, hangs: bool = False) -> Iterator[Sidecar]:
    """A sidecar that answers with a status; one that `hangs` reads a request and answers once the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, rows))
            if hangs:
                here.hung.wait()
            self.send_response(here.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        here = Sidecar(server.server_port, status)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield here
        finally:
            here.hung.set()
            server.shutdown()


def deployed(folder: Path, port: int, *, percent: int = 100, **more: Any) -> dict[str, str]:
    """The environment that Azure gives a container whose deployment collects both sides."""
    path = folder / "mdc-config.json"
    collections = {name: {"enabled": True, "sampleRatePercentage": percent} for name in COLLECTIONS}
    path.write_text(json.dumps({"collections": collections, "runMode": "cloud", **more}), encoding="utf-8")
    return {
        "AZUREML_MDC_CONFIG_PATH": str(path),
        "AZUREML_MDC_HOST": "127.0.0.1",
        "AZUREML_MDC_PORT": str(port),
    }
