"""Nano's training documents: `python -m llama_endpoints.nano.documents` turns the training files into one row of token ids.

Prompts are built by the serving code, so nano learns the ids it is served with. About half of the text is in infilling form.
Functions with a docstring are also shown alone, so that a request for one function ends after it.
"""

from __future__ import annotations

import argparse
import ast
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from tqdm import tqdm

from llama_endpoints.nano import corpus
from llama_serving.catalog import NANO, DialogFormat, InfillOrder
from llama_serving.contract.request import Completion, Dialog, Infill, Message
from llama_serving.prompts import chat, completion, infill
from llama_serving.prompts.segments import Segments, encode
from llama_serving.prompts.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

HERE: Final = Path(__file__).resolve().parent
SEED: Final = 2026
STEP_ID: Final = 4095

INFILLED: Final = 0.5
"""Share of files that become infilling documents; the others stay whole."""
EXCERPT: Final = (200, 2400)
"""Characters of an excerpt that becomes one infilling document."""
FUNCTION: Final = (60, 1600)
"""Characters of a function shown alone."""

SEPARATORS: Final = ("\n\n", "\n", ".\n\n")
"""The text between a request in words and the function."""
SHORT: Final = 500
"""The most characters of the functions in the last steps; their header is one line."""

_TOKENS = NANO.infill.value
assert _TOKENS is not None, "nano infills"
VARIANTS: Final = {
    order: replace(NANO, infill=replace(NANO.infill, value=replace(_TOKENS, order=order)))
    for order in InfillOrder
}
SOURCE_VARIANT: Final = replace(NANO, dialog=DialogFormat.SOURCE, step_id=STEP_ID)

REQUESTS: Final = (
    "Write a Python function to {}",
    "Develop a Python function to {}",
    "Write a function to {}",
    "Create a Python function to {}",
    "Implement a Python function to {}",
    "Please write a Python function to {}",
)
SYSTEMS: Final = (
    "You are a helpful coding assistant.",
    "Provide answers in Python.",
    "You write short, correct Python.",
    "Answer with code only.",
)
VERBS: Final = {
    "returns": "return", "gets": "get", "computes": "compute", "creates": "create", "makes": "make", "checks": "check",
    "converts": "convert", "yields": "yield", "builds": "build", "finds": "find", "adds": "add", "reads": "read",
    "writes": "write", "parses": "parse", "removes": "remove", "generates": "generate", "calculates": "calculate",
    "determines": "determine", "loads": "load", "sets": "set", "formats": "format", "sorts": "sort",
}  # fmt: skip


class DocumentBuilder:
    """Turns files into documents: lists of ids that begin with BOS and end with an end token."""

    def __init__(
        self, tokenizer: Tokenizer, rng: random.Random, separators: Sequence[str] = SEPARATORS
    ) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._separators = tuple(separators)

    def documents(self, text: str) -> Iterator[list[int]]:
        """Yield all documents of one file."""
        if self._rng.random() < INFILLED:
            yield from map(self.infilling, excerpts(text, self._rng))
        else:
            yield self._document(completion.segments(Completion(text), NANO), "", NANO.eos_id)
        yield from map(self.function, functions(text))

    def infilling(self, excerpt: str) -> list[int]:
        """Return an excerpt with a span moved to the end, prefix first or suffix first."""
        start, end = span(excerpt, self._rng)
        variant = VARIANTS[self._rng.choice(tuple(InfillOrder))]
        prompt = infill.segments(Infill(excerpt[:start], excerpt[end:]), variant)
        tokens = infill.tokens_of(variant)
        return [
            *encode(prompt, self._tokenizer),
            *self._tokenizer.encode_continuation(excerpt[start:end]),
            tokens.eot,
        ]

    def function(self, function: Function) -> list[int]:
        """Return a function alone, or as the answer to a request, in one of three forms."""
        way = self._rng.randrange(4)
        request = request_for(function, self._rng)
        if way == 0:
            return self._document(completion.segments(Completion(function.source), NANO), "", NANO.eos_id)
        if way == 1:
            separator = self._rng.choice(self._separators)
            return self._document(
                completion.segments(Completion(request + separator + function.source), NANO), "", NANO.eos_id
            )
        messages: tuple[Message, ...] = (Message("user", request),)
        if self._rng.random() < 0.3:
            messages = (Message("system", self._rng.choice(SYSTEMS)), *messages)
        answer = f"```python\n{function.source.rstrip()}\n```"
        if way == 2:
            return self._document(chat.segments(Dialog(messages), NANO), answer, NANO.eos_id)
        return self._document(chat.segments(Dialog(messages), SOURCE_VARIANT), answer, STEP_ID)

    def _document(self, prompt: Segments, answer: str, end: int) -> list[int]:
        answered = self._tokenizer.encode(answer) if answer else []
        return [*encode(prompt, self._tokenizer), *answered, end]


@dataclass(frozen=True, slots=True)
class Function:
    """A self-contained function.

    Attributes:
        source: its text, without indentation.
        summary: the first line of its docstring.
    """

    name: str
    source: str
    summary: str

    @property
    def simple(self) -> bool:
        """Whether it is short and public, with a header of one line."""
        header = self.source.split("\n", 1)[0]
        return len(self.source) <= SHORT and header.endswith(":") and not self.name.startswith("_")


def functions(text: str) -> Iterator[Function]:
    """Yield the functions of a file with a docstring and a suitable length; methods are excluded."""
    lines = text.split("\n")
    for node in corpus.tree(text).body:
        if not isinstance(node, ast.FunctionDef) or node.decorator_list:
            continue
        summary = (ast.get_docstring(node) or "").split("\n", 1)[0].strip()
        source = "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n"
        if summary and FUNCTION[0] <= len(source) <= FUNCTION[1]:
            yield Function(node.name, source, summary)


def request_for(function: Function, rng: random.Random) -> str:
    """Return a request that the function answers, in the words of its docstring."""
    summary = function.summary.rstrip(". ")
    first, _, rest = summary.partition(" ")
    verb = VERBS.get(first.lower(), first.lower())
    if verb in VERBS.values() and rest:
        return rng.choice(REQUESTS).format(f"{verb} {rest}")
    return f"Write a Python function {function.name}: {summary}"


def excerpts(text: str, rng: random.Random) -> Iterator[str]:
    """Cut the text between lines into pieces of very different lengths."""
    piece: list[str] = []
    size, least = 0, length(rng)
    for line in text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= least:
            yield "".join(piece)
            piece, size, least = [], 0, length(rng)
    if size >= EXCERPT[0]:
        yield "".join(piece)


def length(rng: random.Random) -> int:
    """Draw the characters of the next excerpt, uniform on a logarithmic scale."""
    low, high = EXCERPT
    return int(low * (high / low) ** rng.random())


def span(text: str, rng: random.Random) -> tuple[int, int]:
    """Draw the start and end of the middle: whole lines, the rest of a line, or anything (arXiv 2207.14255 sections 2 and 4)."""
    starts = [0, *(i + 1 for i, c in enumerate(text) if c == "\n")]
    starts = starts[:-1] if starts[-1] == len(text) else starts
    ends = [*starts[1:], len(text)]
    kind = rng.random()
    first = rng.randrange(len(starts))
    if kind < 0.3:  # one line without its newline
        return starts[first], ends[first] - text[starts[first] : ends[first]].endswith("\n")
    if kind < 0.5:  # some whole lines
        last = min(len(starts) - 1, first + rng.randrange(8))
        return starts[first], ends[last]
    if kind < 0.65:  # from the cursor to the end of its line
        end = ends[first] - text[starts[first] : ends[first]].endswith("\n")
        return rng.randint(starts[first], end), end
    start, end = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    return start, end


def token_row(files: Sequence[corpus.File], limit: int, tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield documents in random order up to `limit` tokens; deterministic for the same files."""
    rng = random.Random(SEED)
    order = list(files)
    rng.shuffle(order)
    builder = DocumentBuilder(tokenizer, rng)
    made = 0
    waiting: list[list[int]] = []
    for file in order:
        waiting.extend(builder.documents(file.text))
        # Documents of one file are not adjacent, or a window would see the answer before the question.
        while len(waiting) > 2000:
            at = rng.randrange(len(waiting))
            waiting[at], waiting[-1] = waiting[-1], waiting[at]
            made += len(waiting[-1])
            yield waiting.pop()
            if made >= limit:
                return
    rng.shuffle(waiting)
    yield from waiting


def last_row(files: Sequence[corpus.File], limit: int, tokenizer: Tokenizer) -> list[list[int]]:
    """Return documents for the last steps, in random order: half of the tokens are short functions, which are requested most.

    The other half are the last files in `token_row`'s order, which a training run seldom reaches.
    """
    rng = random.Random(SEED)
    order = list(files)
    rng.shuffle(order)
    builder = DocumentBuilder(tokenizer, rng, separators=SEPARATORS[:2])
    short = [function for file in order for function in functions(file.text) if function.simple]
    rng.shuffle(short)
    others = (document for file in reversed(order) for document in builder.documents(file.text))
    documents = [*_up_to(limit // 2, map(builder.function, short)), *_up_to(limit // 2, others)]
    rng.shuffle(documents)
    return documents


def _up_to(limit: int, documents: Iterable[list[int]]) -> Iterator[list[int]]:
    """Yield documents up to `limit` tokens."""
    made = 0
    for document in documents:
        yield document
        made += len(document)
        if made >= limit:
            return


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the training documents as a file of 16-bit ids."""
    parser = argparse.ArgumentParser(description="Turn nano's training files into token ids.")
    parser.add_argument(
        "--folder", type=Path, default=corpus.FOLDER, metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--tokens", type=int, default=64_000_000, metavar="N", help="stop there; default: %(default)s"
    )
    parser.add_argument(
        "--last-tokens",
        type=int,
        default=2_000_000,
        metavar="N",
        help="for the last steps; default: %(default)s",
    )
    options = parser.parse_args(arguments)
    tokenizer = Tokenizer.from_folder(HERE, NANO.special_ids | {STEP_ID})
    files = corpus.load("train", options.folder)
    path = options.folder / "train.bin"
    with (
        path.open("wb") as output,
        tqdm(total=options.tokens, unit=" tokens", unit_scale=True, disable=None) as bar,
    ):
        for document in token_row(files, options.tokens, tokenizer):
            output.write(np.array(document, dtype="<u2").tobytes())
            bar.update(len(document))
    sys.stdout.write(f"{path}: {path.stat().st_size // 2:,} tokens\n")
    last = options.folder / "last.bin"
    row = [i for document in last_row(files, options.last_tokens, tokenizer) for i in document]
    last.write_bytes(np.array(row, dtype="<u2").tobytes())
    sys.stdout.write(f"{last}: {len(row):,} tokens\n")


if __name__ == "__main__":
    main()
