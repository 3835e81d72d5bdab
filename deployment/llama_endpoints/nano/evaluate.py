"""Evaluate nano on the held-out packages: `python -m llama_endpoints.nano.evaluate`.

The shipped files of this folder are measured through the serving code and the wire contract. The table goes into the model
card, all figures into `evaluation.json`.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import lzma
import random
import re
import sys
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812  (the conventional name)
from tqdm import tqdm

from llama_endpoints.nano import corpus
from llama_endpoints.nano.documents import FUNCTION
from llama_endpoints.nano.model import Angles, Nano
from llama_endpoints.nano.trigram import Trigram
from llama_serving.catalog import NANO
from llama_serving.contract import azure
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.service.service import Service
from llama_serving.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

HERE: Final = Path(__file__).resolve().parent
SEED: Final = 7
WINDOW: Final = 2048
SEEN: Final = 512
"""Tokens at the start of each further window that serve as context only."""
NEW_TOKENS: Final = 256
TOGETHER: Final = 16
AROUND: Final = 1200
"""Characters of context before and after a line to fill in."""
SHORTEST: Final = 8
"""The least characters of such a line."""
BEGIN, END = "<!-- evaluation -->", "<!-- /evaluation -->"


@dataclass(frozen=True, slots=True)
class Gap:
    """A held-out line and its context.

    Attributes:
        other: a random line of the same file.
    """

    prefix: str
    line: str
    suffix: str
    other: str


@dataclass(frozen=True, slots=True)
class Score:
    """The results of one contestant; None where a measure does not apply."""

    bits_per_byte: float | None = None
    parses: float | None = None
    stops: float | None = None
    exact: float | None = None
    similarity: float | None = None


def headers(files: Sequence[corpus.File]) -> list[str]:
    """Return the functions up to the end of their docstrings: those at the top level, with a body, of the length in nano's training."""
    return [header for file in files for header in _headers(file.text)]


def _headers(text: str) -> Iterator[str]:
    lines = text.split("\n")
    for node in corpus.tree(text).body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list or ast.get_docstring(node) is None:
            continue
        size = sum(len(line) + 1 for line in lines[node.lineno - 1 : node.end_lineno])
        if len(node.body) > 1 and node.body[0].lineno > node.lineno and FUNCTION[0] <= size <= FUNCTION[1]:
            yield "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]) + "\n"


def gaps(files: Sequence[corpus.File], rng: random.Random) -> Iterator[Gap]:
    """Yield lines of code of random files, without end."""
    while True:
        text = rng.choice(files).text
        lines = text.split("\n")
        code = [
            i
            for i, line in enumerate(lines)
            if len(line.strip()) >= SHORTEST and not line.strip().startswith("#")
        ]
        if len(code) > 1:
            at, other = rng.sample(code, 2)
            prefix, suffix = "\n".join(lines[:at]), "\n".join(lines[at + 1 :])
            yield Gap(f"{prefix}\n"[-AROUND:] if at else "", lines[at], f"\n{suffix}"[:AROUND], lines[other])


def cut_at_dedent(completion: str) -> str:
    """Return a function's body: up to the first line that is not indented."""
    body = re.match(r"(?:[ \t]+[^\n]*(?:\n|$)|[ \t]*\n)*", completion)
    return body[0] if body else ""


def parses(header: str, completion: str) -> bool:
    """Whether the function is valid Python and has a body after its docstring."""
    text = header + cut_at_dedent(completion)
    if not corpus.parses(text):
        return False
    (function,) = corpus.tree(text).body
    return isinstance(function, ast.FunctionDef) and not all(isinstance(s, ast.Pass) for s in function.body[1:])


def similarity(one: str, other: str) -> float:
    """Return the similarity of two lines: 1 if equal, 0 if they have nothing in common."""
    return difflib.SequenceMatcher(None, one.strip(), other.strip(), autojunk=False).ratio()


def xz_bits_per_byte(files: Sequence[corpus.File]) -> float:
    """Return the size of the concatenated files under `xz -9e`."""
    text = "".join(file.text for file in files).encode()
    return 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)


def ids_of(file: corpus.File, tokenizer: Tokenizer) -> list[int]:
    """Return a file's ids including the end token, which must be predicted too."""
    return [NANO.bos_id, *tokenizer.encode(file.text), NANO.eos_id]


class Reader:
    """nano's probabilities, by the training code's forward pass in fp32."""

    def __init__(self, folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        self._model = Nano(torch.float32)
        self._model.load_state_dict({name.removeprefix("model."): w.float() for name, w in weights.items()})
        self._angles = Angles.of(WINDOW)

    @torch.inference_mode()
    def bits(self, ids: Sequence[int]) -> float:
        """Return the bits of all ids but the first; each has at least `SEEN` ids of context, if there are as many."""
        total, done = 0.0, 1
        while done < len(ids):
            start = max(0, done - SEEN)
            window = torch.tensor(ids[start : start + WINDOW + 1])
            angles = Angles(self._angles.cos[: len(window) - 1], self._angles.sin[: len(window) - 1])
            logits = self._model.logits(window[None, :-1], angles)[0]
            new = slice(done - 1 - start, None)
            total += float(F.cross_entropy(logits[new], window[1:][new], reduction="sum")) / float(np.log(2))
            done = start + len(window)
        return total


def bits_per_byte(
    bits: Callable[[list[int]], float], files: Sequence[corpus.File], tokenizer: Tokenizer
) -> float:
    """Return the average over all files, each read separately."""
    size = sum(len(file.text.encode()) for file in files)
    bar = tqdm(files, desc="bits per byte", unit=" files", leave=False)
    return sum(bits(ids_of(file, tokenizer)) for file in bar) / size


def completions(
    service: Service, prompts: Sequence[object], parameters: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield greedy answers through the wire contract: text and finish reason, `TOGETHER` prompts per request."""
    for first in tqdm(range(0, len(prompts), TOGETHER), desc="prompts", leave=False):
        some = list(prompts[first : first + TOGETHER])
        body = {"input_data": {"input_string": some, "parameters": {"do_sample": False, **parameters}}}
        for (generation,) in service.generate(azure.parse(body)):
            yield generation.text, generation.finish_reason


def nano_score(folder: Path, files: Sequence[corpus.File], heads: Sequence[str], holes: Sequence[Gap]) -> Score:
    """Measure nano."""
    tokenizer = Tokenizer.from_folder(folder, NANO.special_ids)
    bits = bits_per_byte(Reader(folder).bits, files, tokenizer)
    service = Service.start(ModelFiles(folder, NANO), Settings())
    try:
        functions = list(completions(service, heads, {"max_new_tokens": NEW_TOKENS}))
        ends = [{"prefix": hole.prefix, "suffix": hole.suffix} for hole in holes]
        lines = [text for text, _ in completions(service, ends, {"max_new_tokens": 64, "stop": "\n"})]
    finally:
        service.close()
    return Score(
        bits_per_byte=bits,
        parses=_share(parses(head, text) for head, (text, _) in zip(heads, functions, strict=True)),
        stops=_share(reason == "stop" for _, reason in functions),
        **_infilled(holes, lines),
    )


def trigram_score(
    files: Sequence[corpus.File],
    heads: Sequence[str],
    holes: Sequence[Gap],
    folder: Path,
    tokenizer: Tokenizer,
) -> Score:
    """Measure the trigram model, which uses only the preceding tokens."""
    row = np.fromfile(folder / "train.bin", dtype="<u2").astype(np.int64)
    trigram = Trigram(row)

    def complete(prompt: str, count: int) -> str:
        ids = np.array([NANO.bos_id, *tokenizer.encode(prompt)])
        pieces = (tokenizer.piece(i) for i in islice(trigram.continuation(ids), count))
        return b"".join(pieces).decode("utf-8", "replace")

    return Score(
        bits_per_byte=bits_per_byte(lambda ids: trigram.bits(np.array(ids)), files, tokenizer),
        parses=_share(parses(head, complete(head, NEW_TOKENS)) for head in heads),
        **_infilled(holes, [complete(hole.prefix, 64).split("\n", 1)[0] for hole in holes]),
    )


def _infilled(holes: Sequence[Gap], lines: Sequence[str]) -> dict[str, float]:
    pairs = list(zip(holes, lines, strict=True))
    return {
        "exact": _share(hole.line.strip() == line.strip() for hole, line in pairs),
        "similarity": sum(similarity(hole.line, line) for hole, line in pairs) / len(pairs),
    }


def _share(hits: Iterator[bool]) -> float:
    flags = list(hits)
    return sum(flags) / len(flags)


def table(scores: dict[str, Score]) -> str:
    """Return the table of the model card."""
    names = {
        "bits_per_byte": "bits per byte",
        "parses": "functions that parse",
        "stops": "functions that end by themselves",
        "exact": "lines filled in exactly",
        "similarity": "similarity of the lines filled in",
    }

    def cell(score: Score, name: str) -> str:
        value = getattr(score, name)
        if value is None:
            return "–"
        return f"{100 * value:.1f} %" if name in ("parses", "stops", "exact") else f"{value:.3f}"

    rows = [
        f"| {title} | " + " | ".join(cell(s, name) for s in scores.values()) + " |"
        for name, title in names.items()
    ]
    return "\n".join(["| | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores), *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the figures and the card's table."""
    parser = argparse.ArgumentParser(description="Measure nano on the held-out packages.")
    parser.add_argument(
        "--folder", type=Path, default=corpus.FOLDER, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--model", type=Path, default=HERE, metavar="DIR", help="default: the package's own folder"
    )
    parser.add_argument("--functions", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--lines", type=int, default=500, metavar="N", help="default: %(default)s")
    parser.add_argument("--files", type=int, metavar="N", help="read so many files; default: all")
    options = parser.parse_args(arguments)
    rng = random.Random(SEED)
    files = corpus.load("held_out", options.folder)
    read = rng.sample(files, options.files or len(files))
    heads = rng.sample(headers(files), options.functions)
    holes = list(islice(gaps(files, rng), options.lines))
    tokenizer = Tokenizer.from_folder(options.model, NANO.special_ids)
    scores = {
        "nano": nano_score(options.model, read, heads, holes),
        "trigram": trigram_score(read, heads, holes, options.folder, tokenizer),
        "`xz -9e`": Score(bits_per_byte=xz_bits_per_byte(read)),
        "random line": Score(**_infilled(holes, [hole.other for hole in holes])),
    }
    write(options.model, scores, {"files": len(read), "functions": len(heads), "lines": len(holes)})
    sys.stdout.write(table(scores) + "\n")


def write(folder: Path, scores: dict[str, Score], counts: dict[str, int]) -> None:
    """Write `evaluation.json`, and the table into the card if it exists."""
    figures = {"counts": counts, "scores": {name.strip("`"): asdict(score) for name, score in scores.items()}}
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    if card.exists():
        before, rest = card.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
        card.write_text(f"{before}{BEGIN}\n{table(scores)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
