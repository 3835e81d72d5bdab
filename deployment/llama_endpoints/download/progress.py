"""The progress bar of a download, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any


@dataclass(frozen=True, slots=True)
class DownloadBar:
    """A bar whose end is known bit by bit; several threads may move it."""

    bar: Any
    _lock: Lock = field(default_factory=Lock)

    def expect(self, size: int) -> None:
        """So many bytes more are to come."""
        self.bar.total = (self.bar.total or 0) + size

    def progress(self, size: int) -> None:
        """So many bytes more are there."""
        with self._lock:
            self.bar.update(size)

    def tell(self, text: str) -> None:
        """A line above the bar."""
        self.bar.write(text, file=sys.stderr)


@contextmanager
def download_bar() -> Iterator[DownloadBar]:
    """A bar, until the block is left."""
    from tqdm import tqdm

    often = 0.1 if sys.stderr.isatty() else 10  # seconds: a log keeps every line
    with tqdm(total=0, unit="B", unit_scale=True, desc="files", mininterval=often, file=sys.stderr) as bar:
        yield DownloadBar(bar)
