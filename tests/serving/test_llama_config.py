"""The reader of config.json: it reads what transformers reads, and refuses what is ambiguous."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers

from llama_endpoints.checkpoints.inspection import adapt, shape_of
from llama_serving.engine.batching.checkpoint import read_config
from llama_serving.errors import SetupError
from llama_serving.llama_config import LlamaConfig, load
from tests.support import tiny
from tests.support.tiny import TINY, tiny_config

GONE = object()

THETAS: dict[str, tuple[dict[str, Any], float]] = {
    "in the object": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5),
    "outside": ({"rope_parameters": GONE, "rope_theta": 7e5}, 7e5),
    "in both": ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "rope_theta": 7e5}, 5e5),
    "outside, and an object without": ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e5}, 7e5),
    "in the older object": (
        {"rope_parameters": GONE, "rope_scaling": {"type": "default", "rope_theta": 3e5}},
        3e5,
    ),
    "in both objects": (
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            "rope_scaling": {"rope_type": "default", "rope_theta": 3e5},
        },
        3e5,
    ),
    "an integer": ({"rope_parameters": GONE, "rope_theta": 10000}, 1e4),
    "nowhere": ({"rope_parameters": GONE}, 1e4),
    "null": ({"rope_parameters": None, "rope_scaling": None, "rope_theta": 2e4}, 2e4),
}
WIDTHS: dict[str, tuple[dict[str, Any], int]] = {
    "stated": ({"head_dim": 32}, 32),
    "stated, narrow": ({"head_dim": 8}, 8),
    "null": ({"head_dim": None}, 16),
    "gone": ({"head_dim": GONE}, 16),
}


def config(**changed: Any) -> dict[str, Any]:
    return {name: value for name, value in {**tiny_config(), **changed}.items() if value is not GONE}


def written(folder: Path, given: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(given))
    return folder


def theirs(folder: Path) -> Any:
    return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(("changed", "expected"), THETAS.values(), ids=THETAS)
def test_theta_is_the_one_that_transformers_computes_with(
    changed: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    folder = written(tmp_path, config(**changed))
    assert read_config(folder).rope_theta == expected
    assert adapt(TINY, load(folder), folder)[0].rope_theta == expected, "and packaging records it"
    assert theirs(folder).rope_parameters["rope_theta"] == expected


@pytest.mark.parametrize(("changed", "expected"), WIDTHS.values(), ids=WIDTHS)
def test_heads_are_as_wide_as_in_transformers(changed: dict[str, Any], expected: int, tmp_path: Path) -> None:
    folder = written(tmp_path, config(**changed))
    found = read_config(folder)
    assert (found.head_dim, shape_of(found).head_dim, theirs(folder).head_dim) == (expected,) * 3


@pytest.mark.parametrize("name", ["num_key_value_heads", "rms_norm_eps", "tie_word_embeddings"])
def test_what_is_left_out_is_transformers_default(name: str, tmp_path: Path) -> None:
    folder = written(tmp_path, config(**{name: GONE}))
    found, expected = read_config(folder), theirs(folder)
    assert (found.kv_heads, found.epsilon, found.tied) == (
        expected.num_key_value_heads,
        expected.rms_norm_eps,
        expected.tie_word_embeddings,
    )


@pytest.mark.parametrize(
    "place", [{"rope_theta": 7e5}, {"rope_scaling": {"rope_theta": 3e5}, "rope_theta": 7e5}]
)
def test_a_second_theta_is_told(place: dict[str, Any], tmp_path: Path) -> None:
    given = config(**place)
    _, warnings = adapt(TINY, given, tmp_path)
    assert "config.json has rope_theta twice" in warnings[0]
    assert "700000" in warnings[0].replace("7e+05", "700000")
    assert not adapt(TINY, config(rope_theta=TINY.rope_theta), tmp_path)[1], (
        "the same number twice says nothing new"
    )


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hidden_size": GONE}, "lacks hidden_size; a positive integer is needed."),
        ({"num_attention_heads": "4"}, "has num_attention_heads '4'; a positive integer"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads 4 and num_key_value_heads 3: each must be a multiple",
        ),
        ({"head_dim": 0}, "has head_dim 0; a positive integer"),
        ({"head_dim": "16"}, "has head_dim '16'; a positive integer"),
        ({"head_dim": 15}, "has heads of size 15; the rotary embedding needs an even one."),
        ({"hidden_size": 66}, "hidden_size 66, num_attention_heads 4"),
        ({"rope_parameters": {"rope_theta": "1e6"}}, "has rope_theta '1e6'; a positive number"),
        ({"rope_parameters": {"rope_theta": 0}}, "has rope_theta 0; a positive number"),
        ({"rope_theta": -1}, "has rope_theta -1; a positive number"),
        ({"rope_parameters": GONE, "rope_theta": True}, "has rope_theta True; a positive number"),
        ({"rope_parameters": GONE, "rope_theta": float("inf")}, "has rope_theta inf; a positive number"),
        ({"rope_parameters": "default"}, "has rope_parameters 'default'; an object"),
        ({"rope_scaling": ["linear"]}, "has rope_scaling ['linear']; an object"),
        ({"rms_norm_eps": "1e-5"}, "has rms_norm_eps '1e-5'; a positive number"),
        ({"tie_word_embeddings": "false"}, "has tie_word_embeddings 'false'; true or false"),
    ],
)
def test_what_nobody_could_read_is_refused_alike(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = written(tmp_path, config(**changed))
    for read in (read_config, lambda folder: adapt(TINY, load(folder), folder)):
        with pytest.raises(SetupError, match=re.escape(says)):
            read(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "has no config.json"), ("{", "can't be read"), ("[]", "is not a JSON object")],
)
def test_what_is_no_config(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SetupError, match=says):
        read_config(tmp_path)


def test_a_shape_with_wide_heads_is_counted_as_it_is(tmp_path: Path) -> None:
    said = LlamaConfig.of(config(head_dim=32), tmp_path)
    shape = shape_of(said)
    tensors = tiny.tensor_shapes(shape)
    assert tensors["model.layers.0.self_attn.q_proj.weight"] == (4 * 32, 64)
    assert shape.parameters == sum(rows * (columns[0] if columns else 1) for rows, *columns in tensors.values())
    assert shape.kv_bytes_per_token(1) == said.kv_values_per_token
    with pytest.raises(SetupError, match="its config has head_dim 32 instead of 16"):
        adapt(TINY, config(head_dim=32), tmp_path)
