"""The upstream engine: one thread with an event loop, and a request to the upstream server for each running sequence.

It computes nothing and does not need torch. See `engine/base.py`.
"""

import asyncio
import logging
import queue
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine.base import EngineStats
from llama_serving.engine.handle import Handle, Token, publish
from llama_serving.engine.thread import EngineThread, ThreadedEngine
from llama_serving.engine.upstream import error_mapping
from llama_serving.engine.upstream.client import AwayError, UpstreamClient
from llama_serving.engine.upstream.remote import RemoteServer
from llama_serving.engine.upstream.remote_cache import CacheSince, RemoteCache
from llama_serving.engine.upstream.stream_parser import StreamedCompletion
from llama_serving.errors import InternalError, ServingError, SetupError, frames
from llama_serving.sampling_params import FinishReason, SamplingParams

_log = logging.getLogger(__name__)

START_S: Final = 600.0
"""How long to wait for the server at the start. (vLLM's image has a supervisor that waited before.)"""
AGAIN_S: Final = 0.5
SAY_EVERY_S: Final = 10.0
WATCH_S: Final = 1.0
PROBE_IDS: Final = (1,)
"""A prompt that every model of the family accepts: the beginning of a text."""
PROBE: Final = SamplingParams(max_new_tokens=1, logprobs=0)


@dataclass(frozen=True, slots=True)
class _UpstreamSequence:
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    body: dict[str, Any]
    deadline: float | None
    stop: Callable[[int], bool] | None
    handle: Handle


@dataclass(frozen=True, slots=True)
class ServerMonitor:
    """The upstream server as its starter knows it: names for messages, and callbacks.

    Attributes:
        name: for the log.
        setting: named when the start fails.
        place: the address, for the start line.
        say_every_s: seconds between log lines while waiting for the server.
        lost: returns why the server will not come (back); None while it may.
        progress: returns what the server is doing, for log lines while waiting.
        ready: called each time when the server comes (back).
    """

    name: str
    setting: str
    place: str = ""
    say_every_s: float = SAY_EVERY_S
    lost: Callable[[], str | None] = lambda: None
    progress: Callable[[], str] = lambda: ""
    ready: Callable[[], None] = lambda: None

    @classmethod
    def at(cls, url: str) -> "ServerMonitor":
        """Return the monitor of a server that was started by someone else."""
        return cls(f"the model's server at {url}", f"LLAMA_UPSTREAM_URL={url}", f" at {url}")


class UpstreamEngine(ThreadedEngine):
    """Generates with an OpenAI-compatible server.

    Args:
        client: creates the client of that server.
        monitor: names and callbacks of the server.
        model: name of the model on that server.
        max_num_seqs: sequences sent to the server at a time; others wait here.
        start_s: seconds to wait for the server.

    Raises:
        SetupError: the server does not come, lacks the model, or is of an unsupported kind.
    """

    def __init__(
        self,
        client: Callable[[], UpstreamClient],
        *,
        monitor: ServerMonitor,
        model: str,
        max_num_seqs: int = 16,
        start_s: float = START_S,
    ) -> None:
        self._make_client, self._monitor, self._model = client, monitor, model
        self._start_s = start_s
        self._max_num_seqs = max_num_seqs
        self._tokens_out = 0
        self._running: set[Handle] = set()
        self._away, self._said = False, ""
        self._cache = CacheSince()
        self._tasks: dict[Handle, asyncio.Task[None]] = {}
        self._fresh: list[tuple[Handle, Token]] = []
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._news = asyncio.Event()
        self._thread: EngineThread[_UpstreamSequence] = EngineThread(
            self._start, self._serve, notify=lambda: self._soon(self._news.set)
        )
        self._thread.start()

    def submit(  # noqa: PLR0913  (all but two are named)
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        deadline: float | None = None,
        stop: Callable[[int], bool] | None = None,
        matcher: Matcher | None = None,
        streamed: bool = True,
    ) -> Handle:
        """See `Engine.submit`. The server holds the text to the constraint, so `matcher` is not used."""
        del matcher
        if self._away:
            raise error_mapping.away("it did not answer the last health check")
        handle = Handle(self._wants_no_more)
        ids = tuple(prompt_ids)
        # (With stop strings each token must be checked before the next one is computed.)
        body = self._server.body(ids, params, streamed=streamed or stop is not None)
        self._thread.submit(_UpstreamSequence(ids, params, body, deadline, stop, handle), len(ids))
        return handle

    @property
    def capacity(self) -> int | None:
        """See `Engine.capacity`."""
        return self._server.context

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        thread = self._thread
        forked = thread.forked
        running = frozenset(() if forked else self._running)
        return EngineStats(
            engine="upstream",
            backend=f"{self._server.name}{self._monitor.place}",
            running=len(running),
            waiting=0 if forked else max(0, len(thread.open) - len(running)),
            running_handles=running,
            sequences=thread.sequences,
            tokens_in=thread.tokens_in,
            tokens_out=self._tokens_out,
            alive=thread.alive,
            away=self._away,
            num_preemptions=self._cache.preemptions.growth,
            reused_tokens=self._cache.reused_tokens.growth,
            remote_kv_usage=self._cache.usage,
        )

    def lose(self) -> None:
        """Mark the server as away, so that sequences are refused until it answers again. Callable from any thread."""
        self._away = True

    def _wants_no_more(self, handle: Handle) -> None:
        self._soon(lambda: self._give_up(handle))

    def _soon(self, what: Callable[[], None]) -> None:
        """Run a function on the loop; callable from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what)

    # --- all below runs on the engine's thread --------------------------------------------------------

    def _start(self) -> None:
        try:
            self._server = self._runner.run(self._connected_server())
        except BaseException:
            self._runner.close()
            raise

    def _serve(self) -> None:
        try:
            with self._runner:
                self._runner.run(self._work())
        except BaseException:
            _log.exception("the engine has stopped")
            raise

    async def _connected_server(self) -> RemoteServer:
        """Return the server, once it has generated for a prompt of token ids."""
        self._client = self._make_client()
        try:
            server = await self._wait_for_server()
            answer = StreamedCompletion(PROBE_IDS, PROBE)
            async with self._client.events(server.body(PROBE_IDS, PROBE), model=self._model) as events:
                async for data in events:
                    answer.read(data)
        except SetupError as error:
            raise SetupError(f"{self._monitor.setting} can't be used: {error}.") from error
        except ServingError as error:
            raise SetupError(
                f"{self._monitor.setting} can't be used. A first request failed: {error.message}"
            ) from error
        await self._see_cache()
        self._monitor.ready()
        return server

    async def _wait_for_server(self) -> RemoteServer:
        begun, said = time.monotonic(), 0.0
        while True:
            try:
                return await self._client.describe(self._model)
            except AwayError as error:
                waited = time.monotonic() - begun
                if (lost := self._monitor.lost()) is not None:
                    raise SetupError(lost) from error
                if waited > self._start_s:
                    raise SetupError(
                        f"no server answered there within {self._start_s:.0f} s ({error})"
                    ) from error
                if waited >= said:
                    doing = self._monitor.progress() or error
                    _log.warning("waiting for %s, %.0f s so far: %s", self._monitor.name, waited, doing)
                    said = waited + self._monitor.say_every_s
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), AGAIN_S)
                    raise SetupError("waiting for it was interrupted") from None

    async def _work(self) -> None:
        watching = asyncio.create_task(self._watch())
        places = asyncio.Semaphore(self._max_num_seqs)
        try:
            async for sequence in self._received():
                if sequence.handle.cancelled:
                    self._thread.finish(sequence.handle, "cancelled")
                else:
                    self._tasks[sequence.handle] = task = asyncio.create_task(self._run(sequence, places))
                    task.add_done_callback(partial(self._ended, sequence.handle))
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        finally:
            watching.cancel()
            await self._client.close()

    async def _received(self) -> AsyncIterator[_UpstreamSequence]:
        while True:
            try:
                sequence = self._thread.inbox.get_nowait()
            except queue.Empty:
                await self._news.wait()
                self._news.clear()
            else:
                if sequence is None:
                    return
                yield sequence

    def _give_up(self, handle: Handle) -> None:
        task = self._tasks.get(handle)
        if task is not None:
            task.cancel()

    def _ended(self, handle: Handle, _: asyncio.Task[None]) -> None:
        del self._tasks[handle]
        if (
            handle in self._thread.open
        ):  # the task was cancelled before its first step, so it did not finish the handle
            self._thread.finish(handle, "cancelled")

    async def _run(self, sequence: _UpstreamSequence, places: asyncio.Semaphore) -> None:
        """Run one sequence, once there is a slot for it."""
        try:
            async with asyncio.timeout_at(sequence.deadline), places:
                self._running.add(sequence.handle)
                try:
                    reason = await self._generate(sequence)
                finally:
                    self._running.discard(sequence.handle)
                    self._publish()  # its tokens come before its end
        except TimeoutError:
            self._thread.finish(sequence.handle, "deadline")
        except asyncio.CancelledError:
            self._thread.finish(sequence.handle, "cancelled")
        except ServingError as error:
            self._thread.fail(sequence.handle, await self._seen_again(error))
        except Exception as error:
            _log.error("a sequence failed (messages left out, they could quote a prompt)\n%s", frames(error))
            self._thread.fail(
                sequence.handle,
                InternalError("The server failed on this sequence. Try again; the log has the cause."),
            )
        else:
            self._thread.finish(sequence.handle, reason)

    async def _seen_again(self, error: ServingError) -> ServingError:
        """Return the error to report. If the server is shutting down (workers first), it is reported as away."""
        with suppress(asyncio.CancelledError):  # (the consumer has gone: any error will do)
            if isinstance(error, InternalError) and not await self._client.healthy():
                return error_mapping.broken("it is not healthy any more")
        return error

    async def _generate(self, sequence: _UpstreamSequence) -> FinishReason:
        answer = StreamedCompletion(sequence.prompt_ids, sequence.params)
        async with self._client.events(sequence.body, model=self._model) as events:
            async for data in events:
                tokens = answer.read(data)
                sequence.handle.prompt = answer.prompt
                for token in tokens if sequence.params.max_new_tokens else ():
                    self._publish_soon(sequence.handle, token)
                    if sequence.stop is not None and sequence.stop(token.id):
                        return "stop"
                if answer.complete and answer.finish_reason is not None:
                    return answer.finish_reason if sequence.params.max_new_tokens else "length"
        raise error_mapping.broken("its answer has no end")

    def _publish_soon(self, handle: Handle, token: Token) -> None:
        """Publish together with other tokens of this iteration of the loop, so that consumers are woken once."""
        if not self._fresh:
            self._loop.call_soon(self._publish)
        self._fresh.append((handle, token))
        self._tokens_out += 1

    def _publish(self) -> None:
        fresh, self._fresh = self._fresh, []
        publish(fresh)

    async def _watch(self) -> None:
        """Watch whether the server is there; one that comes back must be the same."""
        while True:
            await asyncio.sleep(WATCH_S)
            if not self._away and not await self._client.healthy():
                self._away = True
                self._cache = self._cache.unseen()
                _log.error("%s is away", self._monitor.name)
            elif not self._away:
                await self._see_cache()
            elif self._away and await self._is_back():
                self._away = False
                self._monitor.ready()
                _log.warning("%s is back", self._monitor.name)

    async def _see_cache(self) -> None:
        """Read the server's counters of its cache, whose growth since the first look is told."""
        text = await self._client.metrics()
        self._cache = self._cache.seen(RemoteCache.of(text)) if text else self._cache.unseen()

    async def _is_back(self) -> bool:
        try:
            server = await self._client.describe(self._model)
        except AwayError:
            return False
        except SetupError as error:
            self._say_once(f"it can't be used any more: {error}")
            return False
        if (server.kind, server.context) != (self._server.kind, self._server.context):
            self._say_once(f"it is another server now: {server.name}, context {server.context}")
            return False
        return True

    def _say_once(self, what: str) -> None:
        if what != self._said:
            self._said = what
            _log.error("%s: %s", self._monitor.name, what)
