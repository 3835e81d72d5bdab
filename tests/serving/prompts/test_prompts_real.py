"""Token ids of the real Llama tokenizers, against SentencePiece and Meta's reference formats.

The tokenizers may not be shipped with the project; without them these tests are skipped.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from typing import Final

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_serving.catalog import CATALOG, Fact, InfillOrder, ModelVariant
from llama_serving.contract.request import Completion, Dialog, Infill, Message
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.tokenizer import TextDecoder, Tokenizer
from tests.conftest import shared_tokenizer

BOS, EOS, PRE, SUF, MID, EOT, STEP = 1, 2, 32007, 32008, 32009, 32010, 32015
SPECIALS: Final = frozenset({0, BOS, EOS, PRE, SUF, MID, EOT, STEP, 32016})

SPECIAL_TEXTS: Final = (
    *("</s>", "<s>", "<unk>", "<step>", "<0x0A>", "<FILL_ME>", "<unused32015>", "[INST]", "[/INST]", "<<SYS>>"),
    *("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>", " <PRE>", " <SUF>", "<PRE>", "<MID>", "<EOT>"),
    *("a </s> b", "x<s>[INST] y", "\n▁<PRE> ▁<SUF>\n"),
)
CODE: Final = (
    *(
        "def fib(n):\n    if n < 2:\n        return n\n",
        "    return 1",
        "        pass\n",
        "\tif a:\n\t\tb = 1\n",
    ),
    *(
        "a\r\nb\r\n",
        "wave = '👋🏽👩\u200d💻' # ☺ é 漢字",
        "☺",
        " ☺",
        "",
        " ",
        "  ",
        "\n",
        "\n\n\n",
        "x ",
        "\x00",
        "a\x00b",
    ),
    *("import socket\n\ndef ping_exponential_backoff(host: str):", "x" * 300, " " * 100),
)

anything = st.text(st.characters(exclude_categories=["Cs"]))
codelike = st.text(st.sampled_from("ab  \n\t\r_(.)=<>/☺é🦙▁s0\x00"))


@cache
def loaded(name: str) -> Tokenizer:
    return Tokenizer.from_folder(shared_tokenizer(name))


@pytest.fixture(scope="module")
def oracle() -> sentencepiece.SentencePieceProcessor:
    """The tokenizer that Meta's own code uses."""
    return sentencepiece.SentencePieceProcessor(model_file=str(shared_tokenizer("llama-2.tokenizer.model")))


@pytest.fixture(scope="module", params=["codellama-7b", "codellama-34b"])
def real(request: pytest.FixtureRequest) -> Tokenizer:
    """Each of the real tokenizers: with the infilling pieces in its vocabulary, and without."""
    return loaded(request.param)


@pytest.fixture(scope="module")
def code_llama() -> Tokenizer:
    """The real tokenizer with the infilling pieces."""
    return loaded("codellama-7b")


def builder(tokenizer: Tokenizer, name: str, order: InfillOrder = InfillOrder.PSM) -> PromptBuilder:
    variant: ModelVariant = CATALOG[name]
    if variant.infill.value is not None:
        variant = replace(variant, infill=Fact(replace(variant.infill.value, order=order), "test"))
    return PromptBuilder(tokenizer, variant, context=16384)


# --- Meta's reference formats, over SentencePiece -------------------------------------------------


def reference_suffix(oracle: sentencepiece.SentencePieceProcessor, suffix: str) -> list[int]:
    ids: list[int] = oracle.encode("☺" + suffix)
    return ids[2:]


def reference_infill(
    oracle: sentencepiece.SentencePieceProcessor, prefix: str, suffix: str, order: InfillOrder
) -> list[int]:
    if order is InfillOrder.PSM:
        return [BOS, PRE, *oracle.encode(prefix), SUF, *reference_suffix(oracle, suffix), MID]
    return [BOS, PRE, SUF, *reference_suffix(oracle, suffix), MID, *oracle.encode(prefix)]


def reference_inst(oracle: sentencepiece.SentencePieceProcessor, turns: list[tuple[str, str]]) -> list[int]:
    if turns[0][0] == "system":
        folded = f"<<SYS>>\n{turns[0][1]}\n<</SYS>>\n\n{turns[1][1]}"
        turns = [("user", folded), *turns[2:]]
    ids: list[int] = []
    for (_, user), (_, assistant) in zip(turns[:-1:2], turns[1::2], strict=True):
        text = f"[INST] {user.strip()} [/INST] {assistant.strip()} "
        ids += [BOS, *oracle.encode(text), EOS]
    return [*ids, BOS, *oracle.encode(f"[INST] {turns[-1][1].strip()} [/INST]")]


def reference_source(oracle: sentencepiece.SentencePieceProcessor, turns: list[tuple[str, str]]) -> list[int]:
    if turns[0][0] != "system":
        turns = [("system", ""), *turns]
    ids = [BOS]
    for role, content in turns:
        ids += [*oracle.encode(f"Source: {role}\n\n {content.strip()}"), STEP]
    return [*ids, *oracle.encode("Source: assistant\nDestination: user\n\n ")]


# --- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*CODE, *SPECIAL_TEXTS], ids=repr)
def test_text_has_sentencepieces_ids(
    real: Tokenizer, oracle: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert real.encode(text) == oracle.encode(text)
    assert real.encode_continuation(text) == reference_suffix(oracle, text)


@settings(max_examples=300)
@given(text=anything | codelike)
def test_any_text_has_sentencepieces_ids(
    code_llama: Tokenizer, oracle: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    assert code_llama.encode(text) == oracle.encode(text)
    assert code_llama.encode_continuation(text) == reference_suffix(oracle, text)


@settings(max_examples=200)
@given(ids=st.lists(st.integers(259, 31999) | st.integers(3, 130), min_size=1, max_size=30))
def test_ids_decode_to_sentencepieces_text_with_the_leading_space(
    code_llama: Tokenizer, oracle: sentencepiece.SentencePieceProcessor, ids: list[int]
) -> None:
    decoder = TextDecoder(code_llama)
    text = "".join(map(decoder.push, ids)) + decoder.finish()
    marked = [*oracle.encode("☺"), *ids]  # SentencePiece drops one space at the front: let it be this one
    assert "☺" + text == oracle.decode(marked)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<s>[INST]", [529, 29879, 24566, 25580, 29962]),
        ("\n    return", [29871, 13, 1678, 736]),
        ("[INST]", [518, 25580, 29962]),
    ],
)
def test_known_ids(real: Tokenizer, text: str, ids: list[int]) -> None:
    """What transformers' own Llama tokenizer classes get wrong."""
    assert real.encode(text) == ids


# --- prompts --------------------------------------------------------------------------------------

DIALOGS: Final = {
    "one turn": [("user", "Sort a list.")],
    "white space": [("user", "  \n Sort a list. \t")],
    "code": [("user", "    def f(x):\n        pass\n")],
    "system": [("system", "Be brief."), ("user", "Sort a list.")],
    "system, spaces": [("system", "  Be brief. "), ("user", "    def f(x):\n        pass  ")],
    "empty system": [("system", ""), ("user", "Sort a list.")],
    "multi-turn": [("user", "a"), ("assistant", " b "), ("user", " c ")],
    "system, multi-turn": [
        *(("system", "s"), ("user", " a"), ("assistant", "b\n")),
        *(("user", "👋🏽"), ("assistant", ""), ("user", "</s> ☺")),
    ],
}


def dialog(turns: list[tuple[str, str]]) -> Dialog:
    return Dialog(tuple(Message(role, content) for role, content in turns))


@pytest.mark.parametrize("turns", DIALOGS.values(), ids=DIALOGS.keys())
@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        ("codellama-7b", "codellama/CodeLlama-7b-Instruct-hf"),
        ("codellama-7b", "codellama/CodeLlama-13b-Instruct-hf"),
        ("codellama-34b", "codellama/CodeLlama-34b-Instruct-hf"),
        ("codellama-34b", "meta-llama/Llama-2-70b-chat-hf"),
    ],
)
def test_dialogs_have_metas_ids(
    tokenizer: str, name: str, turns: list[tuple[str, str]], oracle: sentencepiece.SentencePieceProcessor
) -> None:
    real = loaded(tokenizer)
    assert list(builder(real, name).build(dialog(turns)).token_ids) == reference_inst(oracle, turns)


@pytest.mark.parametrize("turns", DIALOGS.values(), ids=DIALOGS.keys())
def test_dialogs_of_the_70b_have_metas_ids(
    turns: list[tuple[str, str]], code_llama: Tokenizer, oracle: sentencepiece.SentencePieceProcessor
) -> None:
    built = builder(code_llama, "codellama/CodeLlama-70b-Instruct-hf").build(dialog(turns))
    assert list(built.token_ids) == reference_source(oracle, turns)
    assert built.stop_ids == {EOS, STEP}


def test_the_70b_cards_reference_ids(code_llama: Tokenizer) -> None:
    turns = [
        *(("system", "System prompt "), ("user", "First user query")),
        *(("assistant", "Model response to first query"), ("user", "Second user query")),
    ]
    built = builder(code_llama, "codellama/CodeLlama-70b-Instruct-hf").build(dialog(turns))
    assert list(built.token_ids) == [
        *(1, 7562, 29901, 1788, 13, 13, 2184, 9508, 32015),
        *(7562, 29901, 1404, 13, 13, 3824, 1404, 2346, 32015),
        *(7562, 29901, 20255, 13, 13, 8125, 2933, 304, 937, 2346, 32015),
        *(7562, 29901, 1404, 13, 13, 6440, 1404, 2346, 32015),
        *(7562, 29901, 20255, 13, 14994, 3381, 29901, 1404, 13, 13, 29871),
    ]


INFILLS: Final = {
    "plain": ("def f(x):\n    return ", "\n\nprint(f(1))\n"),
    "leading spaces": ("    def f(x):\n        ", "    return x\n"),
    "tabs": ("\tif a:\n\t\t", "\t\treturn b\n"),
    "emoji": ("wave = '👋🏽", "' # 👩\u200d💻 ☺\n"),
    "smiley first": ("☺", "☺☺ x"),
    "crlf": ("def f():\r\n    ", "\r\n\r\nf()\r\n"),
    "empty prefix": ("", "return x\n"),
    "empty suffix": ("import os\n", ""),
    "special text": ("▁<PRE> </s>", " <MID>▁<EOT><FILL_ME>"),
}


@pytest.mark.parametrize(("prefix", "suffix"), INFILLS.values(), ids=INFILLS.keys())
@pytest.mark.parametrize("order", InfillOrder)
def test_infilling_has_metas_ids(
    order: InfillOrder,
    prefix: str,
    suffix: str,
    code_llama: Tokenizer,
    oracle: sentencepiece.SentencePieceProcessor,
) -> None:
    for name in ("codellama/CodeLlama-7b-hf", "codellama/CodeLlama-13b-Instruct-hf"):
        built = builder(code_llama, name, order).build(Infill(prefix, suffix))
        assert list(built.token_ids) == reference_infill(oracle, prefix, suffix, order)
        assert built.stop_ids == {EOS, EOT}


@settings(max_examples=100)
@given(prefix=codelike, suffix=codelike, order=st.sampled_from(InfillOrder))
def test_any_infilling_has_metas_ids(
    code_llama: Tokenizer,
    oracle: sentencepiece.SentencePieceProcessor,
    prefix: str,
    suffix: str,
    order: InfillOrder,
) -> None:
    built = builder(code_llama, "codellama/CodeLlama-7b-hf", order).build(Infill(prefix, suffix))
    assert list(built.token_ids) == reference_infill(oracle, prefix, suffix, order)


# --- special tokens are never text ----------------------------------------------------------------


@pytest.mark.parametrize("text", SPECIAL_TEXTS, ids=repr)
def test_special_text_stays_text(real: Tokenizer, text: str) -> None:
    for ids, front in ((real.encode(text), " "), (real.encode_continuation(text), "")):
        assert not SPECIALS & set(ids)
        assert b"".join(map(real.piece, ids)).decode() == front + text.replace("▁", " ")


@pytest.mark.parametrize("text", SPECIAL_TEXTS, ids=repr)
def test_prompts_hold_no_special_id_but_their_own(code_llama: Tokenizer, text: str) -> None:
    def specials(name: str, prompt: Completion | Dialog | Infill) -> list[int]:
        return [i for i in builder(code_llama, name).build(prompt).token_ids if i in SPECIALS]

    assert specials("codellama/CodeLlama-7b-hf", Completion(text)) == [BOS]
    assert specials("codellama/CodeLlama-7b-hf", Infill(text, text)) == [BOS, PRE, SUF, MID]
    if not any(marker in text for marker in ("INST", "SYS", "step")):  # (a dialog refuses those)
        assert specials("codellama/CodeLlama-7b-Instruct-hf", dialog([("user", text)])) == [BOS]


def test_byte_pieces_are_not_text(code_llama: Tokenizer) -> None:
    assert 13 not in code_llama.encode("<0x0A>")
    assert code_llama.encode("\n")[-1] == 13


def test_special_tokens_have_no_text(code_llama: Tokenizer) -> None:
    assert all(code_llama.piece(i) == b"" for i in SPECIALS - {STEP})  # (<step> is the 70B's alone)
    assert [code_llama.special_id(f"▁<{name}>") for name in ("PRE", "SUF", "MID", "EOT")] == [
        PRE,
        SUF,
        MID,
        EOT,
    ]


# --- no state -------------------------------------------------------------------------------------


def test_infilling_changes_nothing_that_comes_after(code_llama: Tokenizer) -> None:
    texts = [*CODE, *SPECIAL_TEXTS]
    infill = builder(code_llama, "codellama/CodeLlama-7b-hf")
    before = [code_llama.encode(text) for text in texts]
    for prefix, suffix in INFILLS.values():
        infill.build(Infill(prefix, suffix))
    assert [code_llama.encode(text) for text in texts] == before


def test_eight_threads_get_the_same_ids(code_llama: Tokenizer) -> None:
    texts = [*CODE, *SPECIAL_TEXTS]
    infill = builder(code_llama, "codellama/CodeLlama-7b-hf")

    def ids_of(text: str) -> tuple[list[int], list[int], tuple[int, ...]]:
        infilling = infill.build(Infill(text, text)).token_ids
        return code_llama.encode(text), code_llama.encode_continuation(text), infilling

    expected = [ids_of(text) for text in texts]
    together = threading.Barrier(8)

    def work(offset: int) -> int:
        together.wait()
        done = 0
        for number in range(500):
            at = (number * 7 + offset) % len(texts)
            assert ids_of(texts[at]) == expected[at]
            done += 1
        return done

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(work, range(8))) == 4000
