"""nano's tokenizer, and the documents that it is taught with."""

import json
import random
from typing import Any, Final, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.nano import FOLDER, documents
from llama_endpoints.nano import tokenizer as learning
from llama_endpoints.nano.corpus import File
from llama_endpoints.nano.documents import (
    EXCERPT,
    STEP_ID,
    DocumentBuilder,
    Function,
    excerpts,
    functions,
    request_for,
    span,
)
from llama_serving.catalog import NANO
from llama_serving.prompts.tokenizer import Tokenizer
from tests.support.nano_texts import FOUND, MODULE, OTHER, decoded, tokenizer_of_training

INFILL: Final = NANO.infill.value
assert INFILL is not None


def test_the_committed_tokenizer_passes_its_own_checks() -> None:
    spec = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    pieces = list(vocab)[len(learning.CONTROLS) + 256 : -len(learning.CHARACTERS) - len(learning.SPECIALS)]
    assert learning.tokenizer_spec(pieces, merges) == spec
    learning.check_vocabulary(vocab, merges)
    learning.check_text(spec)
    with pytest.raises(ValueError, match="must not spell reserved"):
        learning.check_vocabulary(vocab, [*merges, "</ s>"])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of_training()


def test_every_document_begins_and_ends_as_it_should(tokenizer: Tokenizer) -> None:
    made: dict[int, int] = {}
    for seed in range(12):
        for ids in DocumentBuilder(tokenizer, random.Random(seed)).documents(MODULE):
            assert (ids[0], ids.count(NANO.bos_id)) == (NANO.bos_id, 1)
            end = INFILL.eot if INFILL.middle in ids else STEP_ID if STEP_ID in ids else NANO.eos_id
            assert ids[-1] == end
            ends = {NANO.eos_id, INFILL.eot, STEP_ID} if end != STEP_ID else {NANO.eos_id, INFILL.eot}
            assert not ends & set(ids[:-1])
            made[end] = made.get(end, 0) + 1
    assert set(made) == {NANO.eos_id, INFILL.eot, STEP_ID}


def test_an_infilling_document_is_the_excerpt_in_another_order(tokenizer: Tokenizer) -> None:
    orders = []
    for seed in range(40):
        ids = DocumentBuilder(tokenizer, random.Random(seed)).infilling(FOUND)
        assert [ids.count(i) for i in (INFILL.prefix, INFILL.suffix, INFILL.middle, INFILL.eot)] == [1] * 4
        assert (ids[1], ids[-1]) == (INFILL.prefix, INFILL.eot)
        suf, mid = ids.index(INFILL.suffix), ids.index(INFILL.middle)
        first, suffix, last = (
            decoded(tokenizer, part) for part in (ids[2:suf], ids[suf + 1 : mid], ids[mid + 1 : -1])
        )
        if suf > 2:  # prefix first; the family's space stands before it
            assert first[0] == " "
            assert first[1:] + last + suffix == FOUND
        else:
            assert last.removeprefix(" ") + suffix == FOUND
        orders.append(suf > 2)
    assert 10 < sum(orders) < 40


def test_a_function_is_shown_alone_and_as_an_answer(tokenizer: Tokenizer) -> None:
    function = Function("found", FOUND, "Returns the sum of the values.")
    texts = [
        decoded(tokenizer, DocumentBuilder(tokenizer, random.Random(seed)).function(function))
        for seed in range(40)
    ]
    assert all(FOUND.rstrip() in text for text in texts)
    assert " " + FOUND in texts
    fenced = [text for text in texts if "[/INST] ```python\n" in text]
    sourced = [text for text in texts if text.lstrip().startswith("Source:")]
    asked_plainly = [text for text in texts if "unction to return the sum" in text and "```" not in text]
    assert fenced
    assert sourced
    assert asked_plainly


def fixed(kind: float, seed: int) -> random.Random:
    """Random numbers, but for the kind of span."""
    rng = random.Random(seed)
    cast("Any", rng).random = lambda: kind
    return rng


texts = st.text("ab \n", min_size=1, max_size=60)


@given(text=texts | st.text(min_size=1), seed=st.integers(0, 2**32))
def test_a_span_lies_within_its_text(text: str, seed: int) -> None:
    start, end = span(text, random.Random(seed))
    assert 0 <= start <= end <= len(text)


@given(text=texts, seed=st.integers(0, 2**32))
def test_a_span_is_a_line_or_lines_or_the_rest_of_one(text: str, seed: int) -> None:
    begins = {0, *(i + 1 for i, c in enumerate(text) if c == "\n")}
    line_ends = {len(text), *(i for i, c in enumerate(text) if c == "\n")}
    start, end = span(text, fixed(0.1, seed))
    assert start in begins
    assert end in line_ends
    assert "\n" not in text[start:end]
    start, end = span(text, fixed(0.4, seed))
    assert start in begins
    assert end in {*begins, len(text)}
    assert 1 <= len(text[start:end].split("\n")) <= 9
    start, end = span(text, fixed(0.6, seed))
    assert end in line_ends
    assert "\n" not in text[start:end]


def test_spans_are_of_every_kind_and_everywhere() -> None:
    spans = [span(MODULE, random.Random(seed)) for seed in range(300)]
    middles = [MODULE[start:end] for start, end in spans]
    lines = set(MODULE.split("\n"))
    assert sum(middle in lines for middle in middles) > 60
    assert sum(middle.endswith("\n") for middle in middles) > 40
    assert sum(MODULE[start - 1] != "\n" for start, _ in spans if start) > 60
    assert min(start for start, _ in spans) < 100
    assert max(end for _, end in spans) > len(MODULE) - 100


def test_only_plain_documented_functions_of_the_top_level_are_found() -> None:
    assert list(functions(MODULE)) == [
        Function("found", FOUND, "Returns the sum of the values."),
        Function("other", OTHER, "Joins two texts with a comma."),
    ]


def test_a_request_has_the_docstrings_words() -> None:
    seen = {
        request_for(Function("f", "", "Returns the sum of the values."), random.Random(seed))
        for seed in range(60)
    }
    assert seen == {ask.format("return the sum of the values") for ask in documents.REQUESTS}
    assert (
        request_for(Function("f", "", "Zero or one."), random.Random(0))
        == "Write a Python function f: Zero or one"
    )


@pytest.mark.parametrize("seed", range(5))
def test_excerpts_are_the_text(seed: int) -> None:
    text = MODULE * 8 + "last = 1"
    pieces = list(excerpts(text, random.Random(seed)))
    together = "".join(pieces)
    assert text.startswith(together)
    assert len(text) - len(together) < EXCERPT[0]
    longest = max(map(len, text.splitlines(keepends=True)))
    assert all(EXCERPT[0] <= len(piece) < EXCERPT[1] + longest for piece in pieces)
    assert all(piece.endswith("\n") for piece in pieces[:-1])
    assert max(map(len, pieces)) > 2 * min(map(len, pieces))


def test_documents_come_again_in_the_same_order(tokenizer: Tokenizer) -> None:
    files = [File("a", str(number), MODULE.replace("values", name)) for number, name in enumerate("abc")]
    made = list(documents.token_row(files, 10**9, tokenizer))
    assert made == list(documents.token_row(files, 10**9, tokenizer))
    assert len(made) >= 3 * 3
