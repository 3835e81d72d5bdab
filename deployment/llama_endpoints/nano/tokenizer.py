"""Nano's tokenizer: `python -m llama_endpoints.nano.tokenizer` trains it on the training files.

BPE in the form the hub uses for Llama: no pre-tokenizer, byte fallback, ▁ for a space. Only the training restricts what may
merge: it splits text into words first.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from llama_endpoints.nano import corpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE: Final = Path(__file__).resolve().parent
FILE: Final = HERE / "tokenizer.json"

# The vocabulary, in this order: controls | bytes | merged pieces | single characters | specials.
VOCAB_SIZE: Final = 4096
UNK, BOS, EOS = CONTROLS = ("<unk>", "<s>", "</s>")
BYTES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPECIALS: Final = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<step>")
RESERVED: Final = (*CONTROLS, *BYTES, *SPECIALS)
SPACE: Final = "▁"
# Infilling prepends a ☺ to the suffix and removes its tokens again, so it must never merge.
SMILEY: Final = "☺"
CHARACTERS: Final = (SPACE, *map(chr, range(0x21, 0x7F)), SMILEY)

# What one piece may span: a run of spaces (indentation), a word with one space or symbol before it, symbols, or a digit.
# Everything else (newlines, tabs, non-ASCII) is bytes, as in Llama.
WORD: Final = re.compile(r"▁{2,}|[▁!-/:-@\[-^`{-~]?[A-Za-z]+|▁?[0-9]|▁?[!-/:-@\[-^_`{-~]+|▁")
MAX_PIECE: Final = 16

SAMPLE: Final = 30_000_000
"""Characters to train on; more changes next to nothing."""


def words() -> Iterator[str]:
    """Yield each training file's words, separated by blanks, so that no merge crosses a word."""
    files = corpus.load("train")
    random.Random(0).shuffle(files)
    size = 0
    for file in files:
        size += len(file.text)
        if size > SAMPLE:
            return
        yield " ".join(WORD.findall(file.text.replace(" ", SPACE)))


def learn_merges() -> tuple[list[str], list[str]]:
    """Train the merges. Return the merged pieces in order, and the merges that form them."""
    count = VOCAB_SIZE - len(RESERVED)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=count,
        initial_alphabet=list(CHARACTERS),
        limit_alphabet=len(CHARACTERS),
        max_token_length=MAX_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(words(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return pieces[len(CHARACTERS) :], [" ".join(pair) for pair in model["merges"]]


def tokenizer_spec(pieces: Sequence[str], merges: Sequence[str]) -> dict[str, Any]:
    """Return the vocabulary in the hub's form for Llama, without a pre-tokenizer."""
    tokens = (*CONTROLS, *BYTES, *pieces, *CHARACTERS, *SPECIALS)
    vocab = {token: index for index, token in enumerate(tokens)}
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": vocab[token],
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token in (*CONTROLS, *SPECIALS)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                bos,
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": BOS, "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {BOS: {"id": BOS, "ids": [vocab[BOS]], "tokens": [BOS]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": UNK,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": list(merges),
        },
    }


SAMPLES: Final = (
    *("", " ", "x", " x", "  x", "a  b   c\x00", "\n\n", "☺☺ ☺"),
    *("    return 1", "        pass\n", "\tif a:\r\n\t\tb = 'ü'\r\n"),
    "def f():\n    if x:\n        if y:\n            return ☺ + '👩\u200d💻'\n",
    *RESERVED,
    *(f"x {token}y" for token in RESERVED),
)


def check_vocabulary(vocab: dict[str, int], merges: Sequence[str]) -> None:
    """Raise ValueError if a piece is missing or a merge forms a reserved piece."""
    if list(vocab.values()) != list(range(VOCAB_SIZE)):
        raise ValueError(f"the vocabulary's ids must be 0 to {VOCAB_SIZE - 1}, in order")
    if made := {merge.replace(" ", "") for merge in merges} & set(RESERVED):
        raise ValueError(f"merges must not spell reserved tokens, these do: {sorted(made)}")
    if any(SMILEY in merge for merge in merges):
        raise ValueError(f"{SMILEY} must be a piece that nothing merges with")


def check_text(spec: dict[str, Any]) -> None:
    """Raise ValueError unless text round-trips and never becomes a special token.

    Special-token parsing is off, as in prompts. Llama's form makes one change: a literal ▁ comes back as a space.
    """
    tokenizer = Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))
    special = {token["id"] for token in spec["added_tokens"]}
    vocab = spec["model"]["vocab"]

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    marker = encode(SMILEY)
    for sample in SAMPLES:
        ids, marked = encode(sample), encode(SMILEY + sample)
        expected = sample.replace(SPACE, " ")
        if tokenizer.decode(ids) != expected:
            raise ValueError(f"does not come back unchanged: {sample!r}")
        if special & set(ids):
            raise ValueError(f"turns into a special token: {sample!r}")
        if marked[: len(marker)] != marker or tokenizer.decode(marked) != SMILEY + expected:
            raise ValueError(f"does not survive a {SMILEY} before it: {sample!r}")
    for width in (4, 8, 12):
        if encode("\n" + " " * width + "x")[2:-1] != [vocab[SPACE * width]]:
            raise ValueError(f"{width} spaces of indentation must be one piece")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the tokenizer, check it and write it."""
    parser = argparse.ArgumentParser(description="Learn nano's tokenizer from the training files.")
    parser.add_argument("--output", type=Path, default=FILE, metavar="FILE", help="default: %(default)s")
    output = parser.parse_args(arguments).output
    spec = tokenizer_spec(*learn_merges())
    check_vocabulary(spec["model"]["vocab"], spec["model"]["merges"])
    check_text(spec)
    output.write_text(json.dumps(spec, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{output}: {VOCAB_SIZE:,} pieces\n")


if __name__ == "__main__":
    main()
