"""A small random model on each backend, and an engine with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import llamas
from tests.support.batching_engines import Model, Started
from tests.support.llamas import SHAPES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llamas.write(SHAPES["grouped heads"], tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["portable", "native"])
def model(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    if request.param == "portable":
        return Model(folder)
    wide = llamas.write(SHAPES["heads of 64"], tmp_path_factory.mktemp("wide"), dtype=torch.bfloat16)
    return Model(wide, "native")


@pytest.fixture
def own(model: Model) -> Iterator[Started]:
    with Started(model) as started:
        yield started
