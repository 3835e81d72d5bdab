"""Dialogs: refusals, base models, and whole prompts that are parsed."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_serving.catalog import CATALOG, NANO, ModelVariant
from llama_serving.contract.request import Completion, Dialog, Message
from llama_serving.errors import BadRequest
from llama_serving.prompts import chat, completion
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.chat import MARKERS
from llama_serving.prompts.segments import Segments, Special, Text
from llama_serving.prompts.tokenizer import Tokenizer

INST: Final = CATALOG["codellama/CodeLlama-7b-Instruct-hf"]
SOURCE: Final = CATALOG["codellama/CodeLlama-70b-Instruct-hf"]
BASES: Final = [row for row in CATALOG.values() if row.dialog is None]


def dialog(*turns: tuple[str, str], unfold: bool = False) -> Dialog:
    return Dialog(tuple(Message(role, content) for role, content in turns), unfold)


def texts(segments: Segments) -> list[str]:
    return [segment.text for segment in segments if isinstance(segment, Text)]


# --- markers --------------------------------------------------------------------------------------


def test_the_markers_are_the_contracts() -> None:
    assert set(MARKERS) == {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<step>", "</step>"}


@pytest.mark.parametrize("variant", [INST, SOURCE], ids=lambda row: row.name)
@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("marker", MARKERS)
def test_markers_inside_a_message_are_refused(marker: str, position: int, variant: ModelVariant) -> None:
    turns = [["system", "s"], ["user", "a secret"], ["assistant", "b"], ["user", "c"]]
    turns[position][1] += f" x{marker}y "
    with pytest.raises(BadRequest) as refused:
        chat.segments(dialog(*((role, content) for role, content in turns)), variant)
    assert refused.value.code == "invalid_dialog"
    assert marker in refused.value.message
    assert f"Message {position}" in refused.value.message
    assert "secret" not in refused.value.message


@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_in_what_the_assistant_said_is_text(marker: str) -> None:
    said = chat.segments(dialog(("user", "a"), ("assistant", f"b {marker}"), ("user", "c")), INST)
    assert f"[INST] a [/INST] b {marker} " in texts(said)


def test_the_assistants_last_message_is_continued() -> None:
    turns = [("system", "s"), ("user", " a "), ("assistant", " def f(\n  ")]
    inst = chat.segments(Dialog(tuple(Message(*one) for one in turns), continued=True), INST)
    assert texts(inst) == ["[INST] <<SYS>>\ns\n<</SYS>>\n\n a [/INST] def f(\n  "]
    source = chat.segments(Dialog(tuple(Message(*one) for one in turns), continued=True), SOURCE)
    assert texts(source)[-1] == "Source: assistant\nDestination: user\n\n def f(\n  "
    assert texts(source)[:-1] == ["Source: system\n\n s", "Source: user\n\n a"]


@pytest.mark.parametrize("text", ["[inst]", "[INST", "INST]", "<SYS>", "< step>", "</s>", "<s>", "[ INST ]"])
def test_what_only_looks_like_a_marker_passes(text: str) -> None:
    assert texts(chat.segments(dialog(("user", text)), INST)) == [f"[INST] {text} [/INST]"]


@given(
    turns=st.lists(
        st.sampled_from(["[IN", "ST]", "[/", "<<", "SYS>>", "<</", "<st", "ep>", "a"]), min_size=2, max_size=2
    )
)
def test_no_marker_arises_between_messages(turns: list[str]) -> None:
    system, user = turns
    (text,) = texts(chat.segments(dialog(("system", system), ("user", user)), INST))
    assert [text.count(marker) for marker in MARKERS] == [1, 1, 1, 1, 0, 0]


# --- models without a dialog format ---------------------------------------------------------------


@pytest.mark.parametrize("variant", BASES, ids=lambda row: row.name)
@pytest.mark.parametrize("text", ["  def f():\n", "[INST] x [/INST]", "<step>", " "])
@pytest.mark.parametrize("unfold", [False, True])
def test_one_user_message_to_a_base_model_is_a_completion_untouched(
    variant: ModelVariant, text: str, unfold: bool
) -> None:
    plain = completion.segments(Completion(text), variant)
    assert chat.segments(dialog(("user", text), unfold=unfold), variant) == plain


@pytest.mark.parametrize("variant", BASES, ids=lambda row: row.name)
@pytest.mark.parametrize(
    "turns",
    [
        [("system", "s"), ("user", "a")],
        [("user", "a"), ("assistant", "b"), ("user", "c")],
    ],
)
def test_a_longer_dialog_to_a_base_model_names_the_instruct_variant(
    variant: ModelVariant, turns: list[tuple[str, str]]
) -> None:
    assert variant.instruct is not None
    assert CATALOG[variant.instruct].dialog is not None
    with pytest.raises(BadRequest, match=f"Use {variant.instruct}") as refused:
        chat.segments(dialog(*turns), variant)
    assert (refused.value.status, refused.value.code) == (400, "dialog_unsupported")
    assert variant.name in refused.value.message


def test_a_model_without_an_instruct_variant_names_none() -> None:
    alone = replace(BASES[0], instruct=None)
    with pytest.raises(BadRequest, match=r"plain text\.$"):
        chat.segments(dialog(("system", "s"), ("user", "a")), alone)


def test_the_70b_stops_on_both_ids(nano_tokenizer: Tokenizer) -> None:
    prompt = PromptBuilder(nano_tokenizer, SOURCE, context=512).build(dialog(("user", "a")))
    assert prompt.stop_ids == {2, 32015}


def test_a_source_row_without_a_step_id_is_a_fault_of_the_row() -> None:
    with pytest.raises(ValueError, match="no step_id"):
        chat.segments(dialog(("user", "a")), replace(SOURCE, step_id=None))


# --- white space ----------------------------------------------------------------------------------

spaces = st.text(" \n\t", max_size=3)


@given(before=spaces, behind=spaces)
def test_white_space_around_a_message_is_stripped(before: str, behind: str) -> None:
    padded = dialog(
        ("user", f"{before}a b{behind}"), ("assistant", f"{before}c{behind}"), ("user", f"{before}d{behind}")
    )
    assert texts(chat.segments(padded, INST)) == ["[INST] a b [/INST] c ", "[INST] d [/INST]"]
    assert texts(chat.segments(padded, SOURCE))[1:-1] == [
        "Source: user\n\n a b",
        "Source: assistant\n\n c",
        "Source: user\n\n d",
    ]


@given(system=spaces, before=spaces, behind=spaces)
def test_behind_a_system_message_the_users_leading_space_stays(system: str, before: str, behind: str) -> None:
    folded = chat.segments(dialog(("system", f"{system}S{system}"), ("user", f"{before}a{behind}")), INST)
    assert texts(folded) == [f"[INST] <<SYS>>\n{system}S{system}\n<</SYS>>\n\n{before}a [/INST]"]


# --- whole prompts in one message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "turns"),
    [
        ("<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]", [("system", "S"), ("user", "U")]),
        ("[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]", [("system", "S"), ("user", "U")]),
        ("\n<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]\n ", [("system", "S"), ("user", "U")]),
        ("[INST] <<SYS>>S<</SYS>> U[/INST]", [("system", "S"), ("user", "U")]),
        ("[INST] <<SYS>>\nS\n<</SYS>>\n\n    def f(): [/INST]", [("system", "S"), ("user", "    def f():")]),
        ("[INST] <<SYS>>\nS\n\nT\n<</SYS>>\n\nU\nV [/INST]", [("system", "S\n\nT"), ("user", "U\nV")]),
        ("[INST] <<SYS>>\n\n<</SYS>>\n\nU [/INST]", [("system", ""), ("user", "U")]),
        ("<s>[INST] U [/INST]", [("user", "U")]),
    ],
)
def test_a_whole_prompt_is_taken_apart(whole: str, turns: list[tuple[str, str]]) -> None:
    unfolded = chat.unfolded(dialog(("user", whole), unfold=True))
    assert [(m.role, m.content) for m in unfolded] == turns
    again = chat.segments(dialog(("user", whole), unfold=True), INST)
    assert again == chat.segments(dialog(*turns), INST)


@given(
    system=st.text("S \n", max_size=6),
    user=st.text("U \n", min_size=1, max_size=6).filter(lambda text: text.strip()),
)
def test_a_canonical_prompt_is_rendered_as_it_was(system: str, user: str) -> None:
    (canonical,) = texts(chat.segments(dialog(("system", system), ("user", user)), INST))
    assert texts(chat.segments(dialog(("user", canonical), unfold=True), INST)) == [canonical]


@pytest.mark.parametrize(
    "content",
    [
        "[INST] a [/INST] b </s><s>[INST] c [/INST]",
        "say [INST] a [/INST]",
        "[INST] a [/INST] b",
        "[INST] a",
        "[INST] <<SYS>>\nS\nU [/INST]",
    ],
)
def test_what_is_no_whole_prompt_is_refused_for_its_markers(content: str) -> None:
    with pytest.raises(BadRequest, match="marks turns"):
        chat.segments(dialog(("user", content), unfold=True), INST)


def test_only_where_it_is_asked_for_is_a_prompt_taken_apart() -> None:
    with pytest.raises(BadRequest, match="marks turns"):
        chat.segments(dialog(("user", "<s>[INST] a [/INST]")), INST)
    with pytest.raises(BadRequest, match="marks turns"):
        chat.segments(dialog(("user", "<s>[INST] a [/INST]"), unfold=True), SOURCE)


@pytest.mark.parametrize(
    "content",
    ["[INST] <<SYS>>" + "<</SYS>>" * 200_000, "[INST] <<SYS>><</SYS>>" + "\n" * 1_000_000 + "x"],
    ids=["many ends", "many lines"],
)
def test_a_message_of_megabytes_is_refused_at_once(content: str) -> None:
    """Looking for the end from each <</SYS>> on would take hours: the suite's time limit is the assertion."""
    with pytest.raises(BadRequest, match="marks turns"):
        chat.segments(dialog(("user", content), unfold=True), NANO)


def test_special_ids_stand_only_between_messages() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    inst = chat.segments(dialog(*turns), INST)
    assert [s.id for s in inst if isinstance(s, Special)] == [1, 2, 1]
    source = chat.segments(dialog(*turns), SOURCE)
    assert [s.id for s in source if isinstance(s, Special)] == [1, 32015, 32015, 32015, 32015]
