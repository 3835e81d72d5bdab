"""Runs vLLM's OpenAI server and, once it is healthy, the server that answers Azure; starts vLLM again where it ends.

    cd "$AML_APP_ROOT" && python start.py azmlinfsrv --entry_script score.py --port 5001

The working directory is the `score/` folder: the model and the settings are read with its code, so that both servers
mean the same by them. Exit code 0 after SIGTERM; 1 when the server in front has ended, or vLLM before it was healthy; 2 for a start
that can't succeed. It is the container's first process: where it is killed outright, the kernel ends all others in there.
"""

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path.cwd()))

from llama_serving.errors import SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.settings import Settings

LOOPBACK: Final = "127.0.0.1"
PREFIX: Final = "LLAMA_UPSTREAM_"
ENGINE: Final = "LLAMA_ENGINE"
START_S: Final = 7200
"""138 GB of weights take 92 minutes at 25 MB/s, which is a slow day; Azure's own probe may give up sooner."""
PROBE_S: Final = 2.0
PROBE_EVERY_S: Final = 0.25
FRONT_GRACE_S: Final = 185.0
"""A request may take 180 s, and gunicorn gives those that are inside as long (`--graceful-timeout`)."""
GRACE_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        upstream: vLLM's command.
        front: the command of the server that Azure asks.
        environment: of both.
        port: vLLM's, on loopback.
        start_s: seconds that vLLM may take until it is healthy.
    """

    upstream: tuple[str, ...]
    front: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    start_s: int

    @classmethod
    def read(cls, front: Sequence[str], environment: Mapping[str, str]) -> "Plan":
        """The plan for `front` in `environment`.

        Raises:
            SetupError: a variable or the model can't be used, or there is no front.
        """
        if not front:
            raise SetupError("No command is given. Name the server in front, such as `azmlinfsrv --port 5001`.")
        own, others = _split(environment)
        gpus = _integer(own, "GPUS", None, 64)
        port = _integer(own, "PORT", 8000, 65_535)
        start_s = _integer(own, "START_S", START_S, 86_400)
        # Now, and not when 138 GB have been read: what the front would refuse.
        url = f"http://{LOOPBACK}:{port}"
        both = {**others, f"{PREFIX}URL": url, ENGINE: _engine(others)}
        settings = Settings.from_environment(both)
        root = others.get("AZUREML_MODEL_DIR")
        if not root:
            raise SetupError("AZUREML_MODEL_DIR is not set. Set it to the folder of the packaged model.")
        upstream = vllm(ModelFiles.find(Path(root)), settings, gpus=gpus, port=port)
        return cls(upstream, tuple(front), both, port, start_s)


def vllm(model: ModelFiles, settings: Settings, *, gpus: int, port: int) -> tuple[str, ...]:
    """The command that serves `model` on so many GPUs."""
    options = {
        "host": LOOPBACK,
        "port": port,
        "served-model-name": model.variant.name,
        "tensor-parallel-size": gpus,
        "dtype": model.variant.dtype if settings.dtype == "auto" else settings.dtype,
        "max-model-len": settings.context or model.variant.trained_positions.value,
        "max-num-seqs": settings.max_num_seqs,
        "load-format": "safetensors",  # never a pickle
        "generation-config": "vllm",  # no sampling settings of the checkpoint's
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ("vllm", "serve", str(model.checkpoint), *words)


def _split(environment: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Our own variables, without their prefix, and all others."""
    own = {name.removeprefix(PREFIX): text for name, text in environment.items() if name.startswith(PREFIX)}
    unknown = sorted(own.keys() - {"GPUS", "PORT", "START_S"})
    if unknown:
        raise SetupError(
            f"{PREFIX}{unknown[0]} can't be set in this image, which starts the upstream server itself: it takes "
            f"{PREFIX}GPUS, {PREFIX}PORT and {PREFIX}START_S. Unset it."
        )
    return own, {name: text for name, text in environment.items() if not name.startswith(PREFIX)}


def _engine(environment: Mapping[str, str]) -> str:
    """The scoring script's: there is but one here."""
    asked = environment.get(ENGINE, "").strip() or "upstream"
    if asked != "upstream":
        raise SetupError(f"{ENGINE}={asked} can't be used in this image, whose engine is vLLM. Unset it.")
    return asked


def _integer(own: Mapping[str, str], name: str, default: int | None, high: int) -> int:
    text = own.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text:
        raise SetupError(f"{PREFIX}{name} is not set. Set it to how many GPUs share the model, such as 2.")
    if not (text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= high):
        raise SetupError(f"{PREFIX}{name}={text} can't be used: it must be an integer from 1 to {high}.")
    return int(text)


class Child:
    """A server, in a process group of its own with all that it starts."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Starts it; raises SetupError if there is no such command."""
        self.name = command[0]
        self.ended = asyncio.Event()
        say(shlex.join(command))
        try:
            self._process = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603
        except OSError as error:
            raise SetupError(f"{self.name} can't be started: {error}. Is it installed?") from error
        # Readable once the process has ended. Until `end` waits for it, nobody else can have its number.
        self._pidfd = os.pidfd_open(self._process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._has_ended)

    def _has_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self.ended.set()

    async def end(self, grace_s: float, hurry: asyncio.Event) -> None:
        """Ask it to end, kill it after `grace_s` or when there is hurry, and with it what it has left behind."""
        if not self.ended.is_set():
            # It alone, and not its group: it knows best how its workers end.
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            await first(grace_s, ended=self.ended.wait(), hurry=hurry.wait())
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self.ended.wait()
        say(f"{self.name} has ended with exit code {self._process.wait()}")
        os.close(self._pidfd)


async def supervise(plan: Plan) -> int:
    """Run both until the front ends, vLLM can't be brought up, or a signal comes; the exit code.

    While vLLM comes up again the front goes on: it knows that nobody answers, and says 503 and when to try again.

    Raises:
        SetupError: one of the commands is not there.
    """
    stop, hurry = _on_signals()
    upstream: Child | None = None
    front: Child | None = None
    try:
        while True:
            upstream = Child(plan.upstream, plan.environment)
            ends = {"front": front.ended.wait()} if front else {}
            so = await first(
                plan.start_s,
                healthy=_healthy(plan.port),
                ended=upstream.ended.wait(),
                stopped=stop.wait(),
                **ends,
            )
            if so != {"healthy"}:
                break
            front = front or Child(plan.front, plan.environment)
            so = await first(None, ended=upstream.ended.wait(), front=front.ended.wait(), stopped=stop.wait())
            if so != {"ended"}:
                break
            gone, upstream = upstream, None
            await gone.end(0, hurry)
            say(f"{gone.name} is started again")
        if not so:
            say(f"{plan.upstream[0]} was not healthy within {plan.start_s} s ({PREFIX}START_S)")
        return 0 if stop.is_set() else 1
    finally:
        # The front goes first: requests that are inside still need vLLM.
        if front:
            there = upstream is not None and not upstream.ended.is_set()
            await front.end(FRONT_GRACE_S if there else GRACE_S, hurry)
        if upstream:
            await upstream.end(GRACE_S, hurry)


def _on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """What the first SIGTERM (or SIGINT) sets, and what the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def heard() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, heard)
    return stop, hurry


async def _healthy(port: int) -> None:
    """Returns when vLLM says that it is."""
    while not await _answers(port):
        await asyncio.sleep(PROBE_EVERY_S)


async def _answers(port: int) -> bool:
    """One probe."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    return False


async def first(timeout_s: float | None, **waiting: Coroutine[Any, Any, object]) -> set[str]:
    """The names of those that are done first; none if the time is up. The others are given up."""
    tasks = {asyncio.ensure_future(one): name for name, one in waiting.items()}
    done, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
    return {tasks[task] for task in done}


def say(what: str) -> None:
    """One line of the container's log."""
    print(f"start: {what}", file=sys.stderr, flush=True)  # noqa: T201


def main() -> int:
    """The exit code."""
    try:
        return asyncio.run(supervise(Plan.read(sys.argv[1:], os.environ)))
    except SetupError as error:
        say(f"Error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
