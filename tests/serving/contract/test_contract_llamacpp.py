"""llama.cpp's bodies and answers, as far as editors need them."""

from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from llama_serving.catalog import CATALOG, ModelVariant
from llama_serving.contract import llamacpp
from llama_serving.contract.llamacpp import NAMES
from llama_serving.contract.request import UNLIMITED, Completion, Infill, Parameters, TokenIds
from llama_serving.contract.validation import schema
from llama_serving.errors import BadRequest
from llama_serving.prompts.builder import LEAST_MIDDLE, PromptBuilder
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.server.protocols import PROTOCOLS
from llama_serving.service.service import Service
from tests.support.bad_bodies import SECRET
from tests.support.endpoints import asked

DOCUMENTS: Final = [schema(name) for name in ("llamacpp-answers", "ollama-answers")]
REGISTRY: Final = Registry().with_resources((one["$id"], Resource.from_contents(one)) for one in DOCUMENTS)
GAP: Final[dict[str, Any]] = {
    "input_prefix": "def f(x):\n",
    "input_suffix": "\n    return y\n",
    "prompt": "    y =",
}
GREEDY: Final = {"temperature": 0, "n_predict": 24}
WITHOUT_EFFECT: Final[dict[str, Any]] = {
    **dict.fromkeys(("t_max_prompt_ms", "n_cache_reuse", "n_keep", "n_discard", "id_slot", "min_keep"), 1),
    **dict.fromkeys(("mirostat_tau", "mirostat_eta", "dynatemp_exponent", "xtc_threshold", "dry_base"), 0.5),
    **dict.fromkeys(("dry_allowed_length", "dry_penalty_last_n"), 2),
    "dry_sequence_breakers": ["\n"],
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "repeat_last_n": 64,
    "penalize_nl": False,
}
"""Fields without effect; the last two only where there is no penalty."""
UNCHANGED: Final[dict[str, Any]] = {
    **dict.fromkeys(("timings_per_token", "post_sampling_probs", "return_progress", "return_tokens", "grammar_lazy"), False),
    **dict.fromkeys(("n", "n_cmpl", "typical_p", "tfs_z"), 1),
    **dict.fromkeys(("mirostat", "dynatemp_range", "xtc_probability", "dry_multiplier"), 0),
    **{name: [] for name in ("lora", "logit_bias", "image_data", "multimodal_data")},
    "top_n_sigma": -1,
}  # fmt: skip
"""Fields that are taken at the value that changes nothing."""
OTHERS: Final = {"model", "response_fields", "n_indent", "t_max_predict_ms"}


def infill(**more: Any) -> Any:
    return llamacpp.parse_infill({**GAP, **more})


def refused(body: dict[str, Any], path: str = "/infill") -> BadRequest:
    with pytest.raises(BadRequest) as refusal:
        PROTOCOLS[path].parse(body)
    assert SECRET not in refusal.value.message
    return refusal.value


# --- fields ---------------------------------------------------------------------------------------


def test_every_field_is_read_or_without_effect_or_refused() -> None:
    known = schema("llamacpp")["$defs"]["sampling"]["properties"].keys()
    assert known == NAMES.keys() | WITHOUT_EFFECT.keys() | UNCHANGED.keys() | OTHERS
    for kind, own in (("completion", {"prompt"}), ("infill", {*GAP, "input_extra"})):
        assert schema("llamacpp")["$defs"][kind]["properties"].keys() == known | own


@pytest.mark.parametrize(
    ("field", "value", "name", "read"),
    [
        ("n_predict", 5, "max_new_tokens", 5),
        ("n_predict", -1, "max_new_tokens", UNLIMITED),
        ("n_predict", 0, "max_new_tokens", 1),
        ("max_tokens", 5, "max_new_tokens", 5),
        ("repeat_penalty", 1.1, "repetition_penalty", 1.1),
        ("seed", -1, "seed", None),
        ("n_probs", 2, "logprobs", 2),
        ("n_probs", 0, "logprobs", None),
        ("stop", [], "stop", None),
        ("stop", ["\n"], "stop", ("\n",)),
        ("editor_stops", False, "editor_stops", False),
        ("ignore_eos", True, "ignore_eos", True),
        ("stream", True, "stream", True),
    ],
)
def test_fields_are_renamed(field: str, value: Any, name: str, read: Any) -> None:
    request = infill(**{field: value})
    assert request.parameters == Parameters(**{"editor_stops": True, name: read})
    assert request.prefill_only == (field == "n_predict" and value == 0)
    assert request.path(name) == field or read is None


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_what_has_no_effect(name: str) -> None:
    assert infill(**{name: WITHOUT_EFFECT[name]}) == infill()


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_happens_anyway_may_be_asked_for(name: str) -> None:
    assert infill(**{name: UNCHANGED[name]}) == infill()
    assert refused({**GAP, name: "another"}).code == "unsupported_field"


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"n_predict": 1, "max_tokens": 2}, "max_tokens", "the same parameter"),
        ({"input_suffix": None}, "input_suffix", "is missing"),
        ({"input_prefix": 1}, "input_prefix", "must be a string"),
        ({"input_extra": [{"filename": SECRET}]}, "input_extra[0].text", "is missing"),
        ({"input_extra": SECRET}, "input_extra", "a list of texts"),
        ({"repeat_penalty": 1.1, "repeat_last_n": 64}, "repeat_last_n", "must be -1"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "Did you mean `repeat_penalty`?"),
        ({"temperature": 9}, "temperature", "not 9"),
        ({"lora": [{"id": 0, "scale": 0.5}]}, "lora", "not supported"),
        ({"n_indent": -1}, "n_indent", "from 0"),
    ],
)
def test_what_infill_refuses(body: dict[str, Any], param: str, says: str) -> None:
    refusal = refused({**GAP, **body})
    assert refusal.param == param
    assert says in refusal.message


@pytest.mark.parametrize("prompt", ["", [], [[1]], ["a"], {"prompt_string": "a"}, None])
def test_prompts_that_completion_refuses(prompt: Any) -> None:
    assert refused({"prompt": prompt}, "/completion").param in ("prompt", "prompt[0]")


def test_completions_are_texts_ids_or_gaps() -> None:
    def read(prompt: Any) -> Any:
        return llamacpp.parse_completion({"prompt": prompt}).inputs[0]

    assert read("a") == Completion("a", marked=True)
    assert read([1, 2.0]) == TokenIds((1, 2))
    assert read("a<FILL_ME>b") == Infill("a", "b")


# --- prompts --------------------------------------------------------------------------------------

PSM: Final = CATALOG["codellama/CodeLlama-7b-hf"]


def build(gap: Any, variant: ModelVariant, tokenizer: Tokenizer, context: int = 512) -> Any:
    return PromptBuilder(tokenizer, variant, context).build(gap)


@pytest.mark.parametrize("variant", [CATALOG["nano"], PSM], ids=lambda row: row.name)
def test_what_fits_is_the_usual_prompt(variant: ModelVariant, nano_tokenizer: Tokenizer) -> None:
    plain, fitted = (
        build(Infill("def f(x):\n    ", "\n    return y", fitted=fitted), variant, nano_tokenizer)
        for fitted in (False, True)
    )
    assert fitted == plain
    assert build(Infill("", "", fitted=True), variant, nano_tokenizer).token_ids


@pytest.mark.parametrize("variant", [CATALOG["nano"], PSM], ids=lambda row: row.name)
def test_extra_texts_come_first_and_keep_their_tokens(variant: ModelVariant, nano_tokenizer: Tokenizer) -> None:
    """So what an earlier request computed of them is used again, whatever is typed, and where another text comes."""
    extra = ("import os\n", "def g():\n    return 1\n")
    first = build(Infill("", "", extra, fitted=True), variant, nano_tokenizer).token_ids
    typed = build(Infill("def f", "\n", extra, fitted=True), variant, nano_tokenizer).token_ids
    more = build(Infill("def f(", ")", (*extra, "x = 1\n"), fitted=True), variant, nano_tokenizer).token_ids
    shared = 1 + sum(len(nano_tokenizer.encode(text)) for text in extra)
    assert first[:shared] == typed[:shared] == more[:shared]


@pytest.mark.parametrize("variant", [CATALOG["nano"], PSM], ids=lambda row: row.name)
@pytest.mark.parametrize(
    "lengths", [(9, 9, 9), (900, 9, 0), (9, 900, 0), (900, 900, 900), (40, 40, 900), (10**6, 9, 9)]
)
def test_what_does_not_fit_is_left_out_far_from_the_gap(
    variant: ModelVariant, lengths: tuple[int, int, int], nano_tokenizer: Tokenizer
) -> None:
    prefix, suffix, extra = (f"{letter} = 1\n" * number for letter, number in zip("pse", lengths, strict=True))
    gap = Infill(prefix, suffix, (extra, "import os\n") if extra else (), fitted=True)
    prompt = build(gap, variant, nano_tokenizer)
    assert len(prompt.token_ids) < 512
    assert prompt.truncated == (max(lengths) > 9)
    text = b"".join(map(nano_tokenizer.piece, prompt.token_ids)).decode()
    assert prefix[-20:] in text
    assert suffix[:20] in text
    assert (prompt.before, prompt.after) == (prefix, suffix)


@pytest.mark.parametrize("length", [{}, {"n_predict": -1}])
def test_a_file_larger_than_the_context_leaves_room_for_the_text(
    length: dict[str, int], nano_tokenizer: Tokenizer
) -> None:
    request = llamacpp.parse_infill({"input_prefix": "p = 1\n" * 900, "input_suffix": "", **length})
    prompt = PromptBuilder(nano_tokenizer, CATALOG["nano"], 512).build_one(request, 0)
    assert prompt.truncated
    assert 512 - LEAST_MIDDLE - 16 < len(prompt.token_ids) <= 512 - LEAST_MIDDLE


def test_a_model_without_infilling_says_so(nano_tokenizer: Tokenizer) -> None:
    with pytest.raises(BadRequest, match="can't fill in") as refusal:
        build(infill().inputs[0], CATALOG["codellama/CodeLlama-34b-hf"], nano_tokenizer)
    assert refusal.value.code == "infilling_unsupported"


def test_a_null_in_a_schema_is_a_value() -> None:
    held = {"type": "object", "properties": {"a": {"const": None}}, "required": ["a"]}
    parsed = PROTOCOLS["/completion"].parse({"prompt": "a", "json_schema": held})
    assert parsed.parameters.response_format is not None
    assert '{"const":null}' in parsed.parameters.response_format.text


# --- answers --------------------------------------------------------------------------------------


def described(answer: Any) -> bool:
    rule = {"$ref": "urn:llama-endpoints:llamacpp-answers#/$defs/content"}
    return bool(Draft202012Validator(rule, registry=REGISTRY).is_valid(answer))


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "timings"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/infill", GAP),
        ("/infill", {**GAP, "editor_stops": False, "n_probs": 1}),
        ("/infill", {**GAP, "n_predict": 0}),
        ("/infill", {"input_prefix": "", "input_suffix": ""}),
        ("/completion", {"prompt": "def f(x):\n    return 🦙"}),
        ("/completion", {"prompt": "def f(x):\n    return", "stop": ["x"]}),
    ],
)
def test_a_stream_is_the_whole_answer_in_pieces(service: Service, path: str, body: dict[str, Any]) -> None:
    body = {**GREEDY, **body}
    whole = asked(service, path, body)
    *pieces, last = asked(service, path, {**body, "stream": True})
    assert [described(one) for one in (whole, *pieces, last)] == [True] * (2 + len(pieces))
    assert whole["content"] == "".join(one["content"] for one in (*pieces, last))
    assert without_times({**last, "content": whole["content"]}) == without_times(whole)
    assert [one["stop"] for one in (*pieces, last)] == [False] * len(pieces) + [True]
    if body["n_predict"] == 0:
        assert (whole["content"], whole["tokens_predicted"], pieces) == ("", 0, [])
    if body.get("stop"):
        assert (whole["stop_type"], whole["stopping_word"]) == ("word", "x")


def test_only_the_fields_that_are_asked_for(service: Service) -> None:
    paths = ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "no/such", ""]
    answer = asked(service, "/infill", {**GAP, **GREEDY, "response_fields": paths})
    assert answer.keys() == {"content", "timings/prompt_n", "timings/predicted_ms", "truncated"}
    assert asked(service, "/infill", {**GAP, **GREEDY, "response_fields": [""]}) == {}


def test_it_stops_for_the_editor_unless_it_is_told_not_to(service: Service) -> None:
    on, off = (
        asked(service, "/infill", {**GAP, **GREEDY, "editor_stops": stops})["content"]
        for stops in (True, False)
    )
    assert "return y" in off
    assert "return y" not in on
    assert off.startswith(on)
    gap = {
        "prompt": GAP["input_prefix"] + GAP["prompt"],
        "suffix": GAP["input_suffix"],
        "temperature": 0,
        "max_tokens": 24,
    }
    elsewhere = (asked(service, "/v1/completions", {**gap, **more}) for more in ({"editor_stops": True}, {}))
    assert [one["choices"][0]["text"] for one in elsewhere] == [on, off]


def test_the_text_ends_when_its_time_is_over(service: Service) -> None:
    body = {**GAP, **GREEDY, "editor_stops": False, "n_predict": 200, "t_max_predict_ms": 0.001}
    answer = asked(service, "/infill", body)
    assert answer["stop_type"] == "limit"
    assert answer["content"].count("\n") == 1
    assert answer["tokens_predicted"] < 200


def test_what_is_behind_the_end_is_not_generated(service: Service) -> None:
    def generated(**more: Any) -> int:
        before = service.engine.stats().tokens_out
        asked(service, "/infill", {**GAP, **GREEDY, "n_predict": 200, **more})
        return service.engine.stats().tokens_out - before

    assert generated() < 40
    assert generated(editor_stops=False, ignore_eos=True) == 200
