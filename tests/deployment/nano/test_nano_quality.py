"""What the shipped nano must be able to do, measured on packages that it never saw: those held out that lie here.

A small part of `python -m llama_endpoints.nano.evaluate`, which measures the same on all of them.
"""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Final

import pytest

from llama_endpoints.nano import FOLDER, corpus, evaluate
from llama_endpoints.nano.corpus import NOT_TAKEN, File
from llama_endpoints.nano.evaluate import Gap, Reader, completions, similarity
from llama_serving.contract import azure
from llama_serving.contract.request import Generation
from llama_serving.service.service import Service

FILES: Final = 40
LARGEST: Final = 8_000
"""Bytes of a file that is read: many small ones say more than a few large ones, in the same time."""
FUNCTIONS: Final = 20
LINES: Final = 24
DEDENTS: Final = ["\ndef ", "\nclass ", "\n@", "\nif ", "\n#", "\nfor "]
"""What follows a function. It is cut off anyway, so nobody has to wait for it."""


@pytest.fixture(scope="module")
def held_out() -> list[File]:
    """The files of the held-out packages that are installed, in the version that was held out."""
    found = []
    for row in corpus.sources():
        if row.split != "held_out":
            continue
        try:
            installed = metadata.distribution(row.package)
        except metadata.PackageNotFoundError:
            continue
        if installed.version != row.version:
            continue
        for path in sorted(map(str, installed.files or ())):
            if path.endswith(".py") and not NOT_TAKEN.search(path):
                text = corpus.readable(Path(str(installed.locate_file(path))).read_bytes())
                if text is not None:
                    found.append(File(row.package, path, text))
    if len(found) < FILES:
        pytest.skip("no held-out package is installed here in the version that was held out")
    return found


@pytest.fixture(scope="module")
def heads(held_out: list[File]) -> list[str]:
    return random.Random(2).sample(evaluate.headers(held_out), FUNCTIONS)


@pytest.fixture(scope="module")
def holes(held_out: list[File]) -> list[Gap]:
    return list(islice(evaluate.gaps(held_out, random.Random(3)), LINES))


def test_unseen_files_take_fewer_bits_than_xz_needs(held_out: list[File], service: Service) -> None:
    small = [file for file in held_out if len(file.text) <= LARGEST]
    files = random.Random(1).sample(small, FILES)
    bits = evaluate.bits_per_byte(Reader(FOLDER).bits, files, service.tokenizer)
    assert bits < 0.85 * evaluate.xz_bits_per_byte(files)


def test_unseen_functions_are_completed_with_python(heads: list[str], service: Service) -> None:
    parameters = {"max_new_tokens": evaluate.NEW_TOKENS, "stop": DEDENTS}
    texts = [text for text, _ in completions(service, heads, parameters)]
    parsed = [evaluate.parses(head, text) for head, text in zip(heads, texts, strict=True)]
    assert sum(parsed) >= 0.7 * FUNCTIONS


def test_unseen_lines_are_filled_in_better_than_by_chance(holes: list[Gap], service: Service) -> None:
    parameters = {"max_new_tokens": 64, "stop": "\n"}
    ends = [{"prefix": hole.prefix, "suffix": hole.suffix} for hole in holes]
    filled = [text for text, _ in completions(service, ends, parameters)]
    reached = [similarity(hole.line, line) for hole, line in zip(holes, filled, strict=True)]
    by_chance = [similarity(hole.line, hole.other) for hole in holes]
    assert sum(reached) > sum(by_chance)


def test_the_cards_request_is_answered_with_functions_that_end_by_themselves(
    root: Path, service: Service
) -> None:
    body = json.loads((root / "yaml/online/samples/completion.json").read_text(encoding="utf-8"))

    def answer(seed: int) -> Generation:
        parameters = {**body["input_data"]["parameters"], "seed": seed}
        asked = azure.parse({"input_data": {**body["input_data"], "parameters": parameters}})
        ((generation,),) = service.generate(asked)
        return generation

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(answer, range(12)))
    assert all(answer.text.strip().startswith("def ") for answer in answers)
    assert sum(answer.finish_reason == "stop" for answer in answers) >= 7
    assert sum(corpus.parses(answer.text.strip()) for answer in answers) >= 4
