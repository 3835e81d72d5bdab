"""Prompts of completion, token ids and infilling, the context's limit, and refusals."""

from dataclasses import replace
from typing import Final

import pytest

from llama_serving.catalog import CATALOG, NANO, ModelVariant
from llama_serving.contract.request import (
    Completion,
    Dialog,
    Infill,
    Input,
    Message,
    Parameters,
    ReplyShape,
    Request,
    TokenIds,
)
from llama_serving.errors import BadRequest
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.tokenizer import Tokenizer

NO_INFILL: Final = [row for row in CATALOG.values() if row.infill.value is None]


class Watched(Tokenizer):
    """Nano's tokenizer, which counts how often it is asked to encode."""

    calls = 0

    def encode(self, text: str) -> list[int]:
        self.calls += 1
        return super().encode(text)


@pytest.fixture
def watched(nano_tokenizer: Tokenizer) -> Watched:
    tokenizer = Watched(nano_tokenizer._model, nano_tokenizer._specials)
    tokenizer.calls = 0
    return tokenizer


@pytest.fixture(scope="module")
def builder(nano_tokenizer: Tokenizer) -> PromptBuilder:
    return PromptBuilder(nano_tokenizer, NANO, context=64)


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", " ", "\n", "    x", "[INST] a [/INST]", "<step>", "</s>", "\x00"])
def test_a_completion_is_bos_and_its_text(builder: PromptBuilder, nano_tokenizer: Tokenizer, text: str) -> None:
    prompt = builder.build(Completion(text))
    assert prompt.token_ids == (1, *nano_tokenizer.encode(text))
    assert (prompt.text, prompt.before, prompt.after) == (text, text, "")
    assert prompt.stop_ids == {2}


# --- token ids ------------------------------------------------------------------------------------


def test_token_ids_are_taken_as_they_are(builder: PromptBuilder) -> None:
    ids = (5, 1, NANO.shape.vocab - 1, 0)
    assert builder.build(TokenIds(ids)).token_ids == ids


def test_the_text_of_token_ids_is_the_text_that_was_encoded(
    builder: PromptBuilder, nano_tokenizer: Tokenizer
) -> None:
    ids = (1, *nano_tokenizer.encode("  def f():\n"))
    assert builder.build(TokenIds(ids)).before == "  def f():\n"


@pytest.mark.parametrize("name", ["nano", "codellama/CodeLlama-7b-hf", "codellama/CodeLlama-7b-Python-hf"])
def test_token_ids_outside_the_vocabulary_are_refused(nano_tokenizer: Tokenizer, name: str) -> None:
    variant = CATALOG[name]
    vocab = variant.shape.vocab
    builder = PromptBuilder(nano_tokenizer, variant, context=64)
    assert builder.build(TokenIds((vocab - 1,))).token_ids == (vocab - 1,)
    with pytest.raises(BadRequest, match=f"token id {vocab} is outside .* 0 to {vocab - 1}") as refused:
        builder.build(TokenIds((1, vocab, vocab + 7)))
    assert refused.value.code == "invalid_value"


# --- infilling ------------------------------------------------------------------------------------


def test_infilling_stands_around_the_middle(builder: PromptBuilder, nano_tokenizer: Tokenizer) -> None:
    prompt = builder.build(Infill("  a = ", "\nb\n"))
    prefix, suffix = nano_tokenizer.encode("  a = "), nano_tokenizer.encode_continuation("\nb\n")
    tokens = NANO.infill.value
    assert tokens is not None
    assert prompt.token_ids == (1, tokens.prefix, tokens.suffix, *suffix, tokens.middle, *prefix)
    assert (prompt.before, prompt.after) == ("  a = ", "\nb\n")
    assert prompt.stop_ids == {2, tokens.eot}


@pytest.mark.parametrize("variant", NO_INFILL, ids=lambda row: row.name)
def test_infilling_is_refused_where_the_row_has_none(nano_tokenizer: Tokenizer, variant: ModelVariant) -> None:
    with pytest.raises(BadRequest) as refused:
        PromptBuilder(nano_tokenizer, variant, context=64).build(Infill("a", "b"))
    assert (refused.value.status, refused.value.code) == (400, "infilling_unsupported")
    assert variant.name in refused.value.message
    assert variant.infill.source in refused.value.message


# --- the context ----------------------------------------------------------------------------------


def test_a_prompt_that_leaves_one_token_fits(builder: PromptBuilder) -> None:
    assert len(builder.build(TokenIds((5,) * 63)).token_ids) == 63


@pytest.mark.parametrize("count", [64, 65, 500])
def test_a_prompt_that_leaves_no_token_is_refused_with_the_three_numbers(
    builder: PromptBuilder, count: int
) -> None:
    with pytest.raises(BadRequest, match=f"has {count} tokens, and 1 new token may follow") as refused:
        builder.build(TokenIds((5,) * count))
    assert refused.value.code == "context_exceeded"


def test_tokens_are_counted_with_the_special_ones(builder: PromptBuilder, nano_tokenizer: Tokenizer) -> None:
    text = "x = 1\n" * 12
    room = len(nano_tokenizer.encode(text))
    exact = replace(builder, context=room + 2)
    assert len(exact.build(Completion(text)).token_ids) == room + 1
    with pytest.raises(BadRequest, match=f"has {room + 1} tokens, and 1 new token may follow"):
        replace(builder, context=room + 1).build(Completion(text))


@pytest.mark.parametrize(
    "prompt",
    [
        Completion("x" * 5_000_000),
        Infill("x" * 5_000, ""),
        Infill("", "x" * 5_000),
        Dialog((Message("user", "x" * 5_000),)),
    ],
    ids=["completion", "prefix", "suffix", "dialog"],
)
def test_a_length_that_can_not_fit_is_refused_before_tokenizing(watched: Watched, prompt: Input) -> None:
    with pytest.raises(BadRequest, match=r"has at least \d+ tokens, and 1 new token may follow"):
        PromptBuilder(watched, NANO, context=64).build(prompt)
    assert watched.calls == 0


def test_a_length_that_may_fit_is_tokenized(watched: Watched) -> None:
    PromptBuilder(watched, NANO, context=64).build(Completion("x" * 20))
    assert watched.calls == 1


def test_the_lower_bound_refuses_nothing_that_fits(nano_tokenizer: Tokenizer) -> None:
    spaces = " " * (16 * 60)
    ids = PromptBuilder(nano_tokenizer, NANO, context=2000).build(Completion(spaces)).token_ids
    builder = PromptBuilder(nano_tokenizer, NANO, context=len(ids) + 1)
    assert builder.build(Completion(spaces)).token_ids == ids


# --- where it stood -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "param", "index"),
    [
        (("input_data[0]", "input_data[1]"), "input_data[1]", 1),
        (("a", "input_data.input_string"), "input_data.input_string", None),
    ],
)
def test_an_error_names_the_input_and_its_index(
    builder: PromptBuilder, paths: tuple[str, str], param: str, index: int | None
) -> None:
    inputs = (Completion("a"), Completion("x" * 9_999))
    request = Request(inputs, Parameters(), ReplyShape.TEXTS, paths, "parameters")
    assert builder.build_one(request, 0).text == "a"
    with pytest.raises(BadRequest) as refused:
        builder.build_one(request, 1)
    assert (refused.value.param, refused.value.index) == (param, index)
