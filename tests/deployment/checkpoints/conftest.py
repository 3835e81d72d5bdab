"""A random model as a checkpoint and as a GGUF file."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gguf_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in float32."""
    from tests.support import ggufs  # imports torch, which is not everywhere

    return ggufs.checkpoint(tmp_path_factory.mktemp("original") / "llama")


@pytest.fixture(scope="session")
def gguf_model(gguf_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It in Q8_0, beside its tokenizer."""
    from tests.support import ggufs

    folder = tmp_path_factory.mktemp("gguf")
    shutil.copyfile(gguf_original / "tokenizer.json", folder / "tokenizer.json")
    return ggufs.write(gguf_original, folder / "llama.gguf", ggufs.Kind.Q8_0)
