"""The estimated duration of a job: measurements are replaced, and the arithmetic is checked by hand."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_endpoints.nano import FOLDER as NANO
from llama_serving.engine.batching import speed
from llama_serving.engine.batching.backends.selection import BackendRequest, BackendSelection
from llama_serving.engine.batching.checkpoint import read_config
from llama_serving.engine.batching.speed import Amount, Length
from llama_serving.llama_config import LlamaConfig
from llama_serving.sampling_params import SamplingParams

CONFIG = LlamaConfig(
    vocab=100,
    hidden=8,
    ffn=16,
    layers=10,
    heads=2,
    kv_heads=1,
    head_dim=4,
    rope_theta=1e4,
    epsilon=1e-6,
    tied=False,
)
LAYER = 8 * 8 + 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16


def length(prompt: int, new: int) -> Length:
    return Length(prompt, SamplingParams(max_new_tokens=new))


def amount(*lengths: Length) -> Amount:
    made = Amount()
    for one in lengths:
        made.add(one)
    return made


def test_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of ten layers are measured; a step takes the time without layers plus five times the time of the two."""
    asked = []

    def measured(
        config: LlamaConfig, selection: BackendSelection, together: list[Length], prompt: int
    ) -> tuple[float, float]:
        asked.append((config.layers, selection.request, len(together), prompt))
        return (0.010, 0.001) if config.layers == 0 else (0.014, 0.002)

    monkeypatch.setattr(speed, "WEIGHTS", 2 * LAYER)
    monkeypatch.setattr(speed, "_measured", measured)
    monkeypatch.setattr(speed, "_drawing", lambda config, together: 0.005)
    work = amount(length(30, 4), length(10, 8))
    wanted = BackendRequest("bfloat16", backend="portable")
    step, token = 0.010 + 5 * 0.004 + 0.005, 0.001 + 5 * 0.001
    assert speed.seconds(CONFIG, wanted, work, slots=64) == pytest.approx(12 / 2 * step + 40 * token)
    assert asked == [(0, wanted, 2, 20), (2, wanted, 2, 20)]
    assert speed.seconds(CONFIG, wanted, work, slots=1) == pytest.approx(12 * step + 40 * token)


def test_no_rows_take_no_time() -> None:
    assert speed.seconds(CONFIG, BackendRequest("float32"), Amount(), slots=1) == 0


@pytest.mark.parametrize(("weights", "layers"), [(1, 1), (3 * LAYER, 3), (3 * LAYER + 1, 3), (99 * LAYER, 10)])
def test_as_many_layers_as_may_be_measured(monkeypatch: pytest.MonkeyPatch, weights: int, layers: int) -> None:
    monkeypatch.setattr(speed, "WEIGHTS", weights)
    assert speed._layers(CONFIG) == layers


def test_who_generates_for_longer_is_met_more_often() -> None:
    short, long = length(5, 1), length(7, 9)
    together = speed._together([short, long], 10)
    assert (together.count(short), together.count(long)) == (1, 9)
    assert [one.half for one in (short, long)] == [5, 11]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 300)), min_size=1, max_size=2000))
def test_an_amount_is_counted_whole_and_remembered_in_part(lengths: list[tuple[int, int]]) -> None:
    made = amount(*(length(*one) for one in lengths))
    assert (made.sequences, made.prompt_tokens) == (len(lengths), sum(prompt for prompt, _ in lengths))
    assert made.new_tokens == sum(new for _, new in lengths)
    assert len(made.sample) == min(len(lengths), speed.SAMPLE)
    assert {(one.prompt, one.params.max_new_tokens) for one in made.sample} <= set(lengths)


def test_a_sample_is_of_all() -> None:
    made = amount(*(length(n, 1) for n in range(20_000)))
    late = sum(one.prompt >= 10_000 for one in made.sample)
    assert speed.SAMPLE / 3 < late < speed.SAMPLE * 2 / 3


def test_a_prompt_that_several_share_is_counted_once() -> None:
    made = Amount()
    for index in range(3):
        made.add(length(50, 4), known=index > 0)
    assert (made.sequences, made.prompt_tokens, made.new_tokens) == (3, 50, 12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("prompt", [1, 20, 700])
def test_the_engines_own_steps_are_measured(dtype: str, prompt: int) -> None:
    """On a model of nano's shape, of which no weight is read."""
    config = replace(read_config(NANO), layers=2)
    work = amount(*(length(prompt + n, 5 + n) for n in range(8)))
    assert 0 < speed.seconds(config, BackendRequest(dtype), work, slots=4) < 60


def test_the_weights_of_a_token() -> None:
    assert CONFIG.weights_per_token == 10 * LAYER + 8 * 100
