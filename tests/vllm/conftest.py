"""The real vLLM, from `.venv-vllm` (`make vllm`) or where LLAMA_VLLM says; without it these tests skip."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = Path(os.environ.get("LLAMA_VLLM", ROOT / ".venv-vllm" / "bin" / "python"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not (PYTHON.parent.parent / "lib").exists() or not PYTHON.exists() or not _complete():
        for item in items:
            if item.path.is_relative_to(ROOT / "tests" / "vllm"):
                item.add_marker(pytest.mark.skip(reason="vLLM is not installed: run `make vllm` where the package index can be reached"))  # fmt: skip


def _complete() -> bool:
    return "LLAMA_VLLM" in os.environ or (ROOT / ".venv-vllm" / ".ready").exists()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests have measured, before the closing line."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, value in getattr(report, "user_properties", ()):
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def settings() -> Mapping[str, str]:
    """Of every process that is to use vLLM."""
    return {
        "LLAMA_ENGINE": "vllm",
        "LLAMA_VLLM": str(PYTHON),
        "LLAMA_VLLM_EAGER": "true",
        "LLAMA_THREADS": "1",
        "LLAMA_KV_MEMORY": "256MiB",
        "OMP_WAIT_POLICY": "passive",
    }
