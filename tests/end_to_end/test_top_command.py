"""`llama-endpoints top` in a real terminal and in pipes, with a real server."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llama_endpoints.devtools.servers import console_script, free_port
from tests.conftest import post
from tests.support import command
from tests.support.calls import PATIENCE_S, get, metric, opened, until
from tests.support.in_process import LocalServer, serving
from tests.support.terminal import terminal

COMMAND = console_script("llama-endpoints")
KEYS = [{"name": "team-a", "key": "sesame"}, {"name": "nightly", "key": "mellon"}]
KEY = {"LLAMA_TOP_KEY": "sesame"}
SOON = ("--interval", "0.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server with two keys, of which one has been used."""
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.write_text(json.dumps(KEYS))
    with serving({"LLAMA_NAMED_KEYS": str(keys)}) as started:
        body = {"prompt": "def f(", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
        assert post(f"{started.url}/v1/completions", body, Authorization="Bearer sesame").status == 200
        recorded = 'llama_key_requests_total{key="team-a"} 1.0'
        until(lambda: recorded in get(f"{started.url}/metrics", Authorization="Bearer sesame").text)
        yield started


@contextmanager
def piped(*arguments: str, **env: str) -> Iterator["subprocess.Popen[str]"]:
    """Run the command with pipes; it is killed when the block ends."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    process = subprocess.Popen(
        [COMMAND, "top", *arguments], env={**kept, **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_with(process: "subprocess.Popen[str]", text: str) -> str:
    """Return the next line that holds a text. (A test that waits in vain is ended by its time limit.)"""
    assert process.stdout is not None
    return next(line for line in process.stdout if text in line)


# --- once ------------------------------------------------------------------------------------------


def test_once_prints_one_table(server: LocalServer) -> None:
    done = command.run("top", server.url, "--once", *SOON, env=KEY)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["server", server.url]
    assert lines[1].startswith("model     nano, batching (")
    assert lines[2] == "requests  0 running, 0 waiting, 0/s answered"
    header, row = lines[-2:]
    assert header.split() == ["KEY", "REQUESTS/S", "ERRORS/S", "TOKENS/S", "REQUESTS", "TOKENS"]
    assert row.split() == ["team-a", "0", "0", "0", "1", "9"]


def test_once_as_json_is_one_object(server: LocalServer) -> None:
    done = command.run("top", f"{server.url}/v1/", "--once", "--json", *SOON, env=KEY)
    seen = json.loads(done.stdout)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert (seen["url"], seen["state"], seen["model"], seen["running"]) == (server.url, "ready", "nano", 0)
    assert [(use["name"], use["requests"], use["tokens"]) for use in seen["keys"]] == [("team-a", 1, 9)]
    assert seen["generated_tokens_per_second"] == 0, "two looks: rates are known"


def test_a_server_in_front_of_another_tells_of_its_cache() -> None:
    """As one does whose engine is vLLM."""
    with serving() as behind, serving({"LLAMA_ENGINE": "upstream", "LLAMA_UPSTREAM_URL": behind.url}) as front:
        body = {"prompt": "def f(", "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with opened(behind.url, body):
            until(lambda: metric(front.url, "llama_kv_cache_usage_ratio") > 0)
            done = command.run("top", front.url, "--once", *SOON)
    assert done.returncode == 0, done.stderr
    assert "nano, upstream (" in done.stdout
    assert "% of the KV cache in use" in done.stdout


class Foreign(BaseHTTPRequestHandler):
    """Another server: a status and a text at each path."""

    answers = {  # noqa: RUF012
        "/html/metrics": (200, b"<html>"),
        "/vllm/metrics": (200, b'vllm:num_requests_running{engine="0"} 0.0\n'),
        "/none/metrics": (404, b"no such page"),
        "/moved/metrics": (302, b""),
        "/broken/metrics": (502, b"bad gateway"),
        "/endless/metrics": (200, b"# a comment\n" * (1 << 20)),
    }

    def do_GET(self) -> None:
        status, text = self.answers[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with suppress(ConnectionError):  # (the endless one is not read to its end)
            self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    """The address of another server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{started.server_port}"
        finally:
            started.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("html", "is no server of `llama-endpoints serve`: what it has at /metrics is no text of Prometheus"),
        ("vllm", "is no server of `llama-endpoints serve`: it is vLLM itself"),
        ("none", "is no server of `llama-endpoints serve`: /metrics answers with status 404"),
        ("moved", "is no server of `llama-endpoints serve`: /metrics answers with status 302"),
        ("endless", "is no server of `llama-endpoints serve`: what it has at /metrics has no end"),
        ("broken", "answers with status 502. Start a server"),
    ],
)
def test_what_is_no_server_of_ours_is_said(path: str, said: str, foreign: str) -> None:
    done = command.run("top", f"{foreign}/{path}", "--once")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "needs a key. Put one of its keys into the variable LLAMA_TOP_KEY."),
        ({"LLAMA_TOP_KEY": "wrong"}, "needs a key. Put one of its keys into the variable LLAMA_TOP_KEY."),
        ({"LLAMA_TOP_KEY": "two words"}, "LLAMA_TOP_KEY holds no key"),
    ],
)
@pytest.mark.parametrize("flags", [("--once",), ("--json",), ()])
def test_a_key_that_is_wrong_ends_it(
    env: dict[str, str], said: str, flags: Sequence[str], server: LocalServer
) -> None:
    done = command.run("top", server.url, *flags, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "wrong" not in done.stderr


def test_a_server_that_is_away_is_an_error_of_once() -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    done = command.run("top", url, "--once")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{url} does not answer: " in done.stderr


@pytest.mark.parametrize("url", ["localhost:8453", "ftp://x", "http://me:hush@x", "http://x?a=b", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    done = command.run("top", url, "--once")
    assert (done.returncode, done.stdout) == (2, "")
    assert "URL must be an address such as http://127.0.0.1:8453" in done.stderr
    assert "hush" not in done.stderr


# --- again and again -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_pipe_gets_a_line_for_each_look_until_it_is_ended(
    number: signal.Signals, server: LocalServer
) -> None:
    with piped(server.url, *SOON, **KEY) as process:
        assert line_with(process, "").split()[:3] == ["TIME", "STATE", "RUNNING"]
        first, second = line_with(process, " ready "), line_with(process, " ready ")
        assert first.split()[4] == "-", "no rate is known yet"
        assert second.split()[4] == "0"
        process.send_signal(number)
        assert process.communicate(timeout=PATIENCE_S)[1] == ""
        assert process.returncode == {signal.SIGINT: 0, signal.SIGTERM: 128 + signal.SIGTERM}[number]


def test_who_reads_no_more_ends_it(server: LocalServer) -> None:
    with piped(server.url, "--json", *SOON, **KEY) as process:
        assert json.loads(line_with(process, ""))["state"] == "ready"
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_server_that_goes_and_comes_back_is_seen_again() -> None:
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}"
    with piped(url, *SOON) as process:
        assert f"{url} does not answer: " in line_with(process, "does not answer")
        for _ in range(2):
            with serving(port=port):
                line_with(process, " ready ")
            line_with(process, "does not answer")


# --- in a terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_a_key_ends_it_and_leaves_the_terminal_as_it_was(key: str, server: LocalServer, tmp_path: Path) -> None:
    script = 'before=$(stty -g); "$0" "$@"; echo "code $?"; [ "$before" = "$(stty -g)" ] && echo as before'
    command = ("sh", "-c", f"trap : INT; {script}", COMMAND, "top", server.url, "--interval", "3600")
    with terminal(*command, env=KEY) as screen:
        shown = screen.read_until("q ends")
        screen.type("xyzzy")
        screen.type(key)
        assert "xyzzy" not in screen.read_until("code 0")
        screen.read_until("as before")
    assert "team-a" in shown
    assert "nano, batching" in shown
    assert screen.raw.count("\x1b[?1049h") == screen.raw.count("\x1b[?1049l") == 1
    assert screen.raw.count("\x1b[?25l") == screen.raw.count("\x1b[?25h")


def test_an_error_is_said_before_the_screen_is_taken(server: LocalServer) -> None:
    with terminal(COMMAND, "top", server.url) as screen:
        assert screen.ended() == 2
    assert "needs a key" in screen.shown
    assert "\x1b[?1049h" not in screen.raw


def test_a_dumb_terminal_gets_lines(server: LocalServer) -> None:
    with terminal(COMMAND, "top", server.url, *SOON, env={**KEY, "TERM": "dumb"}) as screen:
        screen.read_until(" ready ")
        screen.read_until(" ready ")
        screen.type("\x03")
        assert screen.ended() == 0
    assert "\x1b" not in screen.raw


def test_a_screen_stays_when_the_server_goes() -> None:
    with serving() as server, terminal(COMMAND, "top", server.url, *SOON, columns=60) as screen:
        screen.read_until("nano, batching")
        server.signal(signal.SIGTERM)
        shown = screen.read_until("Trying again every")
        shown += screen.read_until("q ends")
        screen.type("q")
        assert screen.ended() == 0
    assert "nano, batching" in shown[shown.index("does not answer") :], "what was seen last is still there"
