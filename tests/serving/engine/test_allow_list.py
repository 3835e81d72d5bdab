"""Nothing but the allow-list reaches transformers: neither a name, nor a value, by any protocol."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_endpoints.nano import FOLDER
from llama_serving.catalog import NANO
from llama_serving.contract import azure, mlflow, openai, protocol, rows
from llama_serving.contract.parameters import ALIASES, NAMES
from llama_serving.contract.request import Parameters, Request
from llama_serving.errors import BadRequest
from llama_serving.model_files import ModelFiles
from llama_serving.service.service import Service
from llama_serving.settings import Settings
from tests.support.bad_bodies import EDGES, NO_EFFECT, score, user

CONFIG: Final[Any] = transformers.GenerationConfig  # untyped

ALLOWED: Final = {*NAMES, *ALIASES}

FEARED: Final = {
    "assistant_model", "assistant_tokenizer", "attn_implementation", "cache_implementation", "clean_up_tokenization_spaces",
    "config", "constraints", "custom_generate", "device", "device_map", "dtype",
    "forced_eos_token_id", "generate_kwargs", "generation_config", "handle_long_generation", "input_ids",
    "inputs_embeds", "logits_processor", "max_length", "max_time", "model", "model_kwargs", "negative_prompt_ids",
    "num_beams", "output_attentions", "past_key_values", "penalty_alpha", "prefix", "prefix_allowed_tokens_fn",
    "prompt_lookup_num_tokens", "quantization_config", "return_tensors", "revision", "stop_sequence", "stop_strings",
    "stopping_criteria", "streamer", "synced_gpus", "tokenizer", "tokenizer_encode_kwargs", "torch_dtype",
    "trust_remote_code", "use_cache", "watermarking_config", "__class__", "self", "kwargs",
}  # fmt: skip


def of_the_library() -> set[str]:
    """Every name that transformers itself accepts."""
    generate = inspect.signature(transformers.GenerationMixin.generate).parameters
    pipeline = inspect.signature(transformers.TextGenerationPipeline._sanitize_parameters).parameters
    return {*CONFIG().to_dict(), *generate, *pipeline}


FORBIDDEN: Final = sorted((FEARED | of_the_library()) - ALLOWED)


@dataclass(frozen=True)
class Endpoint:
    """A parser, a function that puts a name into a body, and names with another meaning at that place."""

    parse: Callable[[Any], Request]
    body: Callable[[str, Any], dict[str, Any]]
    own: frozenset[str] = frozenset()

    def refuses(self, name: str, value: Any) -> bool:
        try:
            self.parse(self.body(name, value))
        except BadRequest as refusal:
            return refusal.code in ("unknown_field", "unsupported_field")
        return False


def row(body: Any) -> Request:
    return rows.request(rows.split(body), Parameters())


_OPENAI: Final = frozenset(("prompt", "suffix", "messages", "model"))

ENDPOINTS: Final[dict[str, Endpoint]] = {
    "score, inside": Endpoint(azure.parse, lambda name, value: score("a", **{name: value})),
    "score, as parameters": Endpoint(azure.parse, lambda name, value: {"input_data": ["a"], "parameters": {name: value}}),
    "score, as params": Endpoint(azure.parse, lambda name, value: {"input_data": ["a"], "params": {name: value}}),
    "score, on top": Endpoint(azure.parse, lambda name, value: {"input_data": ["a"], name: value}, frozenset(("inputs",))),
    "inputs": Endpoint(mlflow.parse, lambda name, value: {"inputs": score("a", **{name: value})["input_data"]}),
    "instances": Endpoint(mlflow.parse, lambda name, value: {"instances": ["a"], "params": {name: value}}),
    "invocations, on top": Endpoint(mlflow.parse, lambda name, value: {"instances": ["a"], name: value},
                                frozenset(("inputs",))),
    "row": Endpoint(row, lambda name, value: {"input_string": "a", "parameters": {name: value}}),
    "completion": Endpoint(openai.parse, lambda name, value: {"prompt": "a", name: value}, _OPENAI),
    "chat": Endpoint(openai.parse, lambda name, value: {"messages": [user("a")], name: value}, _OPENAI | {"tools"}),
}  # fmt: skip


def asks_for_nothing(name: str, value: Any) -> bool:
    """This value changes nothing, so it is accepted."""
    return (type(value), value) in [(type(one), one) for one in NO_EFFECT.get(name, ())]


def test_the_names_are_those_of_this_library() -> None:
    assert len(FORBIDDEN) > 80
    assert {"custom_generate", "num_beams", "tokenizer_encode_kwargs", "streamer"} <= set(FORBIDDEN)


@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=list(ENDPOINTS))
@pytest.mark.parametrize("value", [True, "x", 1, {}], ids=repr)
def test_a_name_outside_the_list_is_refused(endpoint: Endpoint, value: Any) -> None:
    passed = [
        name
        for name in FORBIDDEN
        if name not in endpoint.own and not asks_for_nothing(name, value) and not endpoint.refuses(name, value)
    ]
    assert passed == []


@settings(deadline=None)
@given(name=st.text().filter(lambda name: name not in {*ALLOWED, *NO_EFFECT}), value=st.booleans() | st.text())
@pytest.mark.parametrize("endpoint", [ENDPOINTS["score, inside"], ENDPOINTS["inputs"], ENDPOINTS["row"]])
def test_any_other_name_is_refused(endpoint: Endpoint, name: str, value: Any) -> None:
    assert endpoint.refuses(name, value)


# --- what arrives at the library ---------------------------------------------------------------------

FIXED: Final = {"attention_mask", "generation_config", "logits_processor", "stopping_criteria"}

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """nano with the engine that calls transformers."""
    started = Service.start(ModelFiles(FOLDER, NANO), Settings(engine="pipeline"))
    yield started
    started.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The arguments of the calls of the model's own `generate`."""
    seen: Calls = []
    original = transformers.GenerationMixin.generate

    def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return original(model, *args, **kwargs)

    monkeypatch.setattr(transformers.GenerationMixin, "generate", generate)
    return seen


def check(calls: Calls, sequences: int, max_new_tokens: int) -> None:
    """One call a sequence, each with the fixed arguments and a configuration that is unchanged."""
    assert len(calls) == sequences
    expected = CONFIG(max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, pad_token_id=0)
    for args, kwargs in calls:
        (ids,) = args
        assert ids.shape[0] == 1
        assert kwargs.keys() == FIXED
        assert kwargs["generation_config"].to_dict() == expected.to_dict()
        assert len(kwargs["logits_processor"]) == len(kwargs["stopping_criteria"]) == 1


def ask(service: Service, body: Any) -> None:
    service.generate(protocol.parse(body))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for name, edges in EDGES.items()
        for value in edges.accepted
        if value not in (None, 16)
        and ALIASES.get(name, name)
        not in ("max_new_tokens", "stream", "continue_final_message", "editor_stops")
    ],
)
def test_no_parameter_changes_what_arrives(service: Service, calls: Calls, name: str, value: Any) -> None:
    ask(service, score("a", max_new_tokens=2, **{name: value}))
    sequences = int(value) if ALIASES.get(name, name) == "num_return_sequences" else 1
    check(calls, sequences, 2)


@pytest.mark.parametrize(
    "body",
    [
        {"input_data": ["a"], "params": {"max_new_tokens": 2}},
        score([user("a")], max_new_tokens=2),
        score("a<FILL_ME>b", max_new_tokens=2),
        {"inputs": ["a"], "params": {"max_new_tokens": 2}},
        {"dataframe_records": [{"input_string": "a"}], "params": {"max_new_tokens": 2}},
        {"prompt": [1, 2], "max_tokens": 2, "user": "trust_remote_code", "metadata": {"custom_generate": "x"}},
        {"messages": [user("a")], "max_tokens": 2, "model": "x/custom", "logprobs": True, "store": True},
    ],
)
def test_no_protocol_changes_what_arrives(service: Service, calls: Calls, body: Any) -> None:
    ask(service, body)
    check(calls, 1, 2)


CHOICES: Final = {
    name: st.sampled_from([value for value in edges.accepted if value != 16])
    for name, edges in EDGES.items()
    if name in NAMES
    and name
    not in (
        "max_new_tokens",
        "stream",
        "min_new_tokens",
        "continue_final_message",
        "editor_stops",
        "response_format",
    )
}


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parameters=st.fixed_dictionaries({}, optional=CHOICES))
def test_no_combination_of_parameters_changes_what_arrives(
    service: Service, calls: Calls, parameters: dict[str, Any]
) -> None:
    calls.clear()
    parameters["num_return_sequences"] = None
    ask(service, score("a", max_new_tokens=1, **parameters))
    check(calls, 1, 1)


def test_a_refused_request_does_not_arrive(service: Service, calls: Calls) -> None:
    with pytest.raises(BadRequest):
        ask(service, score(["a", ""], max_new_tokens=1))
    with pytest.raises(BadRequest):
        ask(service, score(["a", "a " * 3000], max_new_tokens=1))
    check(calls, 0, 1)
