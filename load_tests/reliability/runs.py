"""Runs as files: one of JSON for each, which says what was run, where and when."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llama_endpoints.version import full_version

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = Path(__file__).with_name("results")
"""The runs that the report is made from."""


def write(path: Path, kind: str, found: Mapping[str, Any]) -> None:
    """Write a run's file.

    Args:
        path: of the file.
        kind: what was run: `soak`, `chaos`.
        found: the settings and the results.
    """
    words = [word.replace(f"{ROOT}/", "") for word in sys.argv[1:]]
    about = {
        "kind": kind,
        "command": " ".join(["python -m load_tests.reliability", *words]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "version": full_version(),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_document({**about, **found}), encoding="utf-8")


def read(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return all runs in a folder, in the order of their files' names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def _document(run: Mapping[str, Any]) -> str:
    """Return a line for each field, so that files of runs are short and can be compared."""
    return (
        "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in run.items()) + "\n}\n"
    )


def _processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()
