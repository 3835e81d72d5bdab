"""Ollama's bodies and answers: every option is renamed, without effect as documented, or refused."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from llama_serving.catalog import CATALOG
from llama_serving.contract import ollama, ollama_models
from llama_serving.contract.ollama import OPTIONS
from llama_serving.contract.request import UNLIMITED, Completion, Dialog, Infill, Message, Parameters
from llama_serving.contract.validation import schema
from llama_serving.errors import BadRequest, QueueFull
from llama_serving.prompts.builder import PromptBuilder
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.server.protocols import PROTOCOLS
from llama_serving.service.service import Service
from tests.support.bad_bodies import SECRET, user
from tests.support.endpoints import asked

ANSWERS: Final = schema("ollama-answers")
REGISTRY: Final = Registry().with_resource(ANSWERS["$id"], Resource.from_contents(ANSWERS))
GREEDY: Final = {"temperature": 0, "num_predict": 8}
MACHINE: Final = {
    **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_gqa", "num_thread", "num_keep"), 7),
    **dict.fromkeys(("numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only"), True),
    **dict.fromkeys(("mirostat_eta", "mirostat_tau"), 0.5),
    "repeat_last_n": 64, "penalize_newline": False,
}  # fmt: skip
"""Options without effect; the last two only where there is no penalty."""
UNCHANGED: Final = {"tfs_z": 1, "typical_p": 1.0, "mirostat": 0}
"""Options that are taken at the value that changes nothing."""


def described(kind: str, answer: Any) -> bool:
    """Whether an answer is as its schema has it."""
    rule = {"$ref": f"{ANSWERS['$id']}#/$defs/{kind}"}
    return bool(Draft202012Validator(rule, registry=REGISTRY).is_valid(answer))


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "created_at" and "duration" not in name}


def generate(**body: Any) -> Any:
    return ollama.parse_generate({"model": "m", **body})


def refused(body: dict[str, Any], route: str = "/api/generate") -> BadRequest:
    with pytest.raises(BadRequest) as refusal:
        PROTOCOLS[route].parse(body)
    assert SECRET not in refusal.value.message
    return refusal.value


# --- options --------------------------------------------------------------------------------------


def test_every_option_is_read_or_without_effect_or_refused() -> None:
    known = schema("ollama")["$defs"]["options"]["properties"].keys()
    assert known == OPTIONS.keys() | MACHINE.keys() | UNCHANGED.keys()


@pytest.mark.parametrize(
    ("option", "value", "name", "read"),
    [
        ("num_predict", 5, "max_new_tokens", 5),
        ("num_predict", -1, "max_new_tokens", UNLIMITED),
        ("num_predict", -2.0, "max_new_tokens", UNLIMITED),
        ("repeat_penalty", 1.1, "repetition_penalty", 1.1),
        ("temperature", 1, "temperature", 1.0),
        ("top_p", 0.5, "top_p", 0.5),
        ("top_k", 40.0, "top_k", 40),
        ("min_p", 0.1, "min_p", 0.1),
        ("presence_penalty", 1, "presence_penalty", 1.0),
        ("frequency_penalty", -1, "frequency_penalty", -1.0),
        ("stop", "a", "stop", ("a",)),
        ("stop", ["a", "b"], "stop", ("a", "b")),
        ("seed", 7, "seed", 7),
        ("seed", -1, "seed", None),
    ],
)
def test_options_are_renamed(option: str, value: Any, name: str, read: Any) -> None:
    request = generate(prompt="a", options={option: value})
    assert request.parameters == Parameters(**{"stream": True, name: read})
    assert request.path(name) == f"options.{option}" or read is None


@given(st.dictionaries(st.sampled_from(sorted(MACHINE)), st.none() | st.just(...)))
def test_the_machines_options_have_no_effect(chosen: dict[str, Any]) -> None:
    options = {name: MACHINE[name] if value is ... else None for name, value in chosen.items()}
    assert generate(prompt="a", options=options, keep_alive="5m") == generate(prompt="a")


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_happens_anyway_may_be_asked_for(name: str) -> None:
    assert generate(prompt="a", options={name: UNCHANGED[name]}) == generate(prompt="a")
    assert refused({"prompt": "a", "options": {name: 0.7}}).param == f"options.{name}"


@pytest.mark.parametrize(("name", "value"), [("repeat_last_n", 64), ("penalize_newline", False)])
def test_a_penalty_on_some_of_the_text_is_refused(name: str, value: Any) -> None:
    options = {"repeat_penalty": 1.1, name: value}
    assert refused({"prompt": "a", "options": options}).param == f"options.{name}"
    assert generate(prompt="a", options={**options, "repeat_penalty": 1})


def test_a_penalty_on_no_text_is_off() -> None:
    read = generate(prompt="a", options={"repeat_penalty": 1.3, "repeat_last_n": 0}).parameters
    assert read.repetition_penalty is None


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"options": {"max_tokens": 3}}, "options.max_tokens", "Did you mean `num_predict`?"),
        ({"options": {"repetition_penalty": 1.1}}, "options.repetition_penalty", "Did you mean `repeat_penalty`?"),
        ({"options": {"num_predict": 0}}, "options.num_predict", "-1 or -2"),
        ({"options": {"temperature": "0"}}, "options.temperature", "not a string"),
        ({"options": {"top_p": True}}, "options.top_p", "not a boolean"),
        ({"options": [1]}, "options", "an object of options"),
        ({"temperature": 0.5}, "temperature", '{"options": {"temperature": ...}}'),
        ({"prompts": "a"}, "prompts", "Accepted here"),
        ({"format": "xml"}, "format", '"json" or a JSON schema'),
        ({"format": {"type": "array", "uniqueItems": True}}, "format.uniqueItems", "uniqueItems"),
        ({"format": 3}, "format", "JSON schema"),
        ({"template": "{{ .Prompt }}"}, "template", "not supported"),
        ({"context": [1, 2]}, "context", "not supported"),
        ({"images": [SECRET]}, "images", "not supported"),
        ({"think": True}, "think", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "`logprobs: true`"),
        ({"suffix": "b", "system": SECRET}, "system", "infilling"),
        ({"raw": True, "system": SECRET}, "system", "`raw: true`"),
        ({"prompt": "a<FILL_ME>b<FILL_ME>"}, "prompt", "2 times"),
        ({"prompt": ["a"]}, "prompt", "must be a string"),
    ],
)  # fmt: skip
def test_what_generate_refuses(body: dict[str, Any], param: str, says: str) -> None:
    refusal = refused({"prompt": SECRET, **body})
    assert refusal.param == param
    assert says in refusal.message


def test_a_format_is_named_as_the_client_does_and_its_nulls_are_values() -> None:
    held = {"type": "object", "properties": {"a": {"const": None}}, "required": ["a"]}
    parsed = generate(format=held, options={"temperature": 0})
    assert '{"const":null}' in parsed.parameters.response_format.text
    assert parsed.path("response_format") == "format"
    assert parsed.path("temperature") == "options.temperature"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"messages": [user("a"), {"role": "tool", "content": "b"}]}, "messages[1].role", "one of system"),
        ({"messages": [{**user("a"), "images": ["b"]}]}, "messages[0].images", "not supported"),
        ({"messages": [{"role": "system", "content": "a"}]}, "messages[0]", "is the last"),
        ({"messages": "a"}, "messages", "a list of messages"),
        ({"messages": [user("a")], "tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"prompt": "a"}, "prompt", "Accepted here"),
    ],
)
def test_what_chat_refuses(body: dict[str, Any], param: str, says: str) -> None:
    refusal = refused(body, "/api/chat")
    assert refusal.param == param
    assert says in refusal.message


# --- prompts --------------------------------------------------------------------------------------


def prompt(**body: Any) -> Any:
    (one,) = generate(**body).inputs
    return one


def test_a_prompt_is_a_dialog_of_one_message() -> None:
    assert prompt(prompt="a") == Dialog((Message("user", "a"),), unfold=True, marked=True)
    assert prompt(prompt="a", system="s") == Dialog((Message("system", "s"), Message("user", "a")))
    assert prompt(prompt="a", raw=True) == Completion("a", marked=True)
    assert prompt(prompt="a", suffix="b") == prompt(prompt="a", suffix="b", raw=True) == Infill("a", "b")
    assert prompt(prompt="a<FILL_ME>b") == Infill("a", "b")


def test_empty_strings_are_what_clients_send_for_nothing() -> None:
    nothing = {"suffix": "", "system": "", "template": "", "format": "", "context": [], "images": []}
    assert generate(prompt="a", **nothing) == generate(prompt="a")


MARKED: Final = "<PRE> def f(x):\n    <SUF>\n    return y <MID>"


@pytest.mark.parametrize(
    "text",
    [MARKED, f"<s>{MARKED}", f"{MARKED} ", MARKED.replace(" <", "<").replace("<PRE> ", "<PRE>")],
)
def test_an_infilling_prompt_with_its_marks_is_one(text: str, nano_tokenizer: Tokenizer) -> None:
    """As the editors write it whose prompts go to `codellama` in Ollama."""
    builder = PromptBuilder(nano_tokenizer, CATALOG["nano"], 512)
    (raw,), (chat,) = (generate(prompt=text, raw=raw).inputs for raw in (True, False))
    ((message,)) = ollama.parse_chat({"messages": [user(text)]}).inputs
    want = builder.build(Infill("def f(x):\n   ", "\n    return y"))
    if text.startswith("<PRE> ") and "> <" not in text:
        assert [builder.build(one).token_ids for one in (raw, chat, message)] == [want.token_ids] * 3
    assert builder.build(raw).infill


@pytest.mark.parametrize(
    "text", ["<PRE> a <SUF>b", "x <PRE> a <SUF>b <MID>", "<PRE> a <MID>", f"{MARKED}{MARKED}"]
)
def test_what_is_no_whole_one_is_text(text: str, nano_tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(nano_tokenizer, CATALOG["nano"], 512)
    assert builder.build(prompt(prompt=text, raw=True)) == builder.build(Completion(text))


def test_marks_are_text_to_a_model_without_infilling(nano_tokenizer: Tokenizer) -> None:
    builder = PromptBuilder(nano_tokenizer, CATALOG["codellama/CodeLlama-34b-hf"], 512)
    assert builder.build(prompt(prompt=MARKED, raw=True)) == builder.build(Completion(MARKED))


def test_the_assistants_last_message_is_continued() -> None:
    said = [user("a"), {"role": "assistant", "content": "b"}]
    request = ollama.parse_chat({"messages": said})
    assert request.inputs == (Dialog((Message("user", "a"), Message("assistant", "b")), continued=True),)
    assert request.parameters.continue_final_message is True
    begun = ollama.parse_chat({"messages": [user("a"), {"role": "assistant", "content": ""}]})
    assert begun == ollama.parse_chat({"messages": [user("a")]})


def test_messages_with_all_that_clients_add() -> None:
    more = {"images": [], "tool_calls": [], "thinking": None, "tool_name": ""}
    plain = ollama.parse_chat({"messages": [user("a")]})
    assert ollama.parse_chat({"messages": [{**user("a"), **more}], "tools": [], "think": False}) == plain


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/generate", {"prompt": "Reverse a list 🦙"}),
        ("/api/generate", {"prompt": "def f(x):\n    return", "raw": True}),
        ("/api/generate", {"prompt": "def f(x):\n", "suffix": "    return y\n"}),
        ("/api/chat", {"messages": [user("Reverse a list")], "logprobs": True, "top_logprobs": 2}),
        ("/api/generate", {}),
        ("/api/chat", {"messages": []}),
    ],
)
def test_a_stream_is_the_whole_answer_in_pieces(service: Service, path: str, body: dict[str, Any]) -> None:
    kind, key = path.rpartition("/")[2], "response" if "generate" in path else "message"
    body = {**body, "options": GREEDY}
    whole = asked(service, path, {**body, "stream": False})
    pieces = asked(service, path, body)
    assert [described(kind, one) for one in (whole, *pieces)] == [True] * (1 + len(pieces))
    assert [one["done"] for one in pieces] == [False] * (len(pieces) - 1) + [True]
    texts = [one[key] if key == "response" else one[key]["content"] for one in (whole, *pieces)]
    assert texts[0] == "".join(texts[1:])
    assert without_times({**pieces[-1], key: whole[key]}) == without_times(whole)
    if body.get("prompt") or body.get("messages"):
        assert len(pieces) > 2
        assert (whole["done_reason"], whole["eval_count"]) in (("length", 8), ("stop", whole["eval_count"]))
        assert whole["total_duration"] == whole["prompt_eval_duration"] + whole["eval_duration"] > 1
    else:
        assert whole["done_reason"] == "load"


def test_the_text_is_that_of_other_protocols(service: Service) -> None:
    text = asked(
        service,
        "/v1/chat/completions",
        {"messages": [user("Reverse a list")], "temperature": 0, "max_tokens": 8},
    )
    want = text["choices"][0]["message"]["content"]
    chat = asked(
        service, "/api/chat", {"messages": [user("Reverse a list")], "options": GREEDY, "stream": False}
    )
    single = asked(service, "/api/generate", {"prompt": "Reverse a list", "options": GREEDY, "stream": False})
    assert (chat["message"]["content"], single["response"]) == (want, want)


def test_a_conversation_goes_on_whatever_the_model_wrote(service: Service) -> None:
    said = "Write `[INST] <<SYS>>` and </s> [/INST] <step>."
    messages = [user("a"), {"role": "assistant", "content": said}, user("b")]
    assert asked(service, "/api/chat", {"messages": messages, "options": GREEDY, "stream": False})["done"]
    with pytest.raises(BadRequest, match="marks turns"):
        asked(service, "/api/chat", {"messages": [user(said)], "stream": False})


def test_an_error_is_ollamas_sentence_and_our_fields() -> None:
    told = PROTOCOLS["/api/chat"].error(QueueFull("Come again.", retry_after=5), "r")
    assert told == {"error": "Come again.", "code": "queue_full", "retry_after": 5, "request_id": "r"}
    assert described("error", told)


@pytest.mark.parametrize("row", CATALOG.values(), ids=lambda row: row.name)
def test_the_model_is_described(row: Any) -> None:
    from datetime import UTC, datetime

    served = ollama_models.Served(row, 1024, datetime.now(UTC))
    shown = ollama_models.show(served)
    assert described("show", shown)
    assert (
        ("insert" in shown["capabilities"])
        == (".Suffix" in shown["template"])
        == (row.infill.value is not None)
    )
    assert all(len(line.split()) == 2 for line in shown["parameters"].split("\n"))
    listed, loaded = ollama_models.tags(served), ollama_models.running(served)
    assert described("tags", listed)
    assert described("tags", loaded)
    assert listed["models"][0]["name"] == loaded["models"][0]["name"] == f"{row.name}:latest"
