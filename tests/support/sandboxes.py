"""Where model-written code can run apart, and what runs it."""

import functools
import os
import shutil
from pathlib import Path

import pytest

from llama_endpoints.evaluation.sandbox import bubblewrap
from llama_serving.errors import SetupError
from tests.support.paths import ROOT

HUMAN_EVAL = ROOT.parent / "shared/data/HumanEval.jsonl.gz"


@functools.cache
def _why_not() -> str:
    try:
        bubblewrap.require()
    except SetupError as error:
        return str(error)
    return ""


def needs_sandbox() -> None:
    """Skips, saying why, where there are no namespaces or no bubblewrap."""
    if reason := _why_not():
        pytest.skip(reason)


def needs(*programs: str) -> None:
    """Skips where a runtime is missing."""
    needs_sandbox()
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)}: not installed here")


def human_eval() -> Path:
    """The file of HumanEval; skips where it is not."""
    if not HUMAN_EVAL.exists():
        pytest.skip("HumanEval.jsonl.gz is not here: it is not shipped with the project")
    return HUMAN_EVAL


def processes() -> set[int]:
    """Processes below this one, zombies too."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, ahead = set[int](), {os.getpid()}
    while ahead:
        ahead = {child for child, parent in parents.items() if parent in ahead} - found
        found |= ahead
    return found
