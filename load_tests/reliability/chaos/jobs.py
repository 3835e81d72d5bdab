"""The commands that are disturbed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

ROWS: Final = 8
BATCH: Final = (
    "torch",
    "llama_endpoints.cli.batch",
    "llama_serving.batch.job",
    "llama_serving.engine.batching.factory",
)
PACKAGE: Final = (
    "torch",
    "mlflow.pyfunc",
    "llama_endpoints.cli.package",
    "llama_endpoints.checkpoints.package",
)


@dataclass(frozen=True, slots=True)
class Job:
    """A command that can be interrupted and given again.

    Attributes:
        prepare: writes what the command reads into a folder.
        arguments: of the command, from that folder and the one that it changes.
        modules: what the command imports; each run is then a fork, without the seconds of the imports.
        differs: what in its files differs from run to run: drawn ids, times, the version (someone may commit meanwhile).
    """

    prepare: Callable[[Path], None]
    arguments: Callable[[Path, Path], list[str]]
    modules: tuple[str, ...]
    differs: re.Pattern[bytes]

    def lasting(self, content: bytes) -> bytes:
        """Return a file's content without what differs from run to run."""
        return self.differs.sub(b"", content)


def _rows(given: Path) -> None:
    rows = [{"prompt": f"def f{n}(", "seed": n, "max_tokens": 4, "id": n} for n in range(ROWS)]
    rows[3]["top_p"] = 7  # (one that fails)
    lines = [json.dumps(row) for row in rows]
    lines.append(
        json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": 7}})
    )
    (given / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _batch(given: Path, changed: Path) -> list[str]:
    return ["batch", "--model", "nano", "--input", str(given / "rows.jsonl"), "--output", str(changed / "out.jsonl"),
            "--dtype", "float32", "--engine", "batching"]  # fmt: skip


def _package(given: Path, changed: Path) -> list[str]:
    del given
    return ["package", "--checkpoint", "nano", "--output", str(changed / "model")]


JOBS: Final[Mapping[str, Job]] = {
    "batch": Job(
        _rows, _batch, BATCH, re.compile(rb'(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])|"version": "[^"]*"')
    ),
    "package": Job(lambda _: None, _package, PACKAGE, re.compile(rb"(utc_time_created|model_uuid): .*")),
}
