"""What nano is measured with, and the trigram model that it must beat."""

import json
import lzma
import math
import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np
import pytest
import torch

from llama_endpoints.nano import FOLDER, evaluate
from llama_endpoints.nano.corpus import File
from llama_endpoints.nano.evaluate import Gap, Reader, Score, cut_at_dedent, gaps, headers, similarity
from llama_endpoints.nano.model import Angles, Nano
from llama_endpoints.nano.trigram import Trigram
from llama_serving.catalog import NANO
from llama_serving.prompts.tokenizer import Tokenizer
from tests.support.nano_texts import FOUND, MODULE, OTHER, decoded, tokenizer_of_training, trained

VOCAB: Final = NANO.shape.vocab


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizer_of_training()


@pytest.fixture(scope="module")
def nano() -> Nano:
    return trained()


@pytest.mark.parametrize(
    ("completion", "body"),
    [
        ("    a\n    b\n", "    a\n    b\n"),
        ("    a\n\n    b\nx = 1\n    c\n", "    a\n\n    b\n"),
        ("    a", "    a"),
        ("\ta\n  \nb", "\ta\n  \n"),
        ("x = 1\n    a\n", ""),
        ("", ""),
    ],
)
def test_a_body_ends_at_the_dedent(completion: str, body: str) -> None:
    assert cut_at_dedent(completion) == body


HEADER: Final = 'def f(x):\n    """Says."""\n'


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("    return x\n", True),
        ("    return x\n\n\ndef (:\n", True),
        ("    return (x\n", False),
        ("  return x\n", False),
        ("return x\n", False),
        ("\n\n", False),
        ("", False),
    ],
)
def test_a_function_parses_with_a_body_of_its_own(completion: str, expected: bool) -> None:
    assert evaluate.parses(HEADER, completion) is expected


def test_similarity_is_of_the_lines_without_indentation() -> None:
    assert similarity("    return x", "return x\n") == 1
    assert similarity("abc", "xyz") == 0
    assert similarity("return first", "return second") == pytest.approx(2 * 9 / 25, abs=0.1)
    assert similarity("a" * 300 + "b", "a" * 300) > 0.99, "no letter is too frequent to count"


def test_headers_end_with_the_docstring() -> None:
    assert headers([File("a", "a", MODULE)]) == [
        FOUND[: FOUND.index("    return")],
        OTHER[: OTHER.index("    return")],
    ]


def test_a_gap_is_one_place_of_a_file() -> None:
    files = [File("a", "a", MODULE), File("b", "b", FOUND)]
    found = list(islice(gaps(files, random.Random(3)), 200))
    for gap in found:
        assert any(gap.prefix + gap.line + gap.suffix in file.text for file in files)
        assert "\n" not in gap.line + gap.other
        assert len(gap.line.strip()) >= evaluate.SHORTEST
        assert any({gap.line, gap.other} <= set(file.text.split("\n")) for file in files)
        assert gap.suffix[0] == "\n"
        assert gap.prefix == "" or gap.prefix[-1] == "\n"
        assert max(len(gap.prefix), len(gap.suffix)) <= evaluate.AROUND
    assert max(len(gap.prefix) for gap in found) == evaluate.AROUND
    assert {"", "def found(values):\n"} <= {gap.prefix for gap in found}
    assert sum(gap.line == gap.other for gap in found) < len(found) / 2


def test_xz_is_lzmas_over_all_files() -> None:
    files = [File("a", "a", MODULE), File("a", "b", FOUND + "é")]
    text = (MODULE + FOUND + "é").encode()
    packed = lzma.compress(text, preset=lzma.PRESET_EXTREME | 9)
    assert evaluate.xz_bits_per_byte(files) == pytest.approx(8 * len(packed) / len(text))


def reader_of(logits: Callable[..., torch.Tensor]) -> Reader:
    """A reader of another model."""
    reader = object.__new__(Reader)
    reader._model = cast("Any", SimpleNamespace(logits=logits))
    reader._angles = Angles.of(evaluate.WINDOW)
    return reader


@pytest.mark.parametrize("count", [2, 8, 32, 33, 34, 57, 58, 200])
def test_each_id_costs_its_bits_once_with_enough_before_it(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(evaluate, "WINDOW", 32)
    monkeypatch.setattr(evaluate, "SEEN", 8)
    ids = [number % 4 for number in range(count)]

    def even(window: torch.Tensor, angles: Angles) -> torch.Tensor:
        assert len(angles.cos) == window.shape[1] <= 32
        return torch.zeros(*window.shape, 4)

    windows = []

    def the_next(window: torch.Tensor, angles: Angles) -> torch.Tensor:
        # Knows what comes, but for the first places of a window that is not the first of the text.
        logits = 50 * torch.nn.functional.one_hot((window + 1) % 4, 4).float()
        logits[:, : 7 if windows else 0] = 0
        windows.append(window)
        return logits

    assert reader_of(even).bits(ids) == pytest.approx(2 * (count - 1))
    assert reader_of(the_next).bits(ids) == pytest.approx(0, abs=1e-3)
    assert (len(windows) > 1) == (count > 33)


def test_a_readers_bits_are_the_models(nano: Nano, tokenizer: Tokenizer) -> None:
    file = File("a", "a", FOUND)
    ids = evaluate.ids_of(file, tokenizer)
    assert (ids[0], ids[-1], decoded(tokenizer, ids)) == (NANO.bos_id, NANO.eos_id, " " + FOUND)
    with torch.inference_mode():
        loss = nano(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]), Angles.of(len(ids) - 1))
    bits = float(loss) * (len(ids) - 1) / math.log(2)
    reader = Reader(FOLDER)
    assert reader.bits(ids) == pytest.approx(bits, rel=1e-4)
    assert evaluate.bits_per_byte(reader.bits, [file, file], tokenizer) == pytest.approx(
        bits / len(FOUND), rel=1e-4
    )


def test_the_figures_are_written_beside_the_model_and_into_its_card(tmp_path: Path) -> None:
    card = f"# card\n\n{evaluate.BEGIN}\nold\n{evaluate.END}\n\nmore\n"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    scores = {"nano": Score(1.25, 0.5, 0.25, 0.125, 0.75), "`xz -9e`": Score(bits_per_byte=2.0)}
    for _ in range(2):
        evaluate.write(tmp_path, scores, {"files": 3})
    written = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert written == f"# card\n\n{evaluate.BEGIN}\n{evaluate.table(scores)}\n{evaluate.END}\n\nmore\n"
    assert "| bits per byte | 1.250 | 2.000 |" in written
    assert "| functions that parse | 50.0 % | – |" in written
    figures = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["counts"] == {"files": 3}
    assert figures["scores"]["nano"]["similarity"] == 0.75
    assert figures["scores"]["xz -9e"]["parses"] is None


def test_what_is_filled_in_is_compared_without_indentation() -> None:
    holes = [Gap("", "    a = 1", "", "b"), Gap("", "return value", "", "b")]
    assert evaluate._infilled(holes, ["a = 1", "xyz"])["exact"] == 0.5
    assert 0.5 <= evaluate._infilled(holes, ["a = 1", "xyz"])["similarity"] < 0.7


@pytest.fixture(scope="module")
def trigram() -> Trigram:
    numbers = np.random.default_rng(5)
    return Trigram(np.minimum(numbers.geometric(0.2, 3_000), 40).astype(np.int64))


@pytest.mark.parametrize(
    "context",
    [
        pytest.param((), id="nothing before"),
        pytest.param((1, 2), id="seen"),
        pytest.param((3999, 2), id="the last id seen"),
        pytest.param((1, 3999), id="nothing seen"),
    ],
)
def test_probabilities_sum_to_one(trigram: Trigram, context: tuple[int, ...]) -> None:
    before = trigram.bits(np.array(context)) if context else 0.0
    bits = np.array([trigram.bits(np.array([*(context or (1,)), token])) - before for token in range(VOCAB)])
    assert (bits > 0).all()
    assert float((2.0**-bits).sum()) == pytest.approx(1, abs=1e-6)


def test_what_was_seen_more_often_costs_less() -> None:
    trigram = Trigram(np.array([1, 2, 3] * 5 + [1, 2, 4] + [9, 5, 6]))
    cost = [trigram.bits(np.array([1, 2, token])) - trigram.bits(np.array([1, 2])) for token in (3, 4, 5, 99)]
    assert cost == sorted(cost)
    assert len(set(cost)) == 4


def test_the_likeliest_follows() -> None:
    trigram = Trigram(np.array([8, 2, 5] * 4 + [1, 2, 3, 1, 2, 3, 1, 2, 4] + [7] * 20))
    following = {
        context: next(trigram.continuation(np.array(context))) for context in ((1, 2), (9, 2), (9, 99))
    }
    assert following == {(1, 2): 3, (9, 2): 5, (9, 99): 7}
    assert list(islice(trigram.continuation(np.array([0, 1, 2])), 4)) == [3, 1, 2, 3]
