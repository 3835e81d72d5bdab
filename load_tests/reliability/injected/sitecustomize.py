"""Python imports this at its start if the folder is on PYTHONPATH. See the package's `__init__.py`."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_serving.service.service import Service

_left: list[object] = []


def _leak() -> None:
    from llama_serving.service.service import Service

    admitted = Service.admitted

    @contextmanager
    def leaking(self: Service) -> Iterator[None]:
        _left.append(bytearray(1000))
        with admitted(self):
            yield

    Service.admitted = leaking  # type: ignore[method-assign]


def _place() -> None:
    from llama_serving.service.service import Service

    admitted = Service.admitted

    @contextmanager
    def keeping(self: Service) -> Iterator[None]:
        held = admitted(self)
        held.__enter__()
        _left.append(held)  # (when it is collected, its place is given back)
        yield  # (an exception ends this here)
        held.__exit__(None, None, None)

    Service.admitted = keeping  # type: ignore[method-assign]


def _row() -> None:
    from llama_serving.batch import journal

    def trusting(raw: bytes) -> str | None:
        return raw[9:].removesuffix(b"\n").decode() if raw[8:9] == b" " else None

    journal._payload = trusting  # noqa: SLF001


class _Allocated(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )  # fmt: skip


def _answer(folder: str) -> None:
    """Answer each connection with the bytes that are allocated in all of malloc's arenas, and in mappings of their own."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Allocated
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(f"{folder}/{os.getpid()}.probe")
        probe.listen()
        while True:
            asking, _ = probe.accept()
            with asking:
                gc.collect()
                now = mallinfo()
                asking.sendall(str(now.uordblks + now.hblkhd).encode())


def _probe(folder: str) -> None:
    def start() -> None:
        threading.Thread(target=_answer, args=(folder,), name="probe", daemon=True).start()

    start()
    os.register_at_fork(after_in_child=start)


if _folder := os.environ.get("RELIABILITY_PROBES"):
    _probe(_folder)
if _defect := os.environ.get("RELIABILITY_PLANTED"):
    {"leak": _leak, "place": _place, "row": _row}[_defect]()
