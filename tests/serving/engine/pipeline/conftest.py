"""nano behind the pipeline engine."""

from collections.abc import Iterator

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.engine.base import Engine
from llama_serving.engine.pipeline import PipelineEngine


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine shared by all tests."""
    started = PipelineEngine(NANO_FOLDER, dtype="float32")
    yield started
    started.close()


@pytest.fixture
def own_engine() -> Iterator[PipelineEngine]:
    """An engine that the test may close."""
    started = PipelineEngine(NANO_FOLDER, dtype="float32")
    yield started
    started.close()
