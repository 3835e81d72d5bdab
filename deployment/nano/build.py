"""Write the nano model's files: `python -m deployment.nano.build [--output DIR] [--tokenizer]`.

The model has Code Llama's shape in miniature and random weights: it exists so that every path
through the project (loading, prompts, engines, servers, packaging) runs without a download. Nothing
here depends on the clock, the machine or a hash seed, so two runs give the same bytes.

The tokenizer is learned from the standard library's sources, which differ between Python versions:
the committed `tokenizer.json` is the truth, and only `--tokenizer` learns it anew.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HERE: Final = Path(__file__).resolve().parent

# --- the vocabulary: controls | bytes | merged pieces | single characters | specials --------------

VOCAB_SIZE: Final = 1024
UNK, BOS, EOS = CONTROLS = ("<unk>", "<s>", "</s>")
BYTES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))
SPECIALS: Final = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", "<step>")
RESERVED: Final = (*CONTROLS, *BYTES, *SPECIALS)
SPACE: Final = "▁"
# Infilling puts a ☺ before the suffix and cuts its tokens off again: it must merge with nothing.
SMILEY: Final = "☺"
CHARACTERS: Final = (SPACE, *map(chr, range(0x21, 0x7F)), SMILEY)

# What one piece may span: a run of spaces (indentation), or a word or symbols with the one space
# before them, or a digit. All else (newlines, tabs, what is not ASCII) is bytes, as in Llama.
WORD: Final = re.compile(r"▁{2,}|▁?[A-Za-z_]+|▁?[0-9]|▁?[!-/:-@\[-^`{-~]+|▁")
MAX_PIECE: Final = 16

CORPUS: Final = """
    abc argparse ast base64 bdb bisect calendar cmd codecs configparser contextlib copy csv
    dataclasses datetime difflib dis doctest enum fileinput fnmatch fractions ftplib functools
    gettext graphlib gzip heapq imaplib inspect ipaddress linecache locale mailbox mimetypes
    netrc ntpath optparse os pdb pickle platform plistlib posixpath pprint queue random sched
    selectors shlex shutil smtplib socket statistics string subprocess tarfile tempfile textwrap
    threading tokenize traceback typing uuid warnings weakref zipfile
""".split()  # noqa: SIM905 - 67 lines of one word each would bury the rest

# --- the model ------------------------------------------------------------------------------------

SEED: Final = 2024
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dtype": "float32",
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 176,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "tie_word_embeddings": True,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
GENERATION_CONFIG: Final = {"bos_token_id": 1, "eos_token_id": 2}
TOKENIZER_CONFIG: Final = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": BOS,
    "eos_token": EOS,
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": UNK,
}

# Standard deviations, times sqrt(fan-in) for the matrices. An embedding of 0.375 gives logits of
# about 3 (hidden size 64, final norm 1), so that the two best lie clearly apart. Layers that
# outweigh the embedding, with sharp attention, keep greedy decoding from repeating one token.
EMBEDDING_STD: Final = 0.375
GAINS: Final = {
    "self_attn.q_proj": 2.0,
    "self_attn.k_proj": 2.0,
    "self_attn.v_proj": 2.0,
    "self_attn.o_proj": 2.0,
    "mlp.gate_proj": 1.0,
    "mlp.up_proj": 1.0,
    "mlp.down_proj": 2.0,
}
# Embeddings are tied: a short row is a token that is hardly ever predicted.
QUIET: Final = 0.1
NEVER_QUIET: Final = (EOS, "<0x0A>")


def corpus() -> Iterator[str]:
    """Yield each module's pieces-to-be, separated by blanks, so that no merge crosses a word."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    for name in CORPUS:
        source = (stdlib / f"{name}.py").read_text(encoding="utf-8")
        yield " ".join(WORD.findall(source.replace(" ", SPACE)))


def learn_merges() -> tuple[list[str], list[str]]:
    """Learn the merged pieces, in the order of their making, and the merges that make them."""
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
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return pieces[len(CHARACTERS) :], [" ".join(pair) for pair in model["merges"]]


def tokenizer_spec(pieces: Sequence[str], merges: Sequence[str]) -> dict[str, Any]:
    """Lay the vocabulary out in the form that the hub ships for Llama: no pre-tokenizer at all."""
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
    """Raise ValueError where a piece is missing or a merge makes what it must not."""
    if list(vocab.values()) != list(range(VOCAB_SIZE)):
        raise ValueError(f"the vocabulary's ids must be 0 to {VOCAB_SIZE - 1}, in order")
    if made := {merge.replace(" ", "") for merge in merges} & set(RESERVED):
        raise ValueError(f"merges must not spell reserved tokens, these do: {sorted(made)}")
    if any(SMILEY in merge for merge in merges):
        raise ValueError(f"{SMILEY} must be a piece that nothing merges with")


def check_text(spec: dict[str, Any]) -> None:
    """Raise ValueError unless text comes back unchanged and never turns into a special token.

    Special-token parsing is off, as the prompts have it. That a literal ▁ comes back as a space is
    the one change that Llama's form makes.
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


def tokenizer_json(*, learn: bool) -> str:
    """Return the committed tokenizer, or learn it where that is asked for or none is there."""
    committed = HERE / "tokenizer.json"
    if learn or not committed.exists():
        spec = tokenizer_spec(*learn_merges())
    else:
        spec = json.loads(committed.read_text(encoding="utf-8"))
    check_vocabulary(spec["model"]["vocab"], spec["model"]["merges"])
    check_text(spec)
    return as_json(spec)


def random_matrix(generator: torch.Generator, rows: int, columns: int, std: float) -> torch.Tensor:
    """Draw uniformly: unlike normal draws, that gives the same bits on every machine."""
    bound = std * 3**0.5
    return torch.rand(rows, columns, generator=generator) * (2 * bound) - bound


def random_embedding(generator: torch.Generator, vocab: dict[str, int]) -> torch.Tensor:
    """Draw the embedding, with short rows for all that should hardly ever be predicted."""
    embedding = random_matrix(generator, VOCAB_SIZE, CONFIG["hidden_size"], EMBEDDING_STD)
    quiet = [vocab[token] for token in RESERVED if token not in NEVER_QUIET]
    embedding[quiet] *= QUIET
    return embedding


def projection_shapes() -> dict[str, tuple[int, int]]:
    """Give each projection of a layer its (outputs, inputs), as CONFIG implies them."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    queries = CONFIG["num_attention_heads"] * CONFIG["head_dim"]
    keys = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def random_weights(vocab: dict[str, int]) -> dict[str, torch.Tensor]:
    """Draw all weights under the hub's names; lm_head is the embedding and has none of its own."""
    generator = torch.Generator().manual_seed(SEED)
    ones = torch.ones(CONFIG["hidden_size"])
    weights = {"model.embed_tokens.weight": random_embedding(generator, vocab)}
    for index in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, (outputs, inputs) in projection_shapes().items():
            std = GAINS[name] / inputs**0.5
            weights[f"{layer}.{name}.weight"] = random_matrix(generator, outputs, inputs, std)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}.{name}.weight"] = ones.clone()
    weights["model.norm.weight"] = ones.clone()
    return weights


def as_json(value: object) -> str:
    """Render JSON as the hub has it: indented, with pieces readable."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def model_files(*, learn_tokenizer: bool) -> dict[str, bytes]:
    """Build every file of the model in memory: nothing is written unless all of it is good."""
    tokenizer = tokenizer_json(learn=learn_tokenizer)
    weights = random_weights(json.loads(tokenizer)["model"]["vocab"])
    return {
        "README.md": (HERE / "README.md").read_bytes(),
        "config.json": as_json(CONFIG).encode(),
        "generation_config.json": as_json(GENERATION_CONFIG).encode(),
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "tokenizer.json": tokenizer.encode(),
        "tokenizer_config.json": as_json(TOKENIZER_CONFIG).encode(),
    }


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the file, then rename over it: a reader never sees half of one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the model and write its files into one folder."""
    parser = argparse.ArgumentParser(description="Write the nano model's files.")
    parser.add_argument("--output", type=Path, default=HERE, metavar="DIR", help="default: here")
    parser.add_argument("--tokenizer", action="store_true", help="learn the tokenizer anew")
    options = parser.parse_args(arguments)
    files = model_files(learn_tokenizer=options.tokenizer)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(options.output / name, content)
        sys.stdout.write(f"{len(content):>9,}  {options.output / name}\n")


if __name__ == "__main__":
    main()
