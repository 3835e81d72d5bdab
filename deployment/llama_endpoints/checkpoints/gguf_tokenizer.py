"""Compare the tokens of a GGUF file with the reference tokenizer.

The tokenizer is not made from the file: a GGUF file has no normalizer and no pre-tokenizer, so its ids are not always exact.
"""

import re
from pathlib import Path
from typing import Final

from llama_endpoints.checkpoints.gguf_file import GgufFile
from llama_serving.errors import SetupError
from llama_serving.llama_config import json_object
from llama_serving.prompts.tokenizer import Tokenizer

FILE: Final = "tokenizer.json"
_UNUSED: Final = 5  # gguf.TokenType.UNUSED
_PADDING: Final = re.compile(r"\[PAD\d+\]|<dummy\d+>")
"""What llama.cpp's converters write for rows of the embedding without a token."""


def check_tokens(file: GgufFile, folder: Path, vocab: int) -> Tokenizer:
    """Check that each id is the same token in the file and in `folder`/tokenizer.json, and return that tokenizer.

    Args:
        file: the GGUF file.
        folder: folder of the reference tokenizer.
        vocab: rows of the embedding.

    Raises:
        SetupError: they differ; the message names the first token that does.
    """
    if not (folder / FILE).is_file():
        raise SetupError(
            f"{folder} has no {FILE}. A GGUF file's own tokenizer does not give exact ids: download {FILE} of the model that "
            "the file was made from, and pass its folder as --tokenizer."
        )
    tokenizer = Tokenizer.from_folder(folder)
    tokens, reference = _tokens(file, vocab), _reference(folder)
    for number, token in enumerate(tokens):
        if (expected := reference.get(number)) is None:
            if not _is_padding(file, number, token):
                raise _differs(file, folder, number, token, None)
        elif _normal(token) != _normal(expected):
            raise _differs(file, folder, number, token, expected)
    beyond = [number for number in reference if number >= len(tokens)]
    if beyond:
        raise _differs(file, folder, min(beyond), None, reference[min(beyond)])
    return tokenizer


def _tokens(file: GgufFile, vocab: int) -> tuple[str, ...]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, tuple) or not all(isinstance(token, str) for token in tokens):
        raise SetupError(
            f"{file.path} has no tokenizer.ggml.tokens, so that no tokenizer can be compared with it. "
            "Use a file with its vocabulary."
        )
    if len(tokens) != vocab:
        raise SetupError(
            f"{file.path} has {len(tokens)} tokens for an embedding of {vocab} rows. Download it again."
        )
    return tokens


def _reference(folder: Path) -> dict[int, str]:
    """Return the tokens by id. Added tokens behind the vocabulary do not count: prompts never contain them."""
    layout = json_object(folder / FILE)
    found = {number: piece for piece, number in layout["model"]["vocab"].items()}
    size = len(found)
    added = {token["id"]: token["content"] for token in layout["added_tokens"]}
    return found | {number: content for number, content in added.items() if number < size}


def _is_padding(file: GgufFile, number: int, token: str) -> bool:
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    unused = isinstance(kinds, tuple) and number < len(kinds) and kinds[number] == _UNUSED
    return unused or _PADDING.fullmatch(token) is not None


def _normal(token: str) -> str:
    """Return a token with ▁ for spaces: the converters write some added tokens with spaces."""
    return token.replace(" ", "▁")


def _differs(file: GgufFile, folder: Path, number: int, ours: str | None, theirs: str | None) -> SetupError:
    here = "does not exist" if ours is None else f"is {ours[:40]!r}"
    there = "has none" if theirs is None else f"has {theirs[:40]!r}"
    return SetupError(
        f"Token {number} {here} in {file.path}, but {folder / FILE} {there}: they don't belong together. "
        f"Pass the folder with {FILE} of the model that the file was made from as --tokenizer."
    )
