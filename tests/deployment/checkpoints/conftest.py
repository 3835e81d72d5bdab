"""Checkpoints to package, and a random model as a checkpoint and as a GGUF file."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.nano import FOLDER
from tests.support.packages import SHAPE, copied


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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copied(tmp_path / "checkpoint")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The folder that models are written into."""
    folder = tmp_path / "desk"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of no catalog, as transformers saves a large one: bf16, in several files."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("checkpoints") / "mine"
    library: Any = transformers
    config = library.LlamaConfig(
        vocab_size=SHAPE.vocab,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    library.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder, max_shard_size="70KB")
    shutil.copyfile(FOLDER / "tokenizer.json", folder / "tokenizer.json")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder
