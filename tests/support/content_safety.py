"""Azure AI Content Safety on loopback: its two operations as their references have them, and what can go wrong."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "0123456789abcdef"
TOKEN = "a-token-of-the-machine"
CATEGORIES = ("Hate", "SelfHarm", "Sexual", "Violence")


class ContentSafety:
    """The state of one service.

    Attributes:
        evil: texts with this have the severity 4 for Hate.
        copied: code with this is protected material.
        fault: `hang`, `late`, `500`, `429`, `cut`, `not json`, `no category`, `odd severity` or `redirect`; None answers.
        seen: what was sent: path and body.
        tokens: what was asked of the machine's identity endpoint.
    """

    def __init__(self) -> None:
        self.evil, self.copied = "EVIL", "PROTECTED"
        self.fault: str | None = None
        self.after = 0
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.tokens: list[dict[str, str]] = []
        self.released = threading.Event()
        self.url = ""

    def texts(self) -> list[str]:
        return [body.get("text", body.get("code", "")) for _, body in list(self.seen)]

    def faulty(self) -> str | None:
        """Return the fault of the newest request: the first `after` ones are answered."""
        return self.fault if len(self.seen) > self.after else None

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path.endswith(":detectProtectedMaterialForCode"):
            found = self.copied in body["code"]
            cited = [{"license": "GPL-3.0", "sourceUrls": ["https://example.org/copied.py"]}] if found else []
            return {"protectedMaterialAnalysis": {"detected": found, "codeCitations": cited}}
        hate = 4 if self.evil in body["text"] else 0
        asked = body.get("categories") or CATEGORIES
        return {
            "blocklistsMatch": [
                {"blocklistName": name, "blocklistItemId": "1", "blocklistItemText": name}
                for name in body.get("blocklistNames", ())
                if name in body["text"]
            ],
            "categoriesAnalysis": [
                {"category": one, "severity": hate if one == "Hate" else 0} for one in asked
            ],
        }


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    state: ContentSafety


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """Give a token, as a machine's identity endpoint does."""
        state = self.server.state
        state.tokens.append({name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()})
        until = str(int(time.time()) + 86_400)
        self._send(200, {"access_token": TOKEN, "expires_on": until, "resource": "x", "token_type": "Bearer"})

    def do_POST(self) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer()

    def _answer(self) -> None:
        state, parts = self.server.state, urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        by_token = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if self.headers["Ocp-Apim-Subscription-Key"] != KEY and not by_token:
            return self._send(401, {"error": {"code": "401", "message": "Access denied"}})
        text = body.get("text", body.get("code"))
        if not parse_qs(parts.query).get("api-version") or not isinstance(text, str) or len(text) > 10_000:
            return self._send(400, {"error": {"code": "InvalidRequestBody", "message": "invalid"}})
        state.seen.append((parts.path, body))
        answer = state.answer(parts.path, body)
        return self._send(200, answer) if state.faulty() is None else self._fail(state.faulty(), text, answer)

    def _fail(self, fault: str | None, text: str, answer: dict[str, Any]) -> None:
        state = self.server.state
        if fault == "hang":
            state.released.wait()
            self.close_connection = True
        elif fault == "late":
            time.sleep(0.5)
            self._send(200, answer)
        elif fault in ("500", "429"):
            self._send(int(fault), {"error": {"code": "InternalError", "message": text}})
        elif fault == "redirect":
            self._send(307, {}, Location=f"{state.url}/elsewhere")
        elif fault == "no category":
            self._send(
                200, {"blocklistsMatch": [], "categoriesAnalysis": answer.get("categoriesAnalysis", [])[1:]}
            )
        elif fault == "odd severity":
            self._send(200, {"categoriesAnalysis": [{"category": one, "severity": True} for one in CATEGORIES]})
        else:
            self._send(200, b"<html>" if fault == "not json" else answer, cut=fault == "cut")

    def _send(self, status: int, body: object, *, cut: bool = False, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(raw) + cut),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)
        self.close_connection = cut

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def content_safety() -> Iterator[ContentSafety]:
    """Run the service."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        state = server.state = ContentSafety()
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        serving.start()
        try:
            yield state
        finally:
            state.released.set()
            server.shutdown()
            serving.join()
