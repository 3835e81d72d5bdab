"""nano's service with each engine."""

from collections.abc import Iterator

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings


@pytest.fixture(scope="module", params=["batching", "pipeline"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """nano with each engine."""
    started = Service.start(ModelFiles(NANO_FOLDER, NANO), Settings(engine=request.param))
    yield started
    started.close()


@pytest.fixture(scope="module", params=["batching", "pipeline"])
def in_turn(request: pytest.FixtureRequest) -> Iterator[Service]:
    """The same, one sequence at a time."""
    started = Service.start(ModelFiles(NANO_FOLDER, NANO), Settings(engine=request.param, max_num_seqs=1))
    yield started
    started.close()
