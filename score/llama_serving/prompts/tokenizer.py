"""The family's tokenizer, read from `tokenizer.json` and used as pure functions.

transformers' Llama tokenizer classes are not used: they rebuild the pipeline with another normalizer, parse special tokens
in user text, and change state after an infilling call. `tokenizers` gives the reference's ids once the added tokens are
removed, and then no text can become a special token.
"""

import codecs
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import tokenizers

from llama_serving.errors import SetupError

_BYTE_PIECE: Final = re.compile(r"<0x([0-9A-F]{2})>")
_BYTE_PIECES: Final = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_NOT_OURS: Final = (
    "is not one of the Llama family: text does not survive it. It needs BPE with byte fallback and ▁ for space."
)
_GUARD: Final = "☺"
"""Precedes a suffix while it is encoded, to take the dummy space (as in Meta's reference)."""


class Tokenizer:
    """Text -> ids and id -> bytes. Immutable, and safe to share between threads."""

    def __init__(self, model: tokenizers.Tokenizer, specials: Mapping[str, int]) -> None:
        # tokenizers keeps each text's ids, 10,000 texts in each thread and 4 kB each; nothing else frees them. Our texts are whole
        # prompts, which seldom come again.
        model.model._resize_cache(0)  # noqa: SLF001  (only its constructor has it documented)
        self._model = model
        self._specials = dict(specials)
        self._names = {token_id: content for content, token_id in specials.items()}
        vocab = model.get_vocab(with_added_tokens=False)
        if not vocab.keys() >= _BYTE_PIECES:
            raise SetupError(f"tokenizer.json {_NOT_OURS}")
        self._pieces = _pieces(vocab, frozenset(specials.values()))
        self._guard = self.encode(_GUARD)
        self.max_piece_chars = max(len(piece.decode("utf-8", "replace")) for piece in self._pieces.values())
        self._probe()

    @classmethod
    def from_folder(cls, folder: Path, special_ids: frozenset[int] = frozenset()) -> "Tokenizer":
        """Load the tokenizer of a checkpoint.

        Args:
            folder: of its `tokenizer.json`.
            special_ids: ids that never stand for text, even if the file does not say so.

        Raises:
            SetupError: there is no `tokenizer.json`, or it is of another family.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise SetupError(
                f"{folder} has no tokenizer.json. tokenizer.model alone gives other token ids; "
                "download tokenizer.json from the model's hub page."
            )
        try:
            layout = json.loads(path.read_text(encoding="utf-8"))
            specials = {token["content"]: token["id"] for token in layout["added_tokens"]}
            specials |= {piece: i for piece, i in layout["model"]["vocab"].items() if i in special_ids}
            model = tokenizers.Tokenizer.from_str(json.dumps(_without_specials(layout, frozenset(specials))))
        except Exception as error:  # tokenizers raises bare Exception
            raise SetupError(f"{path} can't be read as a tokenizer ({error!r}). Download it again.") from error
        return cls(model, specials)

    @property
    def size(self) -> int:
        """Number of pieces, including special ones inside the model's vocabulary."""
        return self._model.get_vocab_size(with_added_tokens=False)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` with the family's dummy space in front; all of it is read as text."""
        return list(self._model.encode(text, add_special_tokens=False).ids)

    def encode_continuation(self, text: str) -> list[int]:
        """Return the ids of `text` without the dummy space, for text that continues other text."""
        return self.encode(_GUARD + text)[len(self._guard) :]

    def special_id(self, content: str) -> int | None:
        """Return the id of an added token such as `▁<PRE>`, or None."""
        return self._specials.get(content)

    def piece(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to the text; special tokens add none."""
        return self._pieces.get(token_id, b"")

    def name(self, token_id: int) -> str:
        """Return a token's name in the vocabulary, such as `▁def`; empty if it has none."""
        return self._names.get(token_id) or self._model.id_to_token(token_id) or ""

    def pieces(self, vocab: int) -> list[bytes]:
        """Return `piece` of each id of a model with so many."""
        return [self.piece(token_id) for token_id in range(vocab)]

    def fewest_tokens(self, characters: int) -> int:
        """Return a lower bound of the tokens that this many characters take."""
        return -(-characters // self.max_piece_chars)

    def _probe(self) -> None:
        sample = "  F(x²)\t# é🦙\r\n"
        for ids, expected in (
            (self.encode(sample), " " + sample),
            (self.encode_continuation(sample), sample),
        ):
            if b"".join(map(self.piece, ids)).decode("utf-8", "replace") != expected:
                raise SetupError(f"tokenizer.json {_NOT_OURS}")


class TextDecoder:
    """Decodes the ids of one sequence as they come; strips nothing and holds back incomplete characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that is complete after this token; empty while a character is incomplete."""
        return self._utf8.decode(self._tokenizer.piece(token_id))

    @property
    def pending(self) -> bool:
        """Whether a character is incomplete."""
        return bool(self._utf8.getstate()[0])

    def finish(self) -> str:
        """Return U+FFFD for an incomplete character at the end, else nothing."""
        return self._utf8.decode(b"", final=True)


def _without_specials(layout: dict[str, Any], specials: frozenset[str]) -> dict[str, Any]:
    """Return the same pipeline without special tokens, truncation and padding."""
    model = layout["model"]
    merges = [merge for merge in model["merges"] if _product(merge) not in specials]
    # `dropout` draws at random; `ignore_merges` looks whole texts up in the vocabulary, special ones too.
    exact = {**model, "merges": merges, "dropout": None, "ignore_merges": False}
    off: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return {**layout, **off, "model": exact}


def _product(merge: str | list[str]) -> str:
    return "".join(merge.split(" ", 1) if isinstance(merge, str) else merge)


def _pieces(vocab: Mapping[str, int], specials: frozenset[int]) -> dict[int, bytes]:
    return {number: _bytes_of(piece) for piece, number in vocab.items() if number not in specials}


def _bytes_of(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()
