"""vLLM against our own engines: the same ids from the same prompts, and every parameter with its meaning."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO, DialogFormat, ModelVariant
from llama_serving.contract import azure
from llama_serving.contract.request import Generation, Request
from llama_serving.engine.base import Engine
from llama_serving.engine.handle import Token
from llama_serving.engine.upstream.remote import KINDS
from llama_serving.errors import BadRequest, SetupError
from llama_serving.model_files import ModelFiles
from llama_serving.prompts.tokenizer import Tokenizer
from llama_serving.sampling_params import SamplingParams
from llama_serving.service.engine_factory import start_engine
from llama_serving.service.service import Service
from llama_serving.settings import Settings

pytestmark = pytest.mark.timeout(600)

STEP = 4095
SOURCE = replace(NANO, name="nano", dialog=DialogFormat.SOURCE, step_id=STEP)
"""nano, asked in the format of Code Llama 70B Instruct."""
EPSILON = 0.125
"""Of logits, in bfloat16: between 8 and 16, where the best ones lie, two neighbouring values differ by 1/16, and either
engine may round either way. Ids may part only where the reference's two best are no farther apart."""
LOGPROB = 2e-3
"""Of log-probabilities in float32: vLLM and we sum in another order."""

CODE = "    def push(self, item):\n        "
GAP = {"prefix": "def mean(values):\r\n\ttotal = ", "suffix": "\r\n\treturn total / len(values)\n"}
DIALOG = [
    {"role": "system", "content": "Answer in one line."},
    {"role": "user", "content": "Reverse a list 🦙"},
    {"role": "assistant", "content": "a[::-1]"},
    {"role": "user", "content": "  Now sort it"},
]
GREEDY = {"do_sample": False, "max_new_tokens": 64}
PENALTIES = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.25}
ASKED: dict[str, tuple[ModelVariant, Any, dict[str, Any]]] = {
    "a completion": (NANO, CODE, GREEDY),
    "strange text": (NANO, " \n\tx</s>é🦙\u2028", GREEDY),
    "NUL": (NANO, "a\x00b = ", GREEDY),
    "infilling": (NANO, GAP, GREEDY),
    "infilling with nothing before": (NANO, {"prefix": "", "suffix": "\nreturn x\n"}, GREEDY),
    "a dialog": (NANO, DIALOG, GREEDY),
    "a dialog as for 70B": (SOURCE, DIALOG, GREEDY),
    "behind the end": (NANO, "x = 1\n", {**GREEDY, "ignore_eos": True}),
    "at least so many": (NANO, "x = 1\n", {**GREEDY, "min_new_tokens": 40}),
    "penalties": (NANO, CODE, {**GREEDY, **PENALTIES}),
    "a stop": (NANO, CODE, {**GREEDY, "stop": ["e"], "return_full_text": True}),
    "a stop across tokens": (NANO, CODE, {**GREEDY, "stop": ["elf.i", "\n\n\n"]}),
    "one token": (NANO, CODE, {**GREEDY, "max_new_tokens": 1}),
    "a long prompt": (NANO, "def f(x):\n    return x + 1\n\n" * 100, GREEDY),
}


@dataclass(frozen=True)
class Pair:
    """The same model behind vLLM and behind our own engine, in one process."""

    vllm: Engine
    ours: Engine
    settings: Mapping[str, str]

    def services(self, variant: ModelVariant) -> tuple[Service, Service]:
        tokenizer = Tokenizer.from_folder(NANO_FOLDER, variant.special_ids)
        theirs, own = (
            Service(variant, tokenizer, engine, Settings(), capacity=engine.capacity)
            for engine in (self.vllm, self.ours)
        )
        return theirs, own


def started(
    settings: Mapping[str, str], checkpoint: Path, variant: ModelVariant, dtype: str, **more: str
) -> Engine:
    engine, _ = start_engine(
        ModelFiles(checkpoint, variant),
        dtype=dtype,
        context=variant.trained_positions.value,
        settings=Settings.from_environment({**settings, **more}),
    )
    return engine


@pytest.fixture(scope="module")
def pair(settings: Mapping[str, str]) -> Iterator[Pair]:
    """nano in float32."""
    vllm = started(settings, NANO_FOLDER, NANO, "float32")
    ours = started({"LLAMA_ENGINE": "batching"}, NANO_FOLDER, NANO, "float32")
    yield Pair(vllm, ours, settings)
    vllm.close()
    ours.close()


def parsed(prompt: Any, parameters: Mapping[str, Any]) -> Request:
    alone = isinstance(prompt, list)
    return azure.parse(
        {"input_data": {"input_string": prompt if alone else [prompt], "parameters": dict(parameters)}}
    )


def one(service: Service, prompt: Any, parameters: Mapping[str, Any]) -> Generation:
    return service.generate(parsed(prompt, parameters))[0][0]


# --- the same ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASKED)
def test_the_same_text_as_our_own_engine(pair: Pair, name: str) -> None:
    variant, prompt, parameters = ASKED[name]
    theirs, own = pair.services(variant)
    expected = one(own, prompt, parameters)
    found = one(theirs, prompt, parameters)
    assert (found.text, found.finish_reason, found.usage) == (
        expected.text,
        expected.finish_reason,
        expected.usage,
    )
    assert expected.usage.completion_tokens > 0


def test_the_requests_mean_different_things(pair: Pair) -> None:
    """(Or the test above would compare less than it says.)"""
    texts = [one(pair.services(variant)[1], prompt, how).text for variant, prompt, how in ASKED.values()]
    assert len(set(texts)) >= len(texts) - 2


HELD: dict[str, tuple[dict[str, Any], Callable[[str], object]]] = {
    "schema": (
        {
            "json": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"enum": ["é", None]}},
                "required": ["a", "b"],
            }
        },
        lambda text: set(json.loads(text)) == {"a", "b"},
    ),
    "regex": ({"regex": r"[a-z]{2,9}-\d{1,3}é?"}, lambda text: re.fullmatch(r"[a-z]{2,9}-\d{1,3}é?", text)),
    "choice": ({"choice": ["yes", " no"]}, lambda text: text in ("yes", " no")),
    "grammar": ({"grammar": 'start: a "-" a\na: "x" | "yz"'}, lambda text: re.fullmatch("(x|yz)-(x|yz)", text)),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("temperature", [0, 1])
def test_vllm_holds_the_text(pair: Pair, name: str, temperature: float) -> None:
    held, valid = HELD[name]
    theirs, _ = pair.services(NANO)
    parameters = {"structured_outputs": held, "temperature": temperature, "max_new_tokens": 64}
    made = [one(theirs, CODE, {**parameters, "seed": seed}) for seed in range(4)]
    ended = [generation.text for generation in made if generation.finish_reason == "stop"]
    assert ended
    assert [text for text in ended if not valid(text)] == []


def ids(engine: Engine, prompt: Sequence[int], params: SamplingParams) -> list[Token]:
    return list(engine.submit(prompt, params))


def test_the_same_ids_and_log_probabilities(pair: Pair) -> None:
    params = SamplingParams(max_new_tokens=48, logprobs=4)
    prompt = (1, *Tokenizer.from_folder(NANO_FOLDER).encode(CODE))
    theirs, own = (ids(engine, prompt, params) for engine in (pair.vllm, pair.ours))
    assert [token.id for token in theirs] == [token.id for token in own]
    for found, expected in zip(theirs, own, strict=True):
        assert found.logprob == pytest.approx(expected.logprob, abs=LOGPROB)
        assert len(found.top) == 4
        values = [value for _, value in found.top]
        assert values == pytest.approx([value for _, value in expected.top], abs=LOGPROB)
        assert dict(found.top)[found.id] == pytest.approx(found.logprob)


@pytest.mark.parametrize("new", [0, 1, 5])
def test_the_same_log_probabilities_of_a_prompt(pair: Pair, new: int) -> None:
    prompt = [1, 1177, 294, 4003, *range(300, 400)]
    params = SamplingParams(max_new_tokens=new, prompt_logprobs=3, logit_bias=((7, 100.0),))
    theirs, ours = (engine.submit(prompt, params) for engine in (pair.vllm, pair.ours))
    assert [token.id for token in theirs] == [token.id for token in ours] == [7] * new
    assert theirs.finish_reason == ours.finish_reason == "length"
    assert len(theirs.prompt) == len(ours.prompt) == len(prompt) - 1
    for found, expected in zip(theirs.prompt, ours.prompt, strict=True):
        assert (found.id, [i for i, _ in found.top]) == (expected.id, [i for i, _ in expected.top])
        assert found.logprob == pytest.approx(expected.logprob, abs=LOGPROB)
        assert found.rank in (None, expected.rank)


def test_sixteen_at_a_time_are_the_same_as_one(pair: Pair) -> None:
    theirs, own = pair.services(NANO)
    prompts = [f"def f{n}(x, y{n}):\n" * (1 + n % 4) for n in range(32)]
    expected = [one(own, prompt, GREEDY).text for prompt in prompts]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda prompt: one(theirs, prompt, GREEDY).text, prompts))
    assert found == expected


def test_bfloat16_parts_only_at_near_ties(pair: Pair, settings: Mapping[str, str]) -> None:
    del pair  # (started before, so that the two do not load at once)
    variant = replace(NANO, dtype="bfloat16")
    tokenizer = Tokenizer.from_folder(NANO_FOLDER)
    params = SamplingParams(max_new_tokens=48, logprobs=2)
    vllm = started(settings, NANO_FOLDER, variant, "bfloat16")
    ours = started({"LLAMA_ENGINE": "batching", "LLAMA_BACKEND": "portable"}, NANO_FOLDER, variant, "bfloat16")
    try:
        for text in (CODE, "import os\n", "class Stack:\n", "def fib(n):\n", "# Sorts a list\n", "x = [1, 2"):
            prompt = (1, *tokenizer.encode(text))
            found, expected = ids(vllm, prompt, params), ids(ours, prompt, params)
            parted = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0].id != pair[1].id), None)  # fmt: skip
            if parted is None:
                assert len(found) == len(expected)
            else:
                (_, best), (_, second) = expected[parted].top
                assert best - second <= EPSILON, (text, parted)
    finally:
        vllm.close()
        ours.close()


# --- parameters -------------------------------------------------------------------------------------

SEEDED = {"temperature": 1.3, "top_k": 50, "top_p": 0.9, "max_new_tokens": 24, "seed": 2**62}


def test_a_seed_repeats_and_another_does_not(pair: Pair) -> None:
    theirs, _ = pair.services(NANO)
    first = one(theirs, CODE, SEEDED).text
    assert one(theirs, CODE, SEEDED).text == first
    assert len({one(theirs, CODE, {**SEEDED, "seed": seed}).text for seed in range(4)}) > 1


def test_several_sequences_differ_and_repeat(pair: Pair) -> None:
    theirs, _ = pair.services(NANO)
    asked = parsed(CODE, {**SEEDED, "num_return_sequences": 4})
    (first,), (second,) = theirs.generate(asked), theirs.generate(asked)
    assert [s.text for s in first] == [s.text for s in second]
    assert len({s.text for s in first}) > 1
    assert first[0].text == one(theirs, CODE, SEEDED).text


@pytest.mark.parametrize("how", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_what_leaves_one_token_is_greedy(pair: Pair, how: dict[str, Any]) -> None:
    """Where the two best are as good as equal, either may be the one: vLLM computes what it has met before in another shape."""
    prompt = (1, *Tokenizer.from_folder(NANO_FOLDER).encode(CODE))
    greedy = ids(pair.vllm, prompt, SamplingParams(max_new_tokens=32, logprobs=2))
    sampled = ids(pair.vllm, prompt, SamplingParams(max_new_tokens=32, temperature=1.5, seed=3, **how))
    parted = next(
        (n for n, two in enumerate(zip(sampled, greedy, strict=False)) if two[0].id != two[1].id), None
    )
    if parted is not None:
        (_, best), (_, second) = greedy[parted].top
        assert best - second <= LOGPROB, parted


def test_text_stops_where_a_stop_string_begins(pair: Pair) -> None:
    theirs, _ = pair.services(NANO)
    whole = one(theirs, CODE, GREEDY).text
    for start in range(0, 24, 5):  # (most of them begin and end in the middle of tokens)
        stop = whole[start : start + 7]
        cut = one(theirs, CODE, {**GREEDY, "stop": [stop]})
        assert (cut.text, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_context_at_its_limit(pair: Pair) -> None:
    theirs, own = pair.services(NANO)
    fits = NANO.trained_positions.value - 8
    ids = tuple(5 + n % 300 for n in range(fits))
    params = SamplingParams(max_new_tokens=8)
    assert [t.id for t in pair.vllm.submit(ids, params)] == [t.id for t in pair.ours.submit(ids, params)]
    assert pair.vllm.capacity == NANO.trained_positions.value
    for service in (theirs, own):
        with pytest.raises(BadRequest, match="2048"):
            service.generate(parsed(CODE, {"max_new_tokens": 2048}))


@pytest.mark.parametrize(
    ("parameters", "param"),
    [
        ({"temperature": 0.005}, "temperature"),
        ({"top_p": 0}, "input_data.parameters.top_p"),
        ({"best_of": 3}, "input_data.parameters.best_of"),
        ({"max_tokens": 0}, "input_data.parameters.max_tokens"),
        ({"num_return_sequences": 2, "do_sample": False}, "input_data.parameters.num_return_sequences"),
    ],
)
def test_what_cannot_be_done_is_a_400(pair: Pair, parameters: dict[str, Any], param: str) -> None:
    theirs, _ = pair.services(NANO)
    with pytest.raises(BadRequest) as refusal:
        one(theirs, CODE, parameters)
    assert refusal.value.status == 400
    assert refusal.value.param == param
    assert KINDS["vllm"].lowest_temperature == 0.01


def test_a_deadline_keeps_what_is_done_and_a_cancelled_one_ends(pair: Pair) -> None:
    params = SamplingParams(max_new_tokens=2000)
    handle = pair.vllm.submit((1, 5), params, deadline=time.monotonic() + 1.0)
    tokens = list(handle)
    assert handle.finish_reason == "deadline"
    assert 0 < len(tokens) < 2000
    handle = pair.vllm.submit((1, 5), params)
    next(iter(handle))
    handle.cancel()
    handle.wait()
    assert handle.finish_reason == "cancelled"


def test_the_engine_says_what_it_is(pair: Pair) -> None:
    stats = pair.vllm.stats()
    assert (stats.engine, stats.alive, stats.away) == ("vllm", True, False)
    assert stats.backend.startswith("vLLM 0.")


# --- starts that fail -------------------------------------------------------------------------------


def test_what_vllm_refuses_is_said_in_its_words(settings: Mapping[str, str], tmp_path: Path) -> None:
    for file in NANO_FOLDER.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SetupError, match=r"before it was healthy: .*weights"):
        started(settings, tmp_path, NANO, "float32")
