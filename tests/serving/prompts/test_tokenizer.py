"""The tokenizer as functions: text survives it, streaming changes nothing, damaged files are refused."""

import ctypes
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.errors import SetupError
from llama_serving.prompts.tokenizer import TextDecoder, Tokenizer

VOCAB: Final = NANO.shape.vocab
SPECIALS: Final = (0, 1, 2, *range(VOCAB - 5, VOCAB))
LOST: Final = "▁"
"""The one character that Llama's form gives back as another: a space."""

anything = st.text(st.characters(exclude_categories=["Cs"]))
codelike = st.text(st.sampled_from("ab  \n\t\r_(.)=<>/s☺é🦙▁x0\x00"))
special = st.sampled_from(["</s>", "<s>", "<unk>", "▁<PRE>", " <MID>", "<step>", "<0x0A>", "[INST]", "☺"])
texts = st.lists(anything | codelike | special, max_size=5).map("".join)
id_lists = st.lists(st.integers(0, VOCAB - 1), max_size=40)


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    return b"".join(map(tokenizer.piece, ids)).decode("utf-8", "replace")


# --- text in, the same text out -------------------------------------------------------------------


@given(text=texts)
def test_text_comes_back_behind_one_space(nano_tokenizer: Tokenizer, text: str) -> None:
    back = decoded(nano_tokenizer, nano_tokenizer.encode(text))
    assert back == (" " + text.replace(LOST, " ") if text else "")


@given(text=texts)
def test_a_continuation_comes_back_exactly(nano_tokenizer: Tokenizer, text: str) -> None:
    ids = nano_tokenizer.encode_continuation(text)
    assert decoded(nano_tokenizer, ids) == text.replace(LOST, " ")


@given(text=texts)
def test_text_is_never_a_special_token(nano_tokenizer: Tokenizer, text: str) -> None:
    assert not {*SPECIALS} & {*nano_tokenizer.encode(text), *nano_tokenizer.encode_continuation(text)}


@given(text=texts | st.integers(0, 200).map(lambda n: " " * n))
def test_fewest_tokens_is_a_lower_bound(nano_tokenizer: Tokenizer, text: str) -> None:
    assert nano_tokenizer.fewest_tokens(len(text)) <= len(nano_tokenizer.encode(text))
    assert nano_tokenizer.fewest_tokens(len(text)) <= len(nano_tokenizer.encode_continuation(text))


def test_fewest_tokens_is_near_where_pieces_are_long(nano_tokenizer: Tokenizer) -> None:
    spaces = " " * 1600
    assert nano_tokenizer.fewest_tokens(len(spaces)) * 2 > len(nano_tokenizer.encode(spaces))


def test_special_tokens_have_ids_and_no_text(nano_tokenizer: Tokenizer) -> None:
    infill = NANO.infill.value
    assert infill is not None
    ids = [nano_tokenizer.special_id(f"▁<{name}>") for name in ("PRE", "SUF", "MID", "EOT")]
    assert ids == [infill.prefix, infill.suffix, infill.middle, infill.eot] == [*SPECIALS[-5:-1]]
    assert nano_tokenizer.special_id("<step>") == SPECIALS[-1]
    assert nano_tokenizer.special_id("<PRE>") is None
    assert {nano_tokenizer.piece(i) for i in (*SPECIALS, VOCAB, -1)} == {b""}
    assert nano_tokenizer.piece(13) == b"\n"
    assert nano_tokenizer.size == VOCAB


# --- streaming ------------------------------------------------------------------------------------


@given(ids=id_lists)
def test_streamed_text_is_the_whole_text(nano_tokenizer: Tokenizer, ids: list[int]) -> None:
    decoder = TextDecoder(nano_tokenizer)
    assert "".join(map(decoder.push, ids)) + decoder.finish() == decoded(nano_tokenizer, ids)


@given(text=texts)
def test_no_half_character_is_let_out(nano_tokenizer: Tokenizer, text: str) -> None:
    decoder, shown = TextDecoder(nano_tokenizer), ""
    whole = " " + text.replace(LOST, " ")
    for token in nano_tokenizer.encode(text):
        shown += decoder.push(token)
        assert whole.startswith(shown)
    assert decoder.finish() == ""


def test_an_incomplete_character_is_held_back(nano_tokenizer: Tokenizer) -> None:
    first, second, third, fourth = nano_tokenizer.encode_continuation("🦙")
    decoder = TextDecoder(nano_tokenizer)
    assert [decoder.push(i) for i in (first, second, third)] == ["", "", ""]
    assert decoder.push(fourth) == "🦙"
    assert [decoder.push(i) for i in (first, second)] == ["", ""]
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_special_token_does_not_break_a_character(nano_tokenizer: Tokenizer) -> None:
    first, second = nano_tokenizer.encode_continuation("é")
    decoder = TextDecoder(nano_tokenizer)
    assert [decoder.push(i) for i in (first, 1, second)] == ["", "", "é"]


@pytest.mark.parametrize("text", [" x", "    return 1", "  ", "\n  x", "\t x"])
def test_leading_spaces_are_kept(nano_tokenizer: Tokenizer, text: str) -> None:
    decoder = TextDecoder(nano_tokenizer)
    assert "".join(map(decoder.push, nano_tokenizer.encode_continuation(text))) == text


# --- files that are not what they should be -------------------------------------------------------

Layout = dict[str, Any]


@pytest.fixture
def layout() -> Layout:
    """Nano's `tokenizer.json`, to be damaged."""
    loaded: Layout = json.loads((NANO_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    return loaded


def written(folder: Path, content: bytes | Layout) -> Path:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "tokenizer.json").write_bytes(raw)
    return folder


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"added_tokens": []}',
        b'{"added_tokens": [{}], "model": {}}',
        b"\xff\xfe{\x00}\x00",
        (NANO_FOLDER / "tokenizer.json").read_bytes()[:30_000],
    ],
    ids=repr,
)
def test_a_damaged_file_is_a_setup_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SetupError, match=r"tokenizer\.json can't be read as a tokenizer"):
        Tokenizer.from_folder(written(tmp_path, content))


@pytest.mark.parametrize("make", [lambda _: None, lambda path: path.mkdir()], ids=["nothing", "folder"])
def test_no_file_is_a_setup_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "tokenizer.json")
    with pytest.raises(SetupError, match=r"has no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def _no_model(layout: Layout) -> None:
    layout["model"] = {**layout["model"], "vocab": {"<unk>": 0}, "merges": []}


def _no_normalizer(layout: Layout) -> None:
    layout["normalizer"] = None


def _no_dummy_space(layout: Layout) -> None:
    layout["normalizer"]["normalizers"].pop(0)


def _lowercase(layout: Layout) -> None:
    layout["normalizer"]["normalizers"].append({"type": "Lowercase"})


def _compatible(layout: Layout) -> None:
    layout["normalizer"]["normalizers"].append({"type": "NFKC"})


def _stripped(layout: Layout) -> None:
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    layout["normalizer"]["normalizers"].insert(0, strip)


def _without_a_byte(layout: Layout) -> None:
    vocab = layout["model"]["vocab"]
    vocab["<gone>"] = vocab.pop("<0x80>")


def _byte_level(layout: Layout) -> None:
    layout["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def _no_byte_fallback(layout: Layout) -> None:
    layout["model"]["byte_fallback"] = False


@pytest.mark.parametrize(
    "damage",
    [
        *(_no_model, _without_a_byte, _byte_level, _no_byte_fallback),
        *(_no_normalizer, _no_dummy_space, _lowercase, _compatible, _stripped),
    ],
)
def test_another_familys_tokenizer_is_a_setup_error(
    tmp_path: Path, layout: Layout, damage: Callable[[Layout], None]
) -> None:
    damage(layout)
    with pytest.raises(SetupError, match="not one of the Llama family"):
        Tokenizer.from_folder(written(tmp_path, layout))


def _truncates(layout: Layout) -> None:
    layout["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


def _pads(layout: Layout) -> None:
    layout["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<unk>",
    }


def _drops_merges(layout: Layout) -> None:
    layout["model"]["dropout"] = 0.9


def _looks_whole_texts_up(layout: Layout) -> None:
    layout["model"]["ignore_merges"] = True


def _merges_spell_a_special_token(layout: Layout) -> None:
    layout["model"]["vocab"]["s>"] = VOCAB
    layout["model"]["merges"] = ["s >", "< s>", *layout["model"]["merges"]]


@pytest.mark.parametrize("setting", [_truncates, _pads, _drops_merges, _looks_whole_texts_up])
def test_what_a_file_sets_beside_the_model_changes_no_ids(
    tmp_path: Path, layout: Layout, nano_tokenizer: Tokenizer, setting: Callable[[Layout], None]
) -> None:
    setting(layout)
    changed = Tokenizer.from_folder(written(tmp_path, layout))
    for text in ("def fibonacci(number):\n    return number\n", "<PRE>", " <PRE>", "x"):
        assert changed.encode(text) == nano_tokenizer.encode(text)


def test_merges_that_spell_a_special_token_are_left_out(tmp_path: Path, layout: Layout) -> None:
    _merges_spell_a_special_token(layout)
    changed = Tokenizer.from_folder(written(tmp_path, layout))
    assert 1 not in changed.encode_continuation("<s>")
    assert VOCAB in changed.encode_continuation("s>")
    assert decoded(changed, changed.encode_continuation("<s>")) == "<s>"


def test_merges_may_be_pairs(tmp_path: Path, layout: Layout, nano_tokenizer: Tokenizer) -> None:
    """The newer of the two spellings that `tokenizers` writes."""
    pairs = [merge.split(" ", 1) for merge in layout["model"]["merges"]]
    layout["model"]["merges"] = pairs
    changed = Tokenizer.from_folder(written(tmp_path, layout))
    assert changed.encode("def f(x):\n    return x") == nano_tokenizer.encode("def f(x):\n    return x")


# --- memory ---------------------------------------------------------------------------------------


class Allocated(ctypes.Structure):
    """glibc's `struct mallinfo2`: ten sizes."""

    _fields_ = (("sizes", ctypes.c_size_t * 10),)


def allocated() -> int:
    """Bytes that malloc has given and not taken back: in its arenas, and in mappings of their own."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Allocated
    sizes = mallinfo().sizes
    return int(sizes[7] + sizes[4])


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="not glibc")
def test_a_thread_that_encodes_keeps_nothing_of_the_texts(nano_tokenizer: Tokenizer) -> None:
    def encode() -> int:
        nano_tokenizer.encode("the first text of a thread")
        before = allocated()
        for number in range(1000):
            nano_tokenizer.encode(
                f"def f{number}(x):\n    return x + {number}  # and so on, until it is a hundred characters long"
            )
        return allocated() - before

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(encode).result() < 500_000  # a cache would have 4 MB
