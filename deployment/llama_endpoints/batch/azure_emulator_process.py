"""Control one process of `azure_emulator_worker`."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llama_endpoints.batch import azure_emulator_worker


class Failed(Exception):
    """A call failed; the message says why.

    Attributes:
        alive: whether the process can be used again.
    """

    def __init__(self, why: str, *, alive: bool) -> None:
        super().__init__(why)
        self.alive = alive


class ScriptProcess:
    """A scoring script in its own process. Create it with `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls, script: Path, *, level: str, environment: Mapping[str, str], log: Path
    ) -> "ScriptProcess":
        """Start a process, import the script, and wait for its `init`.

        Args:
            script: path of a file with `init` and `run`.
            level: level of the log.
            environment: all environment variables.
            log: file to append standard output and error to.

        Raises:
            Failed: `init` failed, and the process has ended.
        """
        # Started by path, since a script may bring a package with the name of one of ours. -P keeps our folder off its sys.path.
        command = (sys.executable, "-P", azure_emulator_worker.__file__, str(script), level)
        with log.open("ab") as file:
            pipe = asyncio.subprocess.PIPE
            started = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=file, env=dict(environment), start_new_session=True
            )
        process = cls(started)
        try:
            await process._answer()
        except BaseException:
            await process.end()
            raise
        return process

    async def run(self, files: Sequence[Path], results: Path, *, timeout_s: float) -> int:
        """Call the script's `run`. Return the number of items, which are written to `results` as lines.

        Raises:
            Failed: `run` failed or timed out. After a timeout the process is not alive: `end` it.
        """
        assert self._process.stdin is not None  # noqa: S101
        call = {"files": [str(file) for file in files], "results": str(results)}
        try:
            async with asyncio.timeout(timeout_s):
                self._process.stdin.write(json.dumps(call).encode() + b"\n")
                answer = await self._answer()
        except TimeoutError:
            raise Failed(f"it exceeded its timeout of {timeout_s:g} s", alive=False) from None
        return int(answer["results"])

    async def end(self) -> None:
        """Kill the process and its children. May be called again."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        await self._process.communicate()
        with suppress(ConnectionError):
            await self._process.stdin.wait_closed()

    async def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise Failed(f"its process ended with exit code {await self._process.wait()}", alive=False)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"], alive=True)
        return answer
