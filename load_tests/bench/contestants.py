"""The contestants: our engines and hosts, and installed peers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from llama_endpoints.devtools.servers import LOOPBACK, azmlinfsrv, free_port, mlflow_serve, own_server
from llama_serving.engine.batching.factory import start
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.settings import Settings
from load_tests.bench.measure import NO_GUESSES, PLAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from llama_endpoints.devtools.servers import RunningServer
ROOT: Final = Path(__file__).resolve().parents[2]
PEERS: Final = ROOT / "build" / "peers"
ENGINE: Final = "our engine"
START_S: Final = 420
"""Seconds until a server is ready; on a GPU vLLM compiles for minutes."""
ANSWER_S: Final = 600


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something that answers prompts.

    Attributes:
        name: its name in the table.
        ours: whether it belongs to this project.
        serve: context manager that runs it, and yields the function to query it.
    """

    name: str
    ours: bool
    serve: Callable[[], AbstractContextManager[Callable[[str, int], int]]]


def our_engine(checkpoint: Path) -> Contestant:
    """Return the bare engine, in this process: nothing else here may use torch, see `engine/batching`."""
    return Contestant(ENGINE, ours=True, serve=lambda: _engine(checkpoint))


def our_carriers(model: Path) -> list[Contestant]:
    """Return our own server, and Azure's and MLflow's stock servers with our model."""
    return [
        Contestant("our server", ours=True, serve=lambda: _own(model, stream=False)),
        Contestant("our server, streaming", ours=True, serve=lambda: _own(model, stream=True)),
        Contestant("azmlinfsrv, ours", ours=True, serve=lambda: _score(model)),
        Contestant("mlflow models serve, ours", ours=True, serve=lambda: _invocations(model)),
    ]


def peers(checkpoint: Path) -> list[Contestant]:
    """Return the peers installed by `make peers`."""
    return [
        Contestant("mlflow, transformers flavour", ours=False, serve=lambda: _stock_mlflow(checkpoint)),
        Contestant(
            "transformers serve, continuous batching", ours=False, serve=lambda: _transformers_serve(checkpoint)
        ),
    ]


def at(name: str, url: str) -> Contestant:
    """Return an OpenAI-compatible server run by someone else, such as llama.cpp's."""

    @contextmanager
    def serve() -> Iterator[Callable[[str, int], int]]:
        yield completions(url)

    return Contestant(name, ours=False, serve=serve)


def missing() -> str | None:
    """Return why the peers cannot be started; None if they can."""
    return None if (PEERS / "bin" / "transformers").exists() else "not installed (make peers)"


@contextmanager
def _engine(checkpoint: Path) -> Iterator[Callable[[str, int], int]]:
    tokenizer = Tokenizer.from_folder(checkpoint)
    engine = start(checkpoint, dtype="bfloat16", context=2048, settings=Settings(speculative_tokens=NO_GUESSES))

    def ask(prompt: str, new_tokens: int) -> int:
        handle = engine.submit([1, *tokenizer.encode(prompt)], SamplingParams(max_new_tokens=new_tokens))
        return sum(1 for _ in handle)

    try:
        yield ask
    finally:
        engine.close()


@contextmanager
def _own(model: Path, *, stream: bool) -> Iterator[Callable[[str, int], int]]:
    with own_server(model, env=PLAIN) as server:
        yield streamed(f"{server.url}/v1") if stream else completions(f"{server.url}/v1")


@contextmanager
def _score(model: Path) -> Iterator[Callable[[str, int], int]]:
    with azmlinfsrv(model, score=ROOT / "score", env=PLAIN, threads=70) as server:
        yield _ours(server, "/score", lambda data: {"input_data": data})


@contextmanager
def _invocations(model: Path) -> Iterator[Callable[[str, int], int]]:
    with mlflow_serve(model, env=PLAIN) as server:
        yield _ours(server, "/invocations", lambda data: {"inputs": data})


def _ours(server: RunningServer, path: str, body: Callable[[Any], Any]) -> Callable[[str, int], int]:
    def ask(prompt: str, new_tokens: int) -> int:
        parameters = {"max_new_tokens": new_tokens, "do_sample": False, "ignore_eos": True, "details": True}
        answer = _post(server.url + path, body({"input_string": [prompt], "parameters": parameters}))
        (row,) = answer["predictions"] if isinstance(answer, dict) else answer
        tokens: int = row["details"][0]["usage"]["completion_tokens"]
        return tokens

    return ask


@contextmanager
def _stock_mlflow(checkpoint: Path) -> Iterator[Callable[[str, int], int]]:
    model, port = PEERS / "stock-model", free_port(LOOPBACK)
    if not model.exists():
        script = Path(__file__).with_name("stock_mlflow.py")
        write = [PEERS / "bin" / "python", script, checkpoint, model]
        subprocess.run(write, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    command = ["mlflow", "models", "serve", "--model-uri", str(model), "--env-manager", "local",
               "--host", LOOPBACK, "--port", str(port)]  # fmt: skip
    with _peer(command, f"http://{LOOPBACK}:{port}/ping"):

        def ask(prompt: str, new_tokens: int) -> int:
            params = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
            _post(f"http://{LOOPBACK}:{port}/invocations", {"inputs": [prompt], "params": params})
            return new_tokens

        yield ask


@contextmanager
def _transformers_serve(checkpoint: Path) -> Iterator[Callable[[str, int], int]]:
    port = free_port(LOOPBACK)
    command = ["transformers", "serve", str(checkpoint), "--continuous-batching", "--device", "cpu",
               "--dtype", "bfloat16", "--host", LOOPBACK, "--port", str(port)]  # fmt: skip
    with _peer(command, f"http://{LOOPBACK}:{port}/health"):
        yield completions(f"http://{LOOPBACK}:{port}/v1", model=str(checkpoint))


def completions(url: str, model: str = "any") -> Callable[[str, int], int]:
    """Return a function that requests whole completions."""

    def ask(prompt: str, new_tokens: int) -> int:
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        try:
            answer = _post(f"{url}/completions", body)
        except urllib.error.HTTPError as error:
            if error.code not in (400, 422):
                raise
            del body["ignore_eos"]  # not every server knows it
            answer = _post(f"{url}/completions", body)
        tokens: int = answer["usage"]["completion_tokens"]
        return tokens

    return ask


def _exchange(url: str, path: str, body: Any) -> bytes:
    """Return the answer's bytes. Parsing each line would take half of a small machine's CPU time."""
    place, encoded = urlsplit(url), json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(encoded)}\r\n\r\n"
    )
    received = bytearray()
    with socket.create_connection((place.hostname or "", place.port or 80), timeout=ANSWER_S) as connection:
        connection.sendall(head.encode() + encoded)
        while part := connection.recv(1 << 16):
            received += part
    return bytes(received)


def streamed(url: str) -> Callable[[str, int], int]:
    """Return a function that requests streamed completions."""

    def ask(prompt: str, new_tokens: int) -> int:
        body = {"model": "any", "prompt": prompt, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
                "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
        events = _exchange(url, f"{urlsplit(url).path}/completions", body).split(b"data: ")
        usage, _ = json.JSONDecoder().raw_decode(events[-2].decode())  # a chunk's frame follows it
        tokens: int = usage["usage"]["completion_tokens"]
        return tokens

    return ask


@contextmanager
def _peer(command: list[str], probe: str) -> Iterator[None]:
    environment = {"PATH": f"{PEERS / 'bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
                   "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip
    log = PEERS / f"{command[0]}-{command[1]}.log"
    with process([str(PEERS / "bin" / command[0]), *command[1:]], probe, log=log, env=environment):
        yield


@contextmanager
def process(command: list[str], probe: str, *, log: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Run a server, and write its output to a log."""
    with log.open("wb") as output, subprocess.Popen(  # noqa: S603
        command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **env}, cwd=log.parent,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _wait(process, probe, log)
            yield
        finally:
            os.killpg(process.pid, 15)


def _wait(process: subprocess.Popen[bytes], probe: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(probe, timeout=5):  # noqa: S310
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"a peer did not start; its log is {log}")


def _post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310
        return json.load(answer)
