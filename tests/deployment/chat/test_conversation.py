"""The state of a conversation: what is sent, and what is kept of answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.chat.commands import COMMANDS, understand
from llama_endpoints.chat.conversation import PARAMETERS, Conversation, Mistake, Question, checked
from llama_serving.contract import openai


class Silent:
    """A model that is not asked."""

    name = "silent"
    capabilities = ("completion", "infilling", "chat")

    def stream(self, body: object) -> None:
        raise AssertionError(body)


def asked(conversation: Conversation, typed: str) -> Question:
    found = understand(typed, conversation, Silent())  # type: ignore[arg-type]
    assert isinstance(found, Question)
    return found


TYPED = st.one_of(
    st.sampled_from(
        [
            "hello",
            "/retry",
            "/undo",
            "/more",
            "/new",
            "/system be brief",
            "/system",
            "/complete a",
            "/infill a<FILL_ME>b",
            "/infill a",
        ]
    ),
    st.text(min_size=1).filter(str.strip),
)


@given(st.lists(st.tuples(TYPED, st.text(max_size=3))), st.booleans())
def test_every_request_is_one_that_the_contract_takes(steps: list[tuple[str, str]], chats: bool) -> None:
    """Whatever is typed and answered: the dialog alternates, and its bodies are valid but for what a user may not write."""
    conversation = Conversation(chats)
    for typed, answer in steps:
        if typed.startswith("/exit"):
            continue
        try:
            found = understand(typed, conversation, Silent())  # type: ignore[arg-type]
        except Mistake:
            continue
        if isinstance(found, Question):
            if not {"[INST]", "<<SYS>>"} & set(typed.split()):
                openai.parse({**found.body})
            conversation.answered(found, answer)
        roles = [turn["role"] for turn in conversation.turns]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_an_answer_without_text_leaves_no_trace() -> None:
    conversation = Conversation(chats=True)
    conversation.answered(asked(conversation, "hello"), "")
    assert conversation.turns == []


def test_a_stopped_answer_is_continued() -> None:
    conversation = Conversation(chats=True)
    conversation.answered(asked(conversation, "hello"), "good ")
    more = asked(conversation, "/more")
    assert more.body["continue_final_message"] is True
    conversation.answered(more, "day")
    assert conversation.turns[-1] == {"role": "assistant", "content": "good day"}


def test_a_retry_that_fails_keeps_the_answer() -> None:
    conversation = Conversation(chats=True)
    conversation.answered(asked(conversation, "hello"), "first")
    again = asked(conversation, "/retry")
    assert again.body["messages"] == [{"role": "user", "content": "hello"}]
    conversation.answered(again, "")
    assert conversation.turns[-1]["content"] == "first"
    conversation.answered(again, "second")
    assert [turn["content"] for turn in conversation.turns] == ["hello", "second"]


def test_a_slash_is_text_behind_a_space() -> None:
    assert asked(Conversation(chats=False), " /etc/passwd").body["prompt"] == " /etc/passwd"


@pytest.mark.parametrize("typed", ["/infill def f():\n    <FILL_ME>", "/infill\ndef f():\n    <FILL_ME>"])
def test_a_command_may_have_many_lines(typed: str) -> None:
    assert asked(Conversation(chats=True), typed).body["prompt"] == "def f():\n    "


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_contracts(name: str) -> None:
    with pytest.raises(Mistake, match=name):
        checked({name: {}})


def test_a_parameter_is_set_and_unset() -> None:
    conversation = Conversation(chats=True)
    understand("/set temperature 0", conversation, Silent())  # type: ignore[arg-type]
    understand('/set stop ["a", "b"]', conversation, Silent())  # type: ignore[arg-type]
    understand("/set stop END", conversation, Silent())  # type: ignore[arg-type]
    body = asked(conversation, "hello").body
    assert (body["temperature"], body["stop"]) == (0, "END")
    understand("/set stop", conversation, Silent())  # type: ignore[arg-type]
    assert "stop" not in asked(conversation, "hello").body
    with pytest.raises(Mistake, match="Did you mean max_tokens"):
        understand("/set maxtokens 3", conversation, Silent())  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', "9" * 40])
def test_what_no_body_can_hold_is_no_value(value: str) -> None:
    with pytest.raises(Mistake):
        understand(f"/set temperature {value}", Conversation(chats=True), Silent())  # type: ignore[arg-type]


def test_the_help_lists_every_command() -> None:
    text = understand("/help", Conversation(chats=True), Silent())  # type: ignore[arg-type]
    assert isinstance(text, str)
    assert [line.split()[0] for line in text.splitlines()] == list(COMMANDS)
