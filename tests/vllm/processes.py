"""vLLM's processes, found from ours without any help of the code that started them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_S = 240
KEEPER = "/engine/vllm/keeper.py"
API, CORE, WORKER = "vllm.entrypoints.openai.api_server", "VLLM::EngineCore", "VLLM::Worker"
VLLM = (API, CORE, WORKER)


def until(true: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def _read(pid: int, name: str) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace")
    return ""


def command(pid: int) -> str:
    return _read(pid, "cmdline").replace("\0", " ").strip()


def alive(pid: int) -> bool:
    return _read(pid, "stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])


def parent(pid: int) -> int:
    return int(_read(pid, "stat").rpartition(")")[2].split()[1])


def below(pid: int) -> Iterator[int]:
    """All that a process has started, and what those have."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                yield child
                yield from below(child)


def started_by(pid: int) -> dict[str, int]:
    """vLLM's processes of a server of ours, and their keeper."""
    found: dict[str, int] = {}
    for one in below(pid):
        said = command(one)
        # (The keeper's words have vLLM's behind them.)
        kind = KEEPER if KEEPER in said else next((name for name in VLLM if name in said), None)
        if kind is not None:
            found.setdefault(kind, one)
    return found


def each_started_by(pid: int) -> Iterator[dict[str, int]]:
    """The same, of every vLLM there is: a job may have several processes, each with its own."""
    for one in list(below(pid)):
        if KEEPER in command(one):
            yield {**started_by(one), KEEPER: one}


def cpu_s(pid: int) -> float:
    fields = _read(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pids: "list[int]") -> float:
    """Resident memory of all together, what they share counted once for each."""
    pages = sum(int((_read(pid, "statm") or "0 0").split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def computing(pid: int) -> Callable[[], bool]:
    """Whether a process has computed for a while since now."""
    before = cpu_s(pid)
    return lambda: cpu_s(pid) > before + 0.3


@contextmanager
def held(pid: int) -> Iterator[None]:
    """A process that does not go on meanwhile, unless it is killed."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def socket_of(api: int) -> Path | None:
    """Where a vLLM listens, or will."""
    words = command(api).split(" ")
    return Path(words[words.index("--uds") + 1]) if "--uds" in words else None


def connections(api: int) -> int:
    """Requests that are inside: connected sockets of that path."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.endswith(f" {socket_of(api)}") and line.split()[5] == "03" for line in lines)


def nothing_left(of: "dict[str, int]", socket: Path) -> None:
    """Neither processes nor files, soon."""
    until(lambda: not [pid for pid in of.values() if alive(pid)] and not socket.parent.exists(), 30)
