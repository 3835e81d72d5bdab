"""The tokens are those of transformers' own generate."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import pytest
import torch
import transformers

from llama_endpoints.nano import FOLDER as NANO_FOLDER
from llama_serving.catalog import NANO
from llama_serving.engine.base import Engine
from tests.support.pipeline_engines import GREEDY, PROMPT, PROMPTS, SAMPLED, VOCAB, ids_of, run

EOS: Final = NANO.eos_id


@pytest.fixture(scope="module")
def reference() -> Any:
    """The same checkpoint, loaded and run by transformers alone."""
    library: Any = transformers
    model = library.LlamaForCausalLM.from_pretrained(NANO_FOLDER, dtype=torch.float32).eval()
    model.generation_config = library.GenerationConfig()
    return model


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_greedy_is_transformers_own_generate(
    engine: Engine, reference: Any, prompt: tuple[int, ...], penalty: float
) -> None:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=0,
            repetition_penalty=penalty,
        )[0, len(prompt) :].tolist()
    params = replace(GREEDY, stop_ids=frozenset({EOS}), repetition_penalty=penalty)
    assert run(engine, prompt, params) == (expected, "stop" if expected[-1] == EOS else "length")


def test_logprobs_are_the_models(engine: Engine, reference: Any) -> None:
    tokens = list(engine.submit(PROMPT, replace(GREEDY, max_new_tokens=8, logprobs=3, temperature=0.5)))
    ids = [*PROMPT, *(token.id for token in tokens)]
    with torch.inference_mode():
        logits = reference(torch.tensor([ids])).logits[0, len(PROMPT) - 1 : -1].double()
    for token, expected in zip(tokens, logits.log_softmax(-1), strict=True):
        best = expected.topk(3)
        assert token.logprob == pytest.approx(float(expected[token.id]), abs=1e-4)
        assert [i for i, _ in token.top] == best.indices.tolist()
        assert [logprob for _, logprob in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_a_seeded_request_repeats(engine: Engine) -> None:
    first = run(engine, PROMPT, SAMPLED)
    assert run(engine, PROMPT, SAMPLED) == first
    assert run(engine, PROMPT, replace(SAMPLED, seed=12)) != first


def test_a_seeded_request_repeats_in_any_batch(engine: Engine) -> None:
    alone = run(engine, PROMPT, SAMPLED)

    def work(number: int) -> tuple[list[int], str | None]:
        if number % 2:
            return run(engine, PROMPT, SAMPLED)
        other = replace(SAMPLED, seed=number, max_new_tokens=5 + number)
        return run(engine, PROMPTS["bytes"], other) and alone

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(16))) == [alone] * 16


def test_returned_sequences_differ_and_repeat_alone(engine: Engine) -> None:
    params = [replace(SAMPLED, index=index) for index in range(4)]
    together = [ids_of(handle) for handle in [engine.submit(PROMPT, one) for one in params]]
    assert len({tuple(ids) for ids in together}) == 4
    assert [run(engine, PROMPT, one)[0] for one in reversed(params)] == together[::-1]


def test_stop_ids_end_a_sequence(engine: Engine) -> None:
    free, reason = run(engine, PROMPT, GREEDY)
    assert (len(free), reason) == (24, "length")
    wanted, absent = free[5], next(token for token in range(VOCAB) if token not in free)
    stopped = run(engine, PROMPT, replace(GREEDY, stop_ids=frozenset({wanted, absent})))
    assert stopped == (free[: free.index(wanted) + 1], "stop")


def test_min_new_tokens_keeps_a_sequence_going(engine: Engine) -> None:
    (first, *_), _ = run(engine, PROMPT, replace(GREEDY, max_new_tokens=1))
    stops = frozenset({first})
    assert run(engine, PROMPT, replace(GREEDY, stop_ids=stops)) == ([first], "stop")
    longer, _ = run(engine, PROMPT, replace(GREEDY, stop_ids=stops, min_new_tokens=6))
    assert len(longer) > 6
    assert first not in longer[:6]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_max_new_tokens_ends_a_sequence(engine: Engine, count: int) -> None:
    ids, reason = run(engine, PROMPT, replace(GREEDY, max_new_tokens=count))
    assert (len(ids), reason) == (count, "length")
