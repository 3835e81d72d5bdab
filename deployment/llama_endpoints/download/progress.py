"""The progress bar of a download, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any


@dataclass(frozen=True, slots=True)
class DownloadBar:
    """A progress bar whose total grows as files are listed. Threads may share it."""

    bar: Any
    _lock: Lock = field(default_factory=Lock)

    def expect(self, size: int) -> None:
        """Add bytes to the total."""
        self.bar.total = (self.bar.total or 0) + size

    def progress(self, size: int) -> None:
        """Add bytes to the progress."""
        with self._lock:
            self.bar.update(size)

    def tell(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.write(text, file=sys.stderr)


@contextmanager
def download_bar() -> Iterator[DownloadBar]:
    """Show a bar until the block ends."""
    from tqdm import tqdm

    often = 0.1 if sys.stderr.isatty() else 10  # seconds; a log keeps every line
    with tqdm(total=0, unit="B", unit_scale=True, desc="files", mininterval=often, file=sys.stderr) as bar:
        yield DownloadBar(bar)
