"""How long work would take: arithmetic, checked by hand and by what must not happen."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployment.nano import FOLDER as NANO
from llama_serving.engine.batching.checkpoint import LlamaConfig, Weights
from llama_serving.engine.batching.speed import LAYER_S, Speed

CONFIG = LlamaConfig(
    vocab=100,
    hidden=8,
    ffn=16,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=4,
    rope_theta=1e4,
    epsilon=1e-6,
    tied=False,
)
SPEED = Speed(bytes_per_s=1e6, flops=1e9, item_bytes=2)
TOKENS = st.integers(0, 10**9)


def test_by_hand() -> None:
    weights = 2 * (8 * 8 + 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16) + 8 * 100
    assert CONFIG.weights_per_token == weights
    # Two steps of two rows each. A row has 3 tokens of its prompt, and 1 of its 2 new ones in the middle of its time.
    step = 2 * (weights + 2 * 4 * CONFIG.kv_values_per_token) / 1e6 + 2 * LAYER_S
    assert SPEED.seconds(CONFIG, rows=2, prompt_tokens=6, new_tokens=4, slots=64) == pytest.approx(
        2 * step + 2 * weights * 6 / 1e9
    )
    slow = replace(SPEED, flops=1e6)
    step = 2 * weights * 2 / 1e6 + 2 * LAYER_S
    assert slow.seconds(CONFIG, rows=2, prompt_tokens=0, new_tokens=4, slots=64) == pytest.approx(2 * step)


def test_no_rows_take_no_time() -> None:
    assert SPEED.seconds(CONFIG, rows=0, prompt_tokens=0, new_tokens=0, slots=1) == 0


@given(rows=st.integers(1, 10**6), prompt=TOKENS, new=TOKENS, slots=st.integers(1, 512))
def test_more_work_never_takes_less_and_more_at_a_time_never_more(
    rows: int, prompt: int, new: int, slots: int
) -> None:
    def seconds(speed: Speed = SPEED, *, prompt: int = prompt, new: int = new, slots: int = slots) -> float:
        return speed.seconds(CONFIG, rows=rows, prompt_tokens=prompt, new_tokens=new, slots=slots) * (1 + 1e-12)

    now = SPEED.seconds(CONFIG, rows=rows, prompt_tokens=prompt, new_tokens=new, slots=slots)
    assert now <= seconds(prompt=prompt + 1000)
    assert now <= seconds(new=new + 1000)
    assert seconds(slots=slots + 1) * (1 - 1e-9) <= seconds()
    assert seconds(replace(SPEED, bytes_per_s=2e6)) * (1 - 1e-9) <= seconds()
    assert seconds(replace(SPEED, flops=2e9)) * (1 - 1e-9) <= seconds()


def test_the_weights_of_a_real_checkpoint() -> None:
    sizes = [path.stat().st_size for path in Path(NANO).glob("*.safetensors")]
    config = LlamaConfig.read(NANO)
    embedding = config.hidden * config.vocab
    assert Weights(NANO).tensor("model.embed_tokens.weight", (config.vocab, config.hidden)).itemsize == 2
    # (Norms, and the head of the file.)
    assert sum(sizes) / 2 == pytest.approx(
        config.weights_per_token + (0 if config.tied else embedding), rel=0.01
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_this_machine_has_some(dtype: str) -> None:
    speed = Speed.measured(dtype)
    assert 1e8 < speed.bytes_per_s < 1e14
    assert 1e8 < speed.flops < 1e17
    assert speed.item_bytes == {"float32": 4, "bfloat16": 2}[dtype]
