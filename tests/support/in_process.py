"""Our own server inside the test's process: the same parts and real sockets, without what a process costs to start.

A process of its own is for what only one can show: the command, real signals, exit codes, what is left on the disk.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from queue import SimpleQueue
from types import MappingProxyType

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.model_files import ModelFiles
from llama_serving.server.fronts.binding import Binding
from llama_serving.server.lifecycle import Phase
from llama_serving.server.run import Assembly, traces_of
from llama_serving.server.scoring import Options
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.calls import PATIENCE_S, until

NO_ENV: Mapping[str, str] = MappingProxyType({})


def load_nano(settings: Settings) -> Service:
    """Load the embedded model."""
    return Service.start(ModelFiles(NANO_FOLDER, NANO), settings)


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A running server. `exit_code` is there once it has ended."""

    url: str
    assembly: Assembly
    exit_code: Future[int]

    def signal(self, number: signal.Signals) -> None:
        """Do what the process would do at a signal."""
        self.assembly.server.handle_exit(number, None)


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what the server logs, also for a fixture of a whole module."""
    handler, ours = BufferingHandler(capacity=1_000_000), logging.getLogger("llama_serving")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield handler.buffer
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


def _url(assembly: Assembly) -> str:
    """Return the server's address; that of a Unix socket is one for HTTP's sake."""
    front = assembly.front
    scheme, name = "http" if front.certificate is None else "https", front.listening.getsockname()
    if isinstance(name, str):
        return f"{scheme}://localhost"
    host = name[0] if ":" not in name[0] else f"[{name[0]}]"
    return f"{scheme}://{host}:{name[1]}"


@contextmanager
def serving(
    env: Mapping[str, str] = NO_ENV,
    *,
    binding: Binding | None = None,
    options: Options | None = None,
    load: Callable[[Settings], Service] = load_nano,
    wait: bool = True,
    port: int = 0,
) -> Iterator[LocalServer]:
    """Run the server on a port of its own, unless one is given, drained when the block ends; with `wait` the model is loaded at the beginning."""
    assembled: SimpleQueue[Assembly] = SimpleQueue()

    async def live() -> int:
        assembly = Assembly.of(
            lambda: load(settings), settings, binding or Binding(port=port), options or Options(), traces
        )
        assembled.put(assembly)
        return await assembly.run()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1, "server") as thread, ExitStack() as last:
        for name, value in env.items():
            if not name.startswith("LLAMA_"):  # OpenTelemetry's; ours would reach what other tests start
                patch.setenv(name, value)
        settings = Settings.from_environment(env)
        traces = traces_of(settings)
        if traces is not None:
            last.callback(traces.close)
        exit_code = thread.submit(asyncio.run, live())
        assembly = assembled.get(timeout=PATIENCE_S)
        server = LocalServer(_url(assembly), assembly, exit_code)
        try:
            if wait:
                until(lambda: assembly.server.started and assembly.lifecycle.phase is Phase.READY)
            yield server
        finally:
            with suppress(RuntimeError):  # its loop has ended
                for _ in range(2):  # who is still inside is refused
                    server.signal(signal.SIGTERM)
            wait_for({exit_code}, timeout=PATIENCE_S)
