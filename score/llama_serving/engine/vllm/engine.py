"""The vLLM engine: vLLM in a process of its own, called as an upstream server. See `engine/base.py`."""

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from llama_serving.constraints.matcher import Matcher
from llama_serving.engine.base import EngineStats
from llama_serving.engine.handle import Handle
from llama_serving.engine.upstream import error_mapping
from llama_serving.engine.upstream.client import UpstreamClient
from llama_serving.engine.upstream.engine import ServerMonitor, UpstreamEngine
from llama_serving.engine.vllm import command
from llama_serving.engine.vllm.installation import Installation
from llama_serving.engine.vllm.process import VllmProcess
from llama_serving.engine.vllm.served_model import ServedModel
from llama_serving.engine.vllm.supervisor import SupervisedRun, Supervisor
from llama_serving.errors import SetupError
from llama_serving.sampling_params import SamplingParams
from llama_serving.settings import Settings

_log = logging.getLogger(__name__)

SOCKET: Final = "vllm.sock"
LONGEST_SOCKET: Final = 107
"""Most bytes in a Unix socket's path (unix(7))."""
ROOM_FOR_NAMES: Final = 64
"""Bytes for the folder's name and the longest file name in it, a UUID."""
SAY_EVERY_S: Final = 15.0
RPC_FOLDER: Final = "VLLM_RPC_BASE_PATH"
"""Where vLLM puts the sockets between its processes; they are removed with the folder, however vLLM ends."""
URL: Final = "http://vllm"
"""The host in requests on the socket; it is never resolved."""


class VllmEngine:
    """Starts vLLM, generates with it, and stops it.

    Args:
        installation: the environment that has vLLM.
        model: to serve.
        settings: of the operator.
        kv_memory: bytes for keys and values; None is vLLM's default.
        environment: ours, most of which vLLM inherits.

    Raises:
        SetupError: vLLM exits, or is not healthy in time.
    """

    def __init__(
        self,
        installation: Installation,
        model: ServedModel,
        settings: Settings,
        *,
        kv_memory: int | None,
        environment: Mapping[str, str],
    ) -> None:
        self._pid = os.getpid()
        self._folder = _folder()
        key = secrets.token_urlsafe(32)
        socket = self._folder / SOCKET
        words = command.arguments(installation, model, settings, socket=socket, kv_memory=kv_memory)
        variables = command.environment(environment, installation, settings, key=key)
        echo = _echo if settings.log_prompts else None

        def launch() -> SupervisedRun:
            socket.unlink(missing_ok=True)
            return VllmProcess(
                words, variables | {RPC_FOLDER: str(self._folder)}, folder=self._folder, echo=echo
            )

        self._upstream: UpstreamEngine | None = None
        try:
            self._supervisor = Supervisor(launch, start_s=settings.vllm_start_s, on_death=self._died)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        # Registered before the upstream engine's own close, so it is called after that.
        atexit.register(self.close)
        try:
            self._upstream = UpstreamEngine(
                # A queued or preempted sequence gets no bytes while it waits in vLLM. Its process shows whether vLLM is there,
                # and the socket is closed when it ends.
                lambda: UpstreamClient(URL, key=key, socket=socket, stall_s=None),
                monitor=ServerMonitor(
                    name="vLLM",
                    setting=f"vLLM {installation.version}",
                    say_every_s=SAY_EVERY_S,
                    lost=lambda: self._supervisor.lost,
                    progress=self._supervisor.progress,
                    ready=self._supervisor.healthy,
                ),
                model=model.name,
                max_num_seqs=settings.max_num_seqs,
                start_s=settings.vllm_start_s,
            )
        except BaseException:
            self.close()
            raise

    @property
    def _started(self) -> UpstreamEngine:
        if self._upstream is None:
            raise SetupError("The engine has not been started.")
        return self._upstream

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
        """See `Engine.submit`."""
        if self._supervisor.lost is not None and os.getpid() == self._pid:
            raise error_mapping.away("vLLM has ended and does not come back")
        return self._started.submit(
            prompt_ids, params, deadline=deadline, stop=stop, matcher=matcher, streamed=streamed
        )

    @property
    def capacity(self) -> int | None:
        """See `Engine.capacity`."""
        return self._started.capacity

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        stats = self._started.stats()
        lost = self._supervisor.lost is not None
        return replace(
            stats, engine="vllm", alive=stats.alive and not lost, failed_starts=self._supervisor.failures
        )

    def drain(self) -> None:
        """See `Engine.drain`."""
        self._started.drain()

    def close(self) -> None:
        """See `Engine.close`."""
        if os.getpid() != self._pid:  # a forked copy: vLLM belongs to the parent
            return
        atexit.unregister(self.close)
        if self._upstream is not None:
            self._upstream.close()
        self._supervisor.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _died(self) -> None:
        if self._upstream is not None:
            self._upstream.lose()


def _folder() -> Path:
    """Create a private folder for the sockets: ours, and those between vLLM's processes."""
    usual = tempfile.gettempdir()
    # The folder for temporary files, as a job runner sets it, may be too long for a socket's path.
    long = len(os.fsencode(usual)) + ROOM_FOR_NAMES > LONGEST_SOCKET
    return Path(tempfile.mkdtemp(prefix="llama-vllm-", dir="/tmp" if long else usual))  # noqa: S108


def _echo(line: str) -> None:
    _log.info("vLLM: %s", line)
