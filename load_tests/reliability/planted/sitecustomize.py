"""Python imports this at its start if the folder is on PYTHONPATH. It puts the defect of RELIABILITY_PLANTED into the service."""

from __future__ import annotations

import os
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


if _defect := os.environ.get("RELIABILITY_PLANTED"):
    {"leak": _leak, "place": _place, "row": _row}[_defect]()
